"""Batches of a data set that lies on the device as uint8, gathered there."""

from collections.abc import Iterator
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from flaxresnet.data.dataset import Dataset

# Apart from the keys of weights and augmentation, which come from jax.random.
ORDER_STREAM = 0x0DE5


class Batch(flax.struct.PyTreeNode):
    """Images (batch, height, width, 3) uint8, labels (batch,) int32, mask (batch,) float32: 1 counts, 0 is padding."""

    images: jax.Array
    labels: jax.Array
    mask: jax.Array


class DeviceLoader:
    """A data set on the device, and its batches, split over the devices."""

    def __init__(self, dataset: Dataset, batch_size: int, replicated: Any, split: Any) -> None:
        """`replicated` and `split` are the shardings of the whole set and of a batch's leading axis."""
        self.count = len(dataset)
        self.batch_size = batch_size
        self._data = jax.device_put((dataset.images, dataset.labels), replicated)
        self._split = split
        self._take = jax.jit(_take, out_shardings=split)

    @property
    def steps_per_epoch(self) -> int:
        """Full batches an epoch; which images are left over changes from epoch to epoch."""
        return self.count // self.batch_size

    def epoch(self, seed: int, epoch: int) -> Iterator[Batch]:
        """The full batches of one epoch, in an order that depends on (seed, epoch) alone."""
        order = np.random.default_rng((ORDER_STREAM, seed, epoch)).permutation(self.count)
        for step in range(self.steps_per_epoch):
            yield self._batch(order[step * self.batch_size : (step + 1) * self.batch_size])

    def in_order(self) -> Iterator[Batch]:
        """Every image once, in the order of the data; the last batch is padded and masked."""
        for start in range(0, self.count, self.batch_size):
            yield self._batch(np.arange(start, min(start + self.batch_size, self.count)))

    def sample(self, count: int, seed: int) -> jax.Array:
        """Images for measuring statistics: (k, batch, height, width, 3) uint8, the same ones at each call.

        k · batch is the largest multiple of the batch that is neither above `count` nor above the whole set, but at
        least one batch; the set must hold one.
        """
        batches = max(1, min(count, self.count) // self.batch_size)
        order = np.random.default_rng((ORDER_STREAM, seed)).permutation(self.count)[: batches * self.batch_size]
        blocks = [self._batch(block).images for block in order.reshape(batches, self.batch_size)]
        return jnp.stack(blocks)

    def _batch(self, indices: np.ndarray) -> Batch:
        padded = np.zeros(self.batch_size, np.int32)
        padded[: len(indices)] = indices
        mask = (np.arange(self.batch_size) < len(indices)).astype(np.float32)
        return self._take(*self._data, padded, mask)


def _take(images: jax.Array, labels: jax.Array, indices: jax.Array, mask: jax.Array) -> Batch:
    return Batch(images[indices], labels[indices], mask)
