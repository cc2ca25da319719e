"""The shuffled order of each epoch, and the images of each training step."""

from functools import lru_cache

import numpy as np

# Separates this stream of NumPy's random numbers from others with the same seed.
ORDER_STREAM = 0x0DE5


@lru_cache(maxsize=2)
def epoch_permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """Returns the indices 0 to `count` - 1, (count,), in the order of an epoch. Epochs count from 1."""
    return np.random.default_rng((ORDER_STREAM, seed, epoch)).permutation(count)


def step_indices(seed: int, step: int, count: int, batch_size: int) -> np.ndarray:
    """Returns the indices, (batch_size,), of a training step's images. Steps count from 0 across epochs."""
    epoch, step_in_epoch = divmod(step, count // batch_size)
    start = step_in_epoch * batch_size
    return epoch_permutation(seed, epoch + 1, count)[start : start + batch_size]
