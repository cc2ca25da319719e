"""Test images as other people would have taken them: a fixed, seeded set of changes, each in three strengths.

They measure a network and never train one. So they are written apart from `data/augment.py`, on other tools (NumPy
and Pillow, on uint8, picture by picture): an error of the one is not hidden by the same error of the other. The
idea of changes by kind and strength is that of Hendrycks & Dietterich 2019, arXiv:1903.12261.
"""

import io
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

STRENGTHS = ("mild", "middle", "strong")
MARGIN = 1.0  # of a side, by which the edge is repeated before a picture is moved
PLAIN = 70.0  # levels: the spread of the border's middle half, above which a picture has no plain background
SIZES = (0.03, 0.8)  # shares of a photo, that a thing may take

Photo = np.ndarray  # (height, width, 3), uint8
Random = np.random.Generator


class Shift(NamedTuple):
    """A kind of change.

    Attributes:
      amounts: of the three strengths, in the units of `change`.
      change: from a photo, an amount and random numbers (which way, where) to a photo of the same shape.
    """

    amounts: tuple[float, float, float]
    change: Callable[[Photo, float, Random], np.ndarray]


def shifted(images: np.ndarray, name: str, strength: str, seed: int = 0) -> np.ndarray:
    """Photos changed, each in its own way, the same ones for a seed.

    Args:
      images: (n, height, width, 3), uint8.
      name: one of `SHIFTS`.
      strength: one of `STRENGTHS`; the draws are the same for all three, so that they differ in the amount alone.
      seed: of the draws.

    Returns:
      Photos of the same shape, uint8.
    """
    shift = SHIFTS[name]
    amount = shift.amounts[STRENGTHS.index(strength)]
    own = (seed, zlib.crc32(name.encode()))
    changed = [shift.change(image, amount, np.random.default_rng((*own, i))) for i, image in enumerate(images)]
    return np.stack([_bytes(image) for image in changed]) if changed else images


def all_shifts(images: np.ndarray, strengths: tuple[str, ...] = STRENGTHS) -> Iterator[tuple[str, str, np.ndarray]]:
    """Name, strength and changed photos, kind by kind."""
    for name in SHIFTS:
        for strength in strengths:
            yield name, strength, shifted(images, name, strength)


def together(images: np.ndarray, count: int, strength: str, seed: int = 0) -> np.ndarray:
    """Photos that differ in several ways at once, as other people's do: so many kinds of change for each, by chance.

    Args:
      images: (n, height, width, 3), uint8.
      count: kinds of change for each photo, drawn from `SHIFTS`; what is around the thing comes first, the camera last.
      strength: one of `STRENGTHS`.
      seed: of the draws.

    Returns:
      Photos of the same shape, uint8.
    """
    kinds = sorted(SHIFTS, key=lambda name: SHIFTS[name].change not in (background, occlusion))
    changed = []
    for i, image in enumerate(images):
        random = np.random.default_rng((seed, count, i))
        for kind in np.sort(random.choice(len(kinds), count, replace=False)):
            shift = SHIFTS[kinds[kind]]
            image = _bytes(shift.change(image, shift.amounts[STRENGTHS.index(strength)], random))
        changed.append(image)
    return np.stack(changed) if changed else images


def hits(
    classify: Callable[[np.ndarray], np.ndarray],
    images: np.ndarray,
    labels: np.ndarray,
    strengths: tuple[str, ...] = STRENGTHS,
) -> list[dict[str, Any]]:
    """How many changed photos are classified rightly: rows of shift, strength, images and correct.

    Args:
      classify: from photos (n, height, width, 3) uint8 to classes (n,).
      images: (n, height, width, 3), uint8.
      labels: (n,).
      strengths: some of `STRENGTHS`.
    """
    return [
        {"shift": name, "strength": strength, "images": len(labels), "correct": int((classify(new) == labels).sum())}
        for name, strength, new in all_shifts(images, strengths)
    ]


def _bytes(image: np.ndarray) -> np.ndarray:
    return image if image.dtype == np.uint8 else np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _either(random: Random, factor: float) -> float:
    """The factor or its inverse."""
    return factor if random.random() < 0.5 else 1 / factor


def _sign(random: Random) -> int:
    return 1 if random.random() < 0.5 else -1


def _axes(image: Photo) -> tuple[np.ndarray, np.ndarray]:
    """Places y (height, 1, 1) and x (1, width, 1) of the pixels from the centre, in sides, -0.5 to 0.5."""
    height, width = image.shape[:2]
    y, x = ((np.arange(side) + 0.5) / side - 0.5 for side in (height, width))
    return y[:, None, None], x[None, :, None]


# Where things are. A map is (3, 3): from places in the new photo to places in the old one, (x, y, 1) in sides from the
# centre, up to a factor.


def _seen_through(image: Photo, matrix: np.ndarray) -> Photo:
    from PIL import Image

    height, width = image.shape[:2]
    top, left = round(MARGIN * height), round(MARGIN * width)
    wide = Image.fromarray(np.pad(image, ((top, top), (left, left), (0, 0)), mode="edge"))
    to_sides = np.array([[1 / width, 0, -0.5], [0, 1 / height, -0.5], [0, 0, 1]])
    to_wide = np.array([[width, 0, width / 2 + left], [0, height, height / 2 + top], [0, 0, 1]])
    whole = to_wide @ matrix @ to_sides
    numbers = (whole / whole[2, 2]).ravel()[:8]
    moved = wide.transform((width, height), Image.Transform.PERSPECTIVE, numbers, Image.Resampling.BICUBIC)
    return np.asarray(moved)


def rotation(image: Photo, degrees: float, random: Random) -> Photo:
    angle = np.radians(degrees * _sign(random))
    aspect = image.shape[0] / image.shape[1]  # sides are of different lengths: a turn is one in pixels
    cos, sin = np.cos(angle), np.sin(angle)
    return _seen_through(image, np.array([[cos, -sin * aspect, 0], [sin / aspect, cos, 0], [0, 0, 1]]))


def scale(image: Photo, factor: float, random: Random) -> Photo:
    """Nearer or farther."""
    size = _either(random, factor)
    return _seen_through(image, np.diag([1 / size, 1 / size, 1]))


def shift(image: Photo, share: float, random: Random) -> Photo:
    """Moved by this share of the side in any direction."""
    angle = random.uniform(0, 2 * np.pi)
    return _seen_through(image, np.array([[1, 0, share * np.cos(angle)], [0, 1, share * np.sin(angle)], [0, 0, 1]]))


def shear(image: Photo, share: float, random: Random) -> Photo:
    """Rows, or columns, slide over each other."""
    matrix = np.eye(3)
    matrix[(0, 1) if random.random() < 0.5 else (1, 0)] = share * _sign(random)
    return _seen_through(image, matrix)


def perspective(image: Photo, tilt: float, random: Random) -> Photo:
    """The camera is tilted: one side of the photo is (1 + tilt / 2) / (1 - tilt / 2) times as near as the other."""
    angle = random.uniform(0, 2 * np.pi)
    matrix = np.eye(3)
    matrix[2, :2] = tilt * np.cos(angle), tilt * np.sin(angle)
    return _seen_through(image, matrix)


def mirror(image: Photo, amount: float, random: Random) -> Photo:
    return image[:, ::-1]


# Light.


def brightness(image: Photo, factor: float, random: Random) -> np.ndarray:
    return image * _either(random, factor)


def contrast(image: Photo, factor: float, random: Random) -> np.ndarray:
    mean = image.mean()
    return mean + (image - mean) * _either(random, factor)


def gamma(image: Photo, exponent: float, random: Random) -> np.ndarray:
    return 255 * (image / 255) ** _either(random, exponent)


def colour_temperature(image: Photo, share: float, random: Random) -> np.ndarray:
    """Red up and blue down, or the other way round."""
    gain = _either(random, 1 + share)
    return image * np.array([gain, 1, 1 / gain])


def grey(image: Photo, share: float, random: Random) -> np.ndarray:
    """Colour taken away (luma of ITU-R 601 is left)."""
    luma = image @ np.array([0.299, 0.587, 0.114])
    return (1 - share) * image + share * luma[..., None]


def light_gradient(image: Photo, share: float, random: Random) -> np.ndarray:
    """The light falls by this share from one side to the opposite one."""
    y, x = _axes(image)
    angle = random.uniform(0, 2 * np.pi)
    along = np.cos(angle) * x + np.sin(angle) * y
    along = (along - along.min()) / (along.max() - along.min())
    return image * (1 - share * along)


def shadow(image: Photo, share: float, random: Random) -> np.ndarray:
    """A straight shadow with a soft edge over about half of the photo takes this share of the light."""
    y, x = _axes(image)
    angle, place = random.uniform(0, 2 * np.pi), random.uniform(-0.2, 0.2)
    along = np.cos(angle) * x + np.sin(angle) * y - place
    return image * (1 - share * np.clip(along / 0.06 + 0.5, 0, 1))


# The camera.


def blur(image: Photo, sigma: float, random: Random) -> np.ndarray:
    """Gaussian, with this deviation in 64ths of the side."""
    from PIL import Image, ImageFilter

    radius = sigma * max(image.shape[:2]) / 64
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def noise(image: Photo, deviation: float, random: Random) -> np.ndarray:
    """Gaussian, with this deviation in levels of 256."""
    return image + deviation * random.standard_normal(image.shape)


def jpeg(image: Photo, quality: float, random: Random) -> np.ndarray:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=int(quality))
    return np.asarray(Image.open(file))


def low_resolution(image: Photo, factor: float, random: Random) -> np.ndarray:
    """Made smaller by this factor and enlarged again."""
    from PIL import Image

    photo = Image.fromarray(image)
    small = photo.resize([max(1, round(side / factor)) for side in photo.size], Image.Resampling.BOX)
    return np.asarray(small.resize(photo.size, Image.Resampling.BICUBIC))


# What else is in the picture.


def occlusion(image: Photo, share: float, random: Random) -> np.ndarray:
    """Something of one colour lies over this share of the photo, a box of random proportions."""
    height, width = image.shape[:2]
    stretch = np.exp(random.uniform(-0.7, 0.7))
    tall, wide = min(1, np.sqrt(share * stretch)) * height, min(1, np.sqrt(share / stretch)) * width
    top, left = random.uniform(0, height - tall), random.uniform(0, width - wide)
    covered = image.copy()
    covered[round(top) : round(top + tall), round(left) : round(left + wide)] = random.integers(0, 256, 3)
    return covered


def background(image: Photo, clutter: float, random: Random) -> np.ndarray:
    """What is around the thing becomes another wall (0), one of two colours (1), or one with clutter (2).

    A photo whose border is not plain stays as it is: what belongs to the thing is not known there.
    """
    cover = foreground(image)
    if cover is None:
        return image
    return cover * image + (1 - cover) * _wall(image, int(clutter), random)


def foreground(image: Photo) -> np.ndarray | None:
    """Where the thing is, (height, width, 1), from 0 to 1; None where there is no plain background.

    The background's colour is the median of the upper half of the border, where no arm comes in; what differs from it
    by more than Otsu's threshold is not background.
    """
    from PIL import Image, ImageFilter

    height, width = image.shape[:2]
    pixels = image.astype(np.float64)
    border = np.concatenate([pixels[:2].reshape(-1, 3), *(pixels[: height // 2, side] for side in (0, width - 1))])
    usual = np.median(border, axis=0)
    low, high = np.percentile(border, (25, 75), axis=0)
    if (high - low).max() > PLAIN:
        return None
    # A lamp's light on a wall is brighter than the corners and of their hue: being brighter does not count.
    tints = pixels / (pixels.mean(axis=2, keepdims=True) + 8) - usual / (usual.mean() + 8)
    darker = np.maximum(0, 0.8 - pixels.mean(axis=2) / (usual.mean() + 8))
    distance = np.sqrt((tints**2).sum(axis=2) + darker**2)
    inside = Image.fromarray(255 * (distance > _otsu(distance)).astype(np.uint8))
    # Specks of one or two pixels go, and the edge becomes soft.
    cover = inside.filter(ImageFilter.MedianFilter(3)).filter(ImageFilter.GaussianBlur(0.6))
    share = np.asarray(cover)[..., None] / 255
    return share if SIZES[0] < share.mean() < SIZES[1] else None


def _otsu(values: np.ndarray) -> float:
    """The threshold that divides values best into two groups (Otsu 1979): the most variance between them."""
    ordered = np.sort(values.ravel())
    counts = np.arange(1, len(ordered))
    sums = np.cumsum(ordered)
    apart = sums[:-1] / counts - (sums[-1] - sums[:-1]) / (len(ordered) - counts)
    return float(ordered[np.argmax(counts * (len(ordered) - counts) * apart**2)])


def _wall(image: Photo, clutter: int, random: Random) -> np.ndarray:
    y, x = _axes(image)
    first, second = random.integers(0, 256, (2, 3)).astype(np.float64)
    angle = random.uniform(0, 2 * np.pi)
    along = np.cos(angle) * x + np.sin(angle) * y
    if clutter == 0:
        return first + 40 * along
    wall = np.where(along > random.uniform(-0.3, 0.3), first, second) + 40 * along
    for _ in range(8 * (clutter - 1)):
        (left, top), (wide, tall) = random.uniform(-0.5, 0.5, 2), random.uniform(0.03, 0.25, 2)
        stripes = random.uniform(0, 50) * np.sin(random.uniform(10, 60) * (x + random.normal() * y))
        wall = np.where((abs(x - left) < wide) & (abs(y - top) < tall), random.integers(0, 256, 3) + stripes, wall)
    return wall


SHIFTS: dict[str, Shift] = {
    "rotation": Shift((10, 25, 40), rotation),
    "scale": Shift((1.15, 1.35, 1.6), scale),
    "shift": Shift((0.08, 0.15, 0.22), shift),
    "shear": Shift((0.1, 0.25, 0.4), shear),
    "perspective": Shift((0.2, 0.45, 0.7), perspective),
    "mirror": Shift((1, 1, 1), mirror),
    "brightness": Shift((1.25, 1.6, 2.2), brightness),
    "contrast": Shift((1.25, 1.6, 2.2), contrast),
    "gamma": Shift((1.25, 1.6, 2.2), gamma),
    "colour temperature": Shift((0.1, 0.25, 0.45), colour_temperature),
    "grey": Shift((0.4, 0.7, 1), grey),
    "light gradient": Shift((0.3, 0.55, 0.8), light_gradient),
    "shadow": Shift((0.25, 0.45, 0.65), shadow),
    "blur": Shift((0.6, 1.2, 2), blur),
    "noise": Shift((8, 18, 35), noise),
    "jpeg": Shift((50, 25, 10), jpeg),
    "low resolution": Shift((1.5, 2.2, 3.2), low_resolution),
    "occlusion": Shift((0.03, 0.07, 0.13), occlusion),
    "background": Shift((0, 1, 2), background),
}
