"""Renders the default dataset: hands that show the numbers 0 to 5.

Each image is a small ray-cast scene. A hand (`hand_model.py`) is a set of rounded cones. An orthographic camera sees
them as a height field: for each pixel, the distance by which the nearest skin extends toward the camera. The field
determines outline, occlusion, shading and shadows. Pose, person, light, background and camera are random.

Light is summed in linear colors, with a gamma of 2 as an approximation of sRGB. Until the last step, images have shape
(3, n, n), because NumPy is faster on long rows.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from flaxresnet.data.dataset import Dataset, Splits
from flaxresnet.data.hand_signs.hand_model import GESTURES, SKIN_TONES, Bone, pose_arm, pose_hand

SUPERSAMPLING = 2  # the hand is rendered at twice the resolution, then averaged for smooth outlines
DEFAULT_VARIETY = 0.1  # a network learns it from a thousand images in 20 epochs; 1 takes several times as many
DEFAULT_SEED = 0  # of the default dataset, which does not depend on a run's seed


class Scene(NamedTuple):
    """The fields of n bones in the camera's frame: x to the right, y down, z to the camera, in pixels."""

    start: np.ndarray  # (n, 3) float32
    end: np.ndarray  # (n, 3) float32
    radii: np.ndarray  # (n, 2) float32
    color: np.ndarray  # (n, 3) float32
    crease: np.ndarray  # (n,) float32
    is_tube: np.ndarray  # (n,) bool


def rotation(*turns: tuple[float, int, int]) -> np.ndarray:
    """Returns the (3, 3) matrix of successive rotations, each (angle in degrees, from axis, to axis)."""
    matrix = np.eye(3)
    for angle, i, j in turns:
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(np.radians(angle))
        turn[j, i] = np.sin(np.radians(angle))
        turn[i, j] = -turn[j, i]
        matrix = turn @ matrix
    return matrix


def project(bones: list[Bone], yaw: float, size: int, rng: np.random.Generator) -> Scene:
    """Returns the bones in the frame of a random camera, for an image of `size` × `size` pixels."""
    start, end, radii, color, crease, is_tube, is_arm = (np.array(field) for field in zip(*bones, strict=True))
    roll = np.clip(rng.normal(0, 12), -25, 25)
    stretch = (rng.choice([-1, 1]) * rng.uniform(0.9, 1.1), -1.0, 1.0)  # left or right hand
    view = np.diag(stretch) @ rotation((yaw, 2, 0), (rng.normal(0, 10), 1, 2), (roll, 0, 1))
    start = start @ view.T
    end = end @ view.T
    reach = radii.max(axis=1, keepdims=True)
    low = (np.minimum(start, end) - reach)[~is_arm].min(axis=0)
    high = (np.maximum(start, end) + reach)[~is_arm].max(axis=0)
    # Keeps the fingertips inside the image: a finger that is cut off would change the sign.
    scale = min(size * rng.uniform(0.72, 0.98), 0.96 * size / (high - low)[:2].max())
    slack = size - scale * (high - low)
    offset = slack * np.clip(rng.normal((0.5, 0.4, 0.5), 0.2), 0.03, 0.97) - scale * low
    numbers = (start * scale + offset, end * scale + offset, radii * scale, color, crease)
    return Scene._make([*(field.astype(np.float32) for field in numbers), is_tube])


def candidates(scene: Scene, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the pixels in the bounding boxes of the bones, bone after bone.

    Returns:
      The number of pixels of each bone, (n,) int, and the x and y of all m pixels, (m,) int each. m is about 22,000 in
      an image of 128 × 128 pixels.
    """
    reach = scene.radii.max(axis=1, keepdims=True)
    low = np.clip(np.minimum(scene.start, scene.end) - reach, 0, size)[:, :2].astype(int)
    high = np.clip(np.maximum(scene.start, scene.end) + reach + 1, 0, size)[:, :2].astype(int)
    widths, heights = (high - low).T
    counts = widths * heights
    rank = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    row, column = np.divmod(rank, np.repeat(widths, counts))
    return counts, column + np.repeat(low[:, 0], counts), row + np.repeat(low[:, 1], counts)


def raycast_bones(scene: Scene, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Intersects the camera's rays with the bones.

    A rounded cone is the union of balls with radius r(t) around (x(t), y(t), z(t)), 0 ≤ t ≤ 1, all linear in t. On the
    ray through the pixel (u, v), the ball at t extends to the height z(t) + sqrt(q(t)), with
    q(t) = r(t)² - (u - x(t))² - (v - y(t))² = a t² + b t + c. The cone's height is the maximum over t. The function is
    concave if a < 0, so the code limits a to at most -0.01, and clamps the root of the derivative to [0, 1]. Tubes have
    flat ends: a pixel for which the root is outside of [0, 1] does not hit them. All bones are computed at once,
    because they are many and small.

    Returns:
      For each of m hits, (m,) each: the index of the bone, t, the pixel y · size + x, and the height.
    """
    counts, x, y = candidates(scene, size)

    def each(values: np.ndarray) -> np.ndarray:
        """Repeats a value for each bone, (n,), over the bone's pixels, (m,)."""
        return np.repeat(values, counts)

    dx, dy, dz = (scene.end - scene.start).T
    radius = scene.radii[:, 0]
    growth = scene.radii[:, 1] - radius
    a = np.minimum(growth**2 - dx**2 - dy**2, -1e-2)
    px = (x + 0.5).astype(np.float32) - each(scene.start[:, 0])
    py = (y + 0.5).astype(np.float32) - each(scene.start[:, 1])
    widest = px * each(-dx / a) + py * each(-dy / a) - each(radius * growth / a)  # -b / 2a
    c = each(radius**2) - px * px - py * py
    free = widest + np.sqrt(np.maximum(widest * widest - c * each(1 / a), 0)) * each(dz / np.sqrt(dz**2 - a))
    t = np.minimum(np.maximum(free, 0), 1)
    q = (t - 2 * widest) * t * each(a) + c
    hit = np.flatnonzero((q > 0) & ((t == free) | ~each(scene.is_tube)))
    bone, t = each(np.arange(len(counts)))[hit], t[hit]
    return bone, t, (y * size + x)[hit], np.sqrt(q[hit]) + t * dz[bone] + scene.start[bone, 2]


def render_height_field(scene: Scene, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes the visible surface of a scene.

    Returns:
      The hand's mask, (size, size) bool; its height in pixels, (size, size); its linear albedo, (3, size, size).
    """
    bone, t, pixel, height = raycast_bones(scene, size)
    top = np.full(size * size, -np.inf, np.float32)
    np.maximum.at(top, pixel, height)
    depth = top[pixel] - height
    # A soft maximum of the heights fills the grooves between bones.
    softness = 0.012 * size
    fill = softness * np.log(np.maximum(np.bincount(pixel, np.exp(-depth / softness), size * size), 1))
    mask = np.isfinite(top)
    height = np.where(mask, top, top[mask].min()) + fill.astype(np.float32)

    nearest = np.flatnonzero(depth == 0)
    bone = bone[nearest]
    crease = np.maximum(1 - 8 * t[nearest], 0)
    albedo = np.zeros((3, size * size), np.float32)
    albedo[:, pixel[nearest]] = np.square(scene.color.T)[:, bone] * (1 - scene.crease[bone] * crease)
    return mask.reshape(size, size), height.reshape(size, size), albedo.reshape(3, size, size)


def box_blur(field: np.ndarray, radius: int) -> np.ndarray:
    """Returns means over squares with sides of 2 · radius + 1 pixels, cut off at the edges; (…, n, n) float32."""
    positions = np.arange(field.shape[-1])
    high = np.minimum(positions + radius, positions[-1])
    low = np.maximum(positions - radius, 0)
    weight = (1 / (high - low + 1)).astype(np.float32)
    for axis, axis_weight in ((-1, weight), (-2, weight[:, None])):
        total = np.cumsum(field, axis=axis)
        field = (total.take(high, axis=axis) - (total - field).take(low, axis=axis)) * axis_weight
    return field


def shift(field: np.ndarray, dx: float, dy: float) -> np.ndarray:
    """Shifts a field, (n, n), by dx and dy pixels, each rounded to an integer, and repeats its edges."""
    last = len(field) - 1
    rows = np.clip(np.arange(len(field)) - round(dy), 0, last)
    columns = np.clip(np.arange(len(field)) - round(dx), 0, last)
    return field[rows][:, columns]


def shade(height: np.ndarray, light: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns the diffuse and the specular brightness, (n, n) each; `light` is the (3,) unit vector to the lamp."""
    size = len(height)
    step = box_blur(height, size // 20) - height
    # Skin is softer than cones: small steps of the height field are smoothed, and large ones stay sharp.
    slope_y, slope_x = np.gradient(height + np.minimum(np.maximum(step, -0.02 * size), 0.02 * size))
    facing = 1 / np.sqrt(1 + slope_x * slope_x + slope_y * slope_y)
    lambert = np.maximum((light[2] - slope_x * light[0] - slope_y * light[1]) * facing, 0)
    # Ambient occlusion: a fold is lower than its neighborhood and receives less ambient light.
    ambient = np.minimum(np.maximum(1 - step / (0.06 * size), 0.25), 1)
    # A pixel is in shadow if the height field rises above the ray to the lamp.
    shadow = np.ones_like(height)
    toward = light[:2] / np.hypot(*light[:2])
    climb = light[2] / np.hypot(*light[:2])
    for distance in (0.025 * size, 0.06 * size):
        above = shift(height, *(-distance * toward)) - height - distance * climb
        shadow = np.minimum(shadow, np.maximum(1 - above / (0.02 * size), 0.3))
    fill = rng.uniform(0.35, 0.65)
    rim = 1 - rng.uniform(0.3, 0.7) * np.square(1 - facing)  # outlines are dark, as in sharpened phone photos
    diffuse = (fill + 1.3 * (1 - fill) * lambert * shadow) * ambient * rim
    return diffuse, rng.uniform(0, 0.12) * np.square(np.square(np.square(lambert))) * shadow


def tint(deviation: float, rng: np.random.Generator) -> np.ndarray:
    """Returns a random change of color: (3, 1, 1) float32."""
    return deviation * rng.standard_normal((3, 1, 1), np.float32)


def pixel_grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns x, (1, size), and y, (size, 1), of the pixels' centers: float32 in (-0.5, 0.5), y down."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    return axis[None, :], axis[:, None]


def render_background(size: int, skin: np.ndarray, variety: float, rng: np.random.Generator) -> np.ndarray:
    """Draws a random background, with or without patterns and objects: linear (3, size, size) float32."""
    is_plain = rng.random() < 1 - 0.25 * variety
    darkest, lightest, hue = (0.95 - 0.4 * variety, 0.95, 0.02) if is_plain else (0.1, 0.9, 0.14)
    color = rng.uniform(darkest, lightest) + tint(hue, rng)
    while np.abs(color[:, 0, 0] - skin).max() < 0.15:  # too similar to the hand
        color = rng.uniform(darkest, lightest) + tint(hue, rng)
    x, y = pixel_grid(size)
    angle = rng.uniform(0, 2 * np.pi)
    across = x * float(np.cos(angle)) + y * float(np.sin(angle))
    image = color + across * (rng.normal(0, 0.12) + tint(0.04, rng)) * variety
    if rng.random() < 0.4 * variety:  # stains or grain
        cell = int(rng.integers(2, size // 4))
        coarse = rng.standard_normal((size // cell + 1, size // cell + 1), np.float32)
        grain = coarse.repeat(cell, axis=0).repeat(cell, axis=1)[:size, :size]
        image += rng.uniform(0.01, 0.1) * box_blur(box_blur(grain, cell // 2), cell // 2)
    if rng.random() < 0.1 * variety:  # stripes
        wave = np.sin(across * rng.uniform(15, 90) + rng.uniform(0, 6))
        image += rng.uniform(0.02, 0.15) * np.clip(wave * rng.uniform(1, 5), -1, 1)
    rectangles = rng.choice([1, 2, 3]) if rng.random() < 0.6 * variety else 0  # furniture, frames, a table's edge
    for _ in range(rectangles):
        left, top = rng.uniform(-0.5, 0.5, 2)
        width, height = rng.uniform(0.05, 0.5, 2)
        tilt = rng.normal(0, 0.2)
        mask = (abs(x + tilt * y - left) < width) & (abs(y - tilt * x - top) < height)
        alpha = box_blur(mask.astype(np.float32), int(rng.integers(0, size // 10))) * rng.uniform(0.4, 1)
        image += alpha * (color + tint(0.05 if is_plain else 0.15, rng) - image)
    return np.square(np.clip(image, 0, 1))


def apply_camera(image: np.ndarray, variety: float, rng: np.random.Generator) -> np.ndarray:
    """Applies exposure, vignetting, white balance, blur, contrast and noise of a random camera.

    Args:
      image: (3, size, size) in linear colors.
      variety: strength of the deviations, in [0, 1].
      rng: source of the camera's parameters and of its noise.

    Returns:
      (size, size, 3) uint8 sRGB.
    """
    size = image.shape[-1]
    x, y = pixel_grid(size)
    distance = np.minimum((x - rng.normal(0, 0.15)) ** 2 + (y - rng.normal(0, 0.15)) ** 2, 0.6)
    exposure = (1 + variety * rng.uniform(-0.3, 0.25)) * (1 - variety * rng.uniform(0, 1.3) * distance)
    warmth = variety * rng.normal(0, 0.06) * np.array([1, 0, -1], np.float32)[:, None, None]
    image = np.sqrt(np.maximum(image * exposure * (1 + warmth + tint(0.01, rng)), 0))
    # Negative factors blur the image, as out of focus; positive ones sharpen it, as phones do.
    image += rng.uniform(-0.8 * variety, 0.6) * (image - box_blur(image, max(size // 64, 1)))
    image = 0.5 + (image - 0.5) * (1 + variety * rng.uniform(-0.2, 0.2))
    image += rng.uniform(0.002, 0.002 + 0.018 * variety) * rng.standard_normal(image.shape, np.float32)
    return np.moveaxis(np.clip(image, 0, 1) * 255 + 0.5, 0, 2).astype(np.uint8)


def downsample(field: np.ndarray) -> np.ndarray:
    """Averages the supersampled pixels of a field (…, n, n)."""
    n = SUPERSAMPLING
    return np.sum([field[..., i::n, j::n] for i in range(n) for j in range(n)], axis=0) / n**2


def render_sign(sign: int, size: int, variety: float, rng: np.random.Generator) -> np.ndarray:
    """Returns an image, (size, size, 3) uint8, of a hand that shows a sign from 0 to 5."""
    gestures = GESTURES[sign]
    gesture = gestures[rng.choice(len(gestures), p=[gesture.probability for gesture in gestures])]
    person = rng.beta(1.2, 1.5) * (len(SKIN_TONES) - 1)
    skin = np.array([np.interp(person, np.arange(len(SKIN_TONES)), channel) for channel in SKIN_TONES.T])
    skin = np.clip(skin * rng.normal(1, 0.03, 3), 0, 1)
    nails = rng.uniform(0, 0.8, 3) if rng.random() < 0.1 else np.clip(1.02 * skin + 0.03, 0, 1)
    bones = pose_hand(gesture, skin, nails, rng) + pose_arm(skin, rng)
    yaw = rng.uniform(*gesture.yaw) + 180 * (rng.random() < 0.05)  # some hands show their back
    fine_size = size * SUPERSAMPLING
    mask, height, albedo = render_height_field(project(bones, yaw, fine_size, rng), fine_size)

    azimuth, elevation = np.radians((rng.uniform(-180, 0), rng.uniform(30, 75)))  # the lamp is above the hand
    horizontal = np.cos(elevation)
    light = np.array([np.cos(azimuth) * horizontal, np.sin(azimuth) * horizontal, np.sin(elevation)], np.float32)
    diffuse, specular = shade(height, light, rng)
    hand = downsample(albedo * diffuse + specular * mask)
    alpha = downsample(mask.astype(np.float32))
    distance = rng.uniform(0.02, 0.15) * size
    shadow = box_blur(shift(alpha, *(-distance * light[:2])), int(rng.integers(1, size // 8)))
    background = render_background(size, skin, variety, rng) * (1 - rng.uniform(0, 0.6) * shadow)
    return apply_camera(hand + background * (1 - alpha), variety, rng)


def render_signs(
    count: int, seed: int | tuple[int, ...], image_size: int = 64, variety: float = DEFAULT_VARIETY
) -> tuple[np.ndarray, np.ndarray]:
    """Renders images of the six signs in equal numbers and random order. Deterministic for a seed.

    Args:
      count: number of images.
      seed: seed of all random numbers.
      image_size: height and width in pixels.
      variety: variation of backgrounds and cameras, from 0 (bright, plain walls) to 1. Hands, poses, sizes and lamps
        vary in any case.

    Returns:
      Images, (count, image_size, image_size, 3) uint8, and labels, (count,) int32 in [0, 5].
    """
    order, *seeds = np.random.SeedSequence(seed).spawn(count + 1)
    labels = np.random.default_rng(order).permutation(np.arange(count) % len(GESTURES)).astype(np.int32)
    images = np.empty((count, image_size, image_size, 3), np.uint8)
    for image, sign, image_seed in zip(images, labels, seeds, strict=True):
        image[...] = render_sign(int(sign), image_size, variety, np.random.default_rng(image_seed))
    return images, labels


def hand_signs(
    seed: int = DEFAULT_SEED,
    train: int = 1080,
    test: int = 120,
    image_size: int = 64,
    variety: float = DEFAULT_VARIETY,
    draw: Callable[..., tuple[np.ndarray, np.ndarray]] = render_signs,
) -> Splits:
    """Returns rendered hand signs; by default as many and as large as the tutorials' SIGNS dataset.

    Args:
      seed: seed of all random numbers.
      train: number of training images.
      test: number of test images.
      image_size: height and width in pixels.
      variety: variation of backgrounds and cameras; see `render_signs`.
      draw: `render_signs`, or a function with the same parameters and results, such as a cache.

    Returns:
      Splits with the classes "0" to "5".
    """
    class_names = tuple(map(str, range(len(GESTURES))))
    train_split = Dataset(*draw(train, (seed, 0), image_size, variety), class_names)
    test_split = Dataset(*draw(test, (seed, 1), image_size, variety), class_names)
    return Splits(train_split, test_split, source=f"hand signs drawn by the program (seed {seed})")
