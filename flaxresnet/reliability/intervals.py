"""Confidence intervals of proportions."""

import math


def wilson_interval(correct: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The score interval of a proportion, 95% by default (Wilson 1927, JASA 22:209–212).

    Returns:
      Lower and upper bound, within [0, 1]; (0, 1) where `count` is 0.
    """
    if count == 0:
        return 0.0, 1.0
    share, weight = correct / count, z * z / count
    centre = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / count + weight / (4 * count)) / (1 + weight)
    # At the ends the bounds are the ends exactly, which rounding would miss.
    return 0.0 if correct == 0 else centre - half, 1.0 if correct == count else centre + half
