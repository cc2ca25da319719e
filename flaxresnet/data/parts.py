"""Parts of a photo, in one of which a thing fills the picture that is small in the whole."""

import math
from collections.abc import Iterator

from flaxresnet.data.preprocess import Box

SIDES = (1.0, 0.75, 0.5, 0.35)  # of the largest part in the network's proportion


def parts(height: int, width: int, aspect: float = 1.0) -> Iterator[Box]:
    """Parts of a photo of (height, width) pixels, the largest first, each half a part or less from the next.

    Args:
      height, width: of the photo.
      aspect: of the parts, width by height.

    Yields:
      Boxes within the photo, of all `SIDES`, but not the whole photo.
    """
    largest = min(height, width / aspect)
    for side in SIDES:
        tall, wide = side * largest, side * largest * aspect
        for upper in _starts(height, tall):
            for left in _starts(width, wide):
                if (tall, wide) != (height, width):
                    yield left, upper, left + wide, upper + tall


def _starts(whole: float, part: float) -> list[float]:
    """Where parts begin along one side, from one end to the other."""
    steps = math.ceil((whole - part) / (part / 2) - 1e-6)
    return [(whole - part) * step / max(steps, 1) for step in range(steps + 1)]
