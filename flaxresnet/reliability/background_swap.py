"""Background replacement as a corruption: segments the object in a test photo and replaces the background.

The code is independent of `augment/background.py`, but both separate the background by hue and Otsu's threshold. A
photo for which this criterion fails therefore fails in both.
"""

import numpy as np

from flaxresnet.reliability.corruption_ops import Photo, Random, axes

MAX_BORDER_SPREAD = 70.0  # of 256 levels: interquartile range of the border, above which the background is not plain
OBJECT_AREAS = (0.03, 0.8)  # allowed range of the object's area, as a fraction of the photo


def background(image: Photo, clutter: float, random: Random) -> np.ndarray:
    """Replaces a plain background; a photo with another background stays unchanged.

    Args:
      image: (height, width, 3), uint8.
      clutter: 0 for a background of one color, 1 for two colors, 2 for two colors with eight random rectangles on top.
        A linear brightness gradient covers the colors, but not the rectangles.
      random: draws the background.

    Returns:
      (height, width, 3), float; `image` itself, uint8, if `foreground` returns None.
    """
    mask = foreground(image)
    if mask is None:
        return image
    return mask * image + (1 - mask) * _random_background(image, int(clutter), random)


def foreground(image: Photo) -> np.ndarray | None:
    """Segments the object in front of a plain background.

    The background's color is the median of the border's upper half, because an arm usually enters from below. A pixel
    belongs to the object if its distance from this color exceeds Otsu's threshold.

    Returns:
      A soft mask (height, width, 1) in [0, 1], 1 on the object; None if the background is not plain or the object's
      area is not in `OBJECT_AREAS`.
    """
    from PIL import Image, ImageFilter

    height, width = image.shape[:2]
    pixels = image.astype(np.float64)
    border = np.concatenate([pixels[:2].reshape(-1, 3), pixels[: height // 2, 0], pixels[: height // 2, width - 1]])
    median = np.median(border, axis=0)
    low, high = np.percentile(border, (25, 75), axis=0)
    if (high - low).max() > MAX_BORDER_SPREAD:
        return None
    # Lamplight brightens a part of the background but keeps its hue, so brightness above the median does not count.
    hue_difference = pixels / (pixels.mean(axis=2, keepdims=True) + 8) - median / (median.mean() + 8)
    darkness = np.maximum(0, 0.8 - pixels.mean(axis=2) / (median.mean() + 8))
    distance = np.sqrt((hue_difference**2).sum(axis=2) + darkness**2)
    binary = Image.fromarray(255 * (distance > _otsu_threshold(distance)).astype(np.uint8))
    # The median filter removes specks of one or two pixels, and the Gaussian softens the edge.
    filtered = binary.filter(ImageFilter.MedianFilter(3)).filter(ImageFilter.GaussianBlur(0.6))
    mask = np.asarray(filtered)[..., None] / 255
    return mask if OBJECT_AREAS[0] < mask.mean() < OBJECT_AREAS[1] else None


def _otsu_threshold(values: np.ndarray) -> float:
    """Returns the threshold with the largest between-class variance (Otsu 1979)."""
    ordered = np.sort(values.ravel())
    counts = np.arange(1, len(ordered))
    sums = np.cumsum(ordered)
    difference = sums[:-1] / counts - (sums[-1] - sums[:-1]) / (len(ordered) - counts)
    return float(ordered[np.argmax(counts * (len(ordered) - counts) * difference**2)])


def _random_background(image: Photo, clutter: int, random: Random) -> np.ndarray:
    """Returns a background of the photo's size, float; `clutter` is as in `background`."""
    y, x = axes(image)
    first, second = random.integers(0, 256, (2, 3)).astype(np.float64)
    angle = random.uniform(0, 2 * np.pi)
    gradient = np.cos(angle) * x + np.sin(angle) * y
    if clutter == 0:
        return first + 40 * gradient
    result = np.where(gradient > random.uniform(-0.3, 0.3), first, second) + 40 * gradient
    for _ in range(8 * (clutter - 1)):
        left, top = random.uniform(-0.5, 0.5, 2)
        half_width, half_height = random.uniform(0.03, 0.25, 2)
        stripes = random.uniform(0, 50) * np.sin(random.uniform(10, 60) * (x + random.normal() * y))
        rectangle = (abs(x - left) < half_width) & (abs(y - top) < half_height)
        result = np.where(rectangle, random.integers(0, 256, 3) + stripes, result)
    return result
