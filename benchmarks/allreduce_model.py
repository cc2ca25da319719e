"""Formulas for the cost of all-reducing gradients and batch-norm statistics; `scaling.py` uses them."""

import math

BYTES = 4  # of a parameter, its gradient and its momentum: float32 with either --precision
NORM_EXCHANGES = 2  # of a batch norm in a step: one forward, one of gradients backward


def ring_bytes(nbytes: float, gpus: int) -> float:
    """Returns the bytes that each GPU sends in a ring all-reduce of `nbytes` (Patarasuk & Yuan 2009)."""
    return 2 * (gpus - 1) / gpus * nbytes


def small_exchange(gpus: int, hop: float) -> float:
    """Returns the time of an all-reduce of a few numbers, up a binary tree and down again, in the unit of `hop`."""
    return 2 * math.ceil(math.log2(gpus)) * hop
