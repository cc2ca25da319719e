"""Confidence intervals of proportions."""

import math


def wilson_interval(correct: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Computes the Wilson score interval of a proportion (Wilson 1927, JASA 22:209–212).

    Args:
      correct: number of successes.
      count: number of trials.
      z: quantile of the normal distribution; the default gives a 95% interval.

    Returns:
      Lower and upper bound, in [0, 1]; (0, 1) if `count` is 0.
    """
    if count == 0:
        return 0.0, 1.0
    proportion = correct / count
    weight = z * z / count
    center = (proportion + weight / 2) / (1 + weight)
    half = z * math.sqrt(proportion * (1 - proportion) / count + weight / (4 * count)) / (1 + weight)
    # For proportions of 0 and 1, one bound is exactly 0 or 1. The formula would miss it by a rounding error.
    low = 0.0 if correct == 0 else center - half
    high = 1.0 if correct == count else center + half
    return low, high
