"""Drawn hand signs: the embedded default data set, pictures of hands showing the numbers 0 to 5.

Every picture is a small ray-traced scene. A hand (`hand_model.py`) is a set of rounded cones; an orthographic camera
sees them as a *height field*: for each pixel, how far the nearest skin reaches towards the camera. Outline, overlap,
shading and shadows all follow from that field, so a folded finger or a hand seen from its side needs no drawing rules
of its own. Everything that does not carry the sign (pose, person, light, wall, camera) is drawn at random.

Light is added up in linear colours, for which a gamma of 2 is close enough. Until they are done, pictures hold their
channels first, (3, n, n), because NumPy then works on long rows.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from flaxresnet.data.dataset import Dataset, Splits
from flaxresnet.data.hand_signs.hand_model import GESTURES, SKIN_TONES, Bone, pose_arm, pose_hand

SUPERSAMPLING = 2  # the hand is drawn at twice the picture's resolution, then averaged for smooth outlines
DEFAULT_VARIETY = 0.1  # learnt from a thousand pictures in 20 epochs; at 1 that takes several times as many
DEFAULT_SEED = 0  # of the data set that is used where no data are given; a run's own seed does not change its data


class Scene(NamedTuple):
    """All n bones before the camera, in pixels of the picture, y downwards, z to the camera."""

    start: np.ndarray  # float32 (n, 3)
    end: np.ndarray  # float32 (n, 3)
    radii: np.ndarray  # float32 (n, 2)
    colour: np.ndarray  # float32 (n, 3)
    crease: np.ndarray  # float32 (n,)
    tube: np.ndarray  # bool (n,)


def rotation(*turns: tuple[float, int, int]) -> np.ndarray:
    """Matrix (3, 3) of turns one after the other, each by an angle in degrees from one axis to another."""
    matrix = np.eye(3)
    for angle, i, j in turns:
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(np.radians(angle))
        turn[j, i] = np.sin(np.radians(angle))
        turn[i, j] = -turn[j, i]
        matrix = turn @ matrix
    return matrix


def place(bones: list[Bone], yaw: float, size: int, rng: np.random.Generator) -> Scene:
    """The bones as the camera sees them in a picture of size x size pixels."""
    start, end, radii, colour, crease, tube, limb = (np.array(field) for field in zip(*bones, strict=True))
    roll = np.clip(rng.normal(0, 12), -25, 25)
    stretch = (rng.choice([-1, 1]) * rng.uniform(0.9, 1.1), -1.0, 1.0)  # left and right hands alike
    view = np.diag(stretch) @ rotation((yaw, 2, 0), (rng.normal(0, 10), 1, 2), (roll, 0, 1))
    start, end = start @ view.T, end @ view.T
    reach = radii.max(axis=1, keepdims=True)
    low = (np.minimum(start, end) - reach)[~limb].min(axis=0)
    high = (np.maximum(start, end) + reach)[~limb].max(axis=0)
    # Fingertips always stay inside, for a cut-off finger would change the sign.
    scale = min(size * rng.uniform(0.72, 0.98), 0.96 * size / (high - low)[:2].max())
    slack = size - scale * (high - low)
    offset = slack * np.clip(rng.normal((0.5, 0.4, 0.5), 0.2), 0.03, 0.97) - scale * low
    numbers = (start * scale + offset, end * scale + offset, radii * scale, colour, crease)
    return Scene._make([*(field.astype(np.float32) for field in numbers), tube])


def candidates(scene: Scene, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pixels in the bones' bounding boxes, bone after bone: how many for each bone, int (n,), x and y.

    x and y are int (m,) where m is the sum of the counts, about 22000 in a picture of 128 x 128 pixels.
    """
    reach = scene.radii.max(axis=1, keepdims=True)
    low = np.clip(np.minimum(scene.start, scene.end) - reach, 0, size)[:, :2].astype(int)
    high = np.clip(np.maximum(scene.start, scene.end) + reach + 1, 0, size)[:, :2].astype(int)
    wide, tall = (high - low).T
    counts = wide * tall
    rank = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    row, column = np.divmod(rank, np.repeat(wide, counts))
    return counts, column + np.repeat(low[:, 0], counts), row + np.repeat(low[:, 1], counts)


def cast(scene: Scene, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Every pixel of every bone, (m,) each: number of the bone, place t along it, pixel y * size + x, height.

    A cone is the union of balls of radius r(t) round c(t), 0 <= t <= 1. Seen along z, the ball at t reaches
    z(t) + sqrt(q(t)) with q = r^2 - |p - c|^2 = a t^2 + b t + c; the height is its maximum over t, which is
    concave in t, so the root of its derivative is clamped to the bone. All bones are computed at once, for
    there are many and they are small.
    """
    counts, x, y = candidates(scene, size)

    def each(values: np.ndarray) -> np.ndarray:
        """One value per bone (n,), repeated for each of its pixels (m,)."""
        return np.repeat(values, counts)

    dx, dy, dz = (scene.end - scene.start).T
    radius, growth = scene.radii[:, 0], scene.radii[:, 1] - scene.radii[:, 0]
    a = np.minimum(growth**2 - dx**2 - dy**2, -1e-2)
    px = (x + 0.5).astype(np.float32) - each(scene.start[:, 0])
    py = (y + 0.5).astype(np.float32) - each(scene.start[:, 1])
    widest = px * each(-dx / a) + py * each(-dy / a) - each(radius * growth / a)  # -b / 2a
    c = each(radius**2) - px * px - py * py
    free = widest + np.sqrt(np.maximum(widest * widest - c * each(1 / a), 0)) * each(dz / np.sqrt(dz**2 - a))
    t = np.minimum(np.maximum(free, 0), 1)
    q = (t - 2 * widest) * t * each(a) + c
    hit = np.flatnonzero((q > 0) & ((t == free) | ~each(scene.tube)))
    bone, t = each(np.arange(len(counts)))[hit], t[hit]
    return bone, t, (y * size + x)[hit], np.sqrt(q[hit]) + t * dz[bone] + scene.start[bone, 2]


def trace(scene: Scene, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the hand is, bool (size, size); its height in pixels, likewise; linear albedo (3, size, size)."""
    bone, t, pixel, height = cast(scene, size)
    top = np.full(size * size, -np.inf, np.float32)
    np.maximum.at(top, pixel, height)
    depth = top[pixel] - height
    # Where skin meets skin it fills the corner: a soft maximum of the heights.
    soft = 0.012 * size
    fill = soft * np.log(np.maximum(np.bincount(pixel, np.exp(-depth / soft), size * size), 1))
    solid = np.isfinite(top)
    height = np.where(solid, top, top[solid].min()) + fill.astype(np.float32)

    nearest = np.flatnonzero(depth == 0)
    bone, crease = bone[nearest], np.maximum(1 - 8 * t[nearest], 0)
    albedo = np.zeros((3, size * size), np.float32)
    albedo[:, pixel[nearest]] = np.square(scene.colour.T)[:, bone] * (1 - scene.crease[bone] * crease)
    return solid.reshape(size, size), height.reshape(size, size), albedo.reshape(3, size, size)


def blur(field: np.ndarray, radius: int) -> np.ndarray:
    """Mean over squares of 2 * radius + 1 pixels, cut at the edges, of a field float32 (..., n, n)."""
    side = np.arange(field.shape[-1])
    high, low = np.minimum(side + radius, side[-1]), np.maximum(side - radius, 0)
    share = (1 / (high - low + 1)).astype(np.float32)
    for axis, weight in ((-1, share), (-2, share[:, None])):
        total = np.cumsum(field, axis=axis)
        field = (total.take(high, axis=axis) - (total - field).take(low, axis=axis)) * weight
    return field


def shifted(field: np.ndarray, dx: float, dy: float) -> np.ndarray:
    """The field (n, n) moved by whole pixels, its edges repeated."""
    rows, columns = (np.clip(np.arange(len(field)) - round(by), 0, len(field) - 1) for by in (dy, dx))
    return field[rows][:, columns]


def shade(height: np.ndarray, light: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Brightness of matte skin and of its gloss, both (n, n); light is a unit vector (3,) to the lamp."""
    size = len(height)
    step = blur(height, size // 20) - height
    # Skin is softer than cones: small steps of the height field are smoothed away, large ones stay sharp.
    slope_y, slope_x = np.gradient(height + np.minimum(np.maximum(step, -0.02 * size), 0.02 * size))
    facing = 1 / np.sqrt(1 + slope_x * slope_x + slope_y * slope_y)
    lambert = np.maximum((light[2] - slope_x * light[0] - slope_y * light[1]) * facing, 0)
    # A place in a fold lies lower than its neighbourhood and is reached by less of the light around.
    ambient = np.minimum(np.maximum(1 - step / (0.06 * size), 0.25), 1)
    # Towards the lamp, does something stand higher than the ray?
    shadow = np.ones_like(height)
    toward, climb = light[:2] / np.hypot(*light[:2]), light[2] / np.hypot(*light[:2])
    for far in (0.025 * size, 0.06 * size):
        above = shifted(height, *(-far * toward)) - height - far * climb
        shadow = np.minimum(shadow, np.maximum(1 - above / (0.02 * size), 0.3))
    fill = rng.uniform(0.35, 0.65)
    rim = 1 - rng.uniform(0.3, 0.7) * np.square(1 - facing)  # outlines are dark, as in sharpened phone photos
    matte = (fill + 1.3 * (1 - fill) * lambert * shadow) * ambient * rim
    return matte, rng.uniform(0, 0.12) * np.square(np.square(np.square(lambert))) * shadow


def tint(deviation: float, rng: np.random.Generator) -> np.ndarray:
    """A random change of colour, float32 (3, 1, 1)."""
    return deviation * rng.standard_normal((3, 1, 1), np.float32)


def axes(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Places x (1, size) and y (size, 1) of the pixels, float32 in -0.5..0.5, y downwards."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    return axis[None, :], axis[:, None]


def render_background(size: int, skin: np.ndarray, variety: float, rng: np.random.Generator) -> np.ndarray:
    """The background in linear colours, float32 (3, size, size): a wall, its pattern, and some clutter."""
    plain = rng.random() < 1 - 0.25 * variety  # most people choose a light wall
    darkest, lightest, hue = (0.95 - 0.4 * variety, 0.95, 0.02) if plain else (0.1, 0.9, 0.14)
    colour = rng.uniform(darkest, lightest) + tint(hue, rng)
    while np.abs(colour[:, 0, 0] - skin).max() < 0.15:  # a hand must stand out from the wall behind it
        colour = rng.uniform(darkest, lightest) + tint(hue, rng)
    x, y = axes(size)
    angle = rng.uniform(0, 2 * np.pi)
    across = x * float(np.cos(angle)) + y * float(np.sin(angle))
    picture = colour + across * (rng.normal(0, 0.12) + tint(0.04, rng)) * variety
    if rng.random() < 0.4 * variety:  # stains, or the grain of the paint
        cell = int(rng.integers(2, size // 4))
        coarse = rng.standard_normal((size // cell + 1, size // cell + 1), np.float32)
        grain = coarse.repeat(cell, axis=0).repeat(cell, axis=1)[:size, :size]
        picture += rng.uniform(0.01, 0.1) * blur(blur(grain, cell // 2), cell // 2)
    if rng.random() < 0.1 * variety:  # stripes
        wave = np.sin(across * rng.uniform(15, 90) + rng.uniform(0, 6))
        picture += rng.uniform(0.02, 0.15) * np.clip(wave * rng.uniform(1, 5), -1, 1)
    for _ in range(rng.choice([1, 2, 3]) if rng.random() < 0.6 * variety else 0):  # furniture, frames, a table's edge
        (left, top), (width, height) = rng.uniform(-0.5, 0.5, 2), rng.uniform(0.05, 0.5, 2)
        tilt = rng.normal(0, 0.2)
        inside = (abs(x + tilt * y - left) < width) & (abs(y - tilt * x - top) < height)
        veil = blur(inside.astype(np.float32), int(rng.integers(0, size // 10))) * rng.uniform(0.4, 1)
        picture += veil * (colour + tint(0.05 if plain else 0.15, rng) - picture)
    return np.square(np.clip(picture, 0, 1))


def apply_camera(picture: np.ndarray, variety: float, rng: np.random.Generator) -> np.ndarray:
    """What a camera makes of linear colours (3, size, size): uint8 sRGB (size, size, 3) with its faults."""
    size = picture.shape[-1]
    x, y = axes(size)
    corner = np.minimum((x - rng.normal(0, 0.15)) ** 2 + (y - rng.normal(0, 0.15)) ** 2, 0.6)
    exposure = (1 + variety * rng.uniform(-0.3, 0.25)) * (1 - variety * rng.uniform(0, 1.3) * corner)
    warmth = variety * rng.normal(0, 0.06) * np.array([1, 0, -1], np.float32)[:, None, None]
    picture = np.sqrt(np.maximum(picture * exposure * (1 + warmth + tint(0.01, rng)), 0))
    # Out of focus, or sharpened by the phone.
    picture += rng.uniform(-0.8 * variety, 0.6) * (picture - blur(picture, max(size // 64, 1)))
    picture = 0.5 + (picture - 0.5) * (1 + variety * rng.uniform(-0.2, 0.2))
    picture += rng.uniform(0.002, 0.002 + 0.018 * variety) * rng.standard_normal(picture.shape, np.float32)
    return np.moveaxis(np.clip(picture, 0, 1) * 255 + 0.5, 0, 2).astype(np.uint8)


def shrink(field: np.ndarray) -> np.ndarray:
    """Average the supersampled pixels of a field (..., n, n)."""
    n = SUPERSAMPLING
    return np.sum([field[..., i::n, j::n] for i in range(n) for j in range(n)], axis=0) / n**2


def render_sign(sign: int, size: int, variety: float, rng: np.random.Generator) -> np.ndarray:
    """One picture, uint8 (size, size, 3), of a hand showing the sign 0..5."""
    ways = GESTURES[sign]
    gesture = ways[rng.choice(len(ways), p=[way.share for way in ways])]
    person = rng.beta(1.2, 1.5) * (len(SKIN_TONES) - 1)
    skin = np.array([np.interp(person, np.arange(len(SKIN_TONES)), channel) for channel in SKIN_TONES.T])
    skin = np.clip(skin * rng.normal(1, 0.03, 3), 0, 1)
    nails = rng.uniform(0, 0.8, 3) if rng.random() < 0.1 else np.clip(1.02 * skin + 0.03, 0, 1)
    bones = pose_hand(gesture, skin, nails, rng) + pose_arm(skin, rng)
    yaw = rng.uniform(*gesture.yaw) + 180 * (rng.random() < 0.05)  # a few show the back of their hand
    fine = size * SUPERSAMPLING
    solid, height, albedo = trace(place(bones, yaw, fine, rng), fine)

    azimuth, elevation = np.radians((rng.uniform(-180, 0), rng.uniform(30, 75)))  # lamps hang above
    flat = np.cos(elevation)
    light = np.array([np.cos(azimuth) * flat, np.sin(azimuth) * flat, np.sin(elevation)], np.float32)
    matte, gloss = shade(height, light, rng)
    hand, cover = shrink(albedo * matte + gloss * solid), shrink(solid.astype(np.float32))
    distance = rng.uniform(0.02, 0.15) * size
    dark = blur(shifted(cover, *(-distance * light[:2])), int(rng.integers(1, size // 8)))
    ground = render_background(size, skin, variety, rng) * (1 - rng.uniform(0, 0.6) * dark)
    return apply_camera(hand + ground * (1 - cover), variety, rng)


def render_signs(
    count: int, seed: int | tuple[int, ...], image_size: int = 64, variety: float = DEFAULT_VARIETY
) -> tuple[np.ndarray, np.ndarray]:
    """Draws pictures of the six signs in equal shares and random order; the seed decides everything.

    Args:
      count: how many.
      seed: of all random numbers.
      image_size: height and width in pixels.
      variety: how much walls and cameras differ between pictures, from 0 (a bright, plain wall) to 1. Hands, poses,
        sizes and lamps differ all the same.

    Returns:
      Images (count, image_size, image_size, 3) uint8, and labels (count,) int32 in 0–5.
    """
    order, *seeds = np.random.SeedSequence(seed).spawn(count + 1)
    labels = np.random.default_rng(order).permutation(np.arange(count) % len(GESTURES)).astype(np.int32)
    images = np.empty((count, image_size, image_size, 3), np.uint8)
    for image, sign, own in zip(images, labels, seeds, strict=True):
        image[...] = render_sign(int(sign), image_size, variety, np.random.default_rng(own))
    return images, labels


def hand_signs(
    seed: int = DEFAULT_SEED,
    train: int = 1080,
    test: int = 120,
    image_size: int = 64,
    variety: float = DEFAULT_VARIETY,
    draw: Callable[..., tuple[np.ndarray, np.ndarray]] = render_signs,
) -> Splits:
    """The drawn data set: as many pictures, as large, as the tutorials' SIGNS data have, with classes "0" to "5".

    `draw` may be a function of the same arguments and results as `render_signs`.
    """
    names = tuple(str(sign) for sign in range(len(GESTURES)))
    first, second = (
        Dataset(*draw(count, (seed, stream), image_size, variety), names) for stream, count in enumerate((train, test))
    )
    return Splits(first, second, source=f"hand signs drawn by the program (seed {seed})")
