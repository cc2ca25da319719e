"""The shuffled order of each epoch, and the images of each training step."""

from functools import lru_cache

import numpy as np

# Apart from the keys of weights and augmentation, which come from jax.random.
ORDER_STREAM = 0x0DE5


@lru_cache(maxsize=2)
def epoch_permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """All places of a data set, in the order in which an epoch (from 1) takes them."""
    return np.random.default_rng((ORDER_STREAM, seed, epoch)).permutation(count)


def step_indices(seed: int, step: int, count: int, batch_size: int) -> np.ndarray:
    """The places, (batch_size,), of a training step's images; steps count from 0 and go on from epoch to epoch."""
    epoch, within = divmod(step, count // batch_size)
    return epoch_permutation(seed, epoch + 1, count)[within * batch_size : (within + 1) * batch_size]
