"""The cost of exchanging gradients and statistics, by formulas."""

import math

BYTES = 4  # of a parameter, of its gradient and of its momentum: float32 with either --precision
NORM_EXCHANGES = 2  # of a batch norm in a step: sums forward, and of gradients backward


def ring_bytes(nbytes: float, gpus: int) -> float:
    """What each GPU sends in a ring all-reduce: its share around twice (Patarasuk & Yuan 2009)."""
    return 2 * (gpus - 1) / gpus * nbytes


def small_exchange(gpus: int, hop: float) -> float:
    """Time of an all-reduce of a few numbers, up a binary tree and down again; in the unit of `hop`."""
    return 2 * math.ceil(math.log2(gpus)) * hop
