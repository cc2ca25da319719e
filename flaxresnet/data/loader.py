"""The data loader: batches of a dataset that lies on the devices or is streamed from disk, split over the devices.

Which images are in a training step depends on the seed and on the number of the step alone, not on where they lie, on
how many processes read them, or on where a run was cut off; so that number is all there is to the place in the data.
"""

from collections.abc import Generator, Iterator
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from flaxresnet.data.dataset import Dataset
from flaxresnet.data.shuffle import ORDER_STREAM, step_indices

DEVICE_SHARE = 0.25  # of a device's memory, that images may take; the rest is for the network


class Batch(flax.struct.PyTreeNode):
    """Images (batch, height, width, 3) uint8, labels (batch,) int32, mask (batch,) float32: 1 counts, 0 is padding."""

    images: jax.Array
    labels: jax.Array
    mask: jax.Array


class BatchSource(Protocol):
    """Gives batches of the images at given places."""

    def train(self, seed: int, first: int) -> Generator[Batch]:
        """The batches of training steps `first`, `first` + 1, … (from 0), without end."""

    def at(self, places: list[np.ndarray]) -> Iterator[Batch]:
        """A batch for each of the arrays of places, padded and masked."""


def padded(places: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Places with zeros behind them, int32, and the mask that tells them apart, float32; both (batch_size,)."""
    whole = np.zeros(batch_size, np.int32)
    whole[: len(places)] = places
    return whole, (np.arange(batch_size) < len(places)).astype(np.float32)


class Loader:
    """A data set's batches."""

    def __init__(self, source: BatchSource, dataset: Dataset, batch_size: int, split: Any) -> None:
        """`split` is the sharding of a batch's leading axis."""
        self._source, self._split = source, split
        self._shape = dataset.images.shape
        self.count, self.batch_size = len(dataset), batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Full batches an epoch; which images are left over changes from epoch to epoch."""
        return self.count // self.batch_size

    def shapes(self) -> Batch:
        """A batch of `jax.ShapeDtypeStruct`."""
        kinds = {"images": (self._shape[1:], jnp.uint8), "labels": ((), jnp.int32), "mask": ((), jnp.float32)}
        made = {
            name: jax.ShapeDtypeStruct((self.batch_size, *shape), dtype, sharding=self._split)
            for name, (shape, dtype) in kinds.items()
        }
        return Batch(**made)

    def train(self, seed: int, first: int = 0) -> Generator[Batch]:
        """The full batches of training, from step `first` on, epoch after epoch, without end."""
        return self._source.train(seed, first)

    def eval_batches(self) -> Iterator[Batch]:
        """Every image once, in the order of the data; the last batch is padded and masked."""
        bounds = range(0, self.count, self.batch_size)
        return self._source.at([np.arange(start, min(start + self.batch_size, self.count)) for start in bounds])

    def bn_batches(self, count: int, seed: int) -> jax.Array:
        """Images for measuring statistics: (k, batch, height, width, 3) uint8, the same ones at each call.

        k · batch is the largest multiple of the batch that is neither above `count` nor above the whole set, but at
        least one batch; the set must hold one.
        """
        batches = max(1, min(count, self.count) // self.batch_size)
        order = np.random.default_rng((ORDER_STREAM, seed)).permutation(self.count)[: batches * self.batch_size]
        blocks = [batch.images for batch in self._source.at(list(order.reshape(batches, self.batch_size)))]
        return jax.jit(lambda *images: jnp.stack(images), out_shardings=_stacked_sharding(self._split))(*blocks)


def fits_devices(dataset: Dataset) -> bool:
    """Whether a data set takes no more than a share of a device's memory; where that is not known, as on CPUs, yes."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return limit is None or dataset.images.nbytes <= DEVICE_SHARE * limit


class DeviceSource:
    """A data set that lies on every device as uint8, and is gathered there."""

    def __init__(self, dataset: Dataset, batch_size: int, replicated: Any, split: Any) -> None:
        """`replicated` and `split` are the shardings of the whole set and of a batch's leading axis."""
        self._count, self._batch_size = len(dataset), batch_size
        self._data = [_on_devices(array, replicated) for array in (dataset.images, dataset.labels)]
        self._gather = jax.jit(_gather, out_shardings=split)

    def train(self, seed: int, first: int) -> Generator[Batch]:
        step = first
        while True:
            yield self._batch(step_indices(seed, step, self._count, self._batch_size))
            step += 1

    def at(self, places: list[np.ndarray]) -> Iterator[Batch]:
        return map(self._batch, places)

    def _batch(self, places: np.ndarray) -> Batch:
        return self._gather(*self._data, *padded(places, self._batch_size))


def _gather(images: jax.Array, labels: jax.Array, places: jax.Array, mask: jax.Array) -> Batch:
    return Batch(images[places], labels[places], mask)


def _on_devices(array: Any, sharding: Any) -> jax.Array:
    """An array that every process has all of, on its own devices, without an exchange."""
    return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)


def _stacked_sharding(split: Any) -> Any:
    """The sharding of batches that are stacked on a new leading axis."""
    return NamedSharding(split.mesh, PartitionSpec(None, *split.spec)) if isinstance(split, NamedSharding) else split
