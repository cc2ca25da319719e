"""The change of what is around the thing in a test photo: where the thing is, and other walls behind it.

The code is independent of `augment/background.py`, but separates the wall by the same criterion, hue and Otsu's
threshold: an image where that criterion fails does not show it.
"""

import numpy as np

from flaxresnet.reliability.corruption_ops import Photo, Random, axes

PLAIN = 70.0  # levels: the spread of the border's middle half, above which a picture has no plain background
SIZES = (0.03, 0.8)  # shares of a photo, that a thing may take


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
    y, x = axes(image)
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
