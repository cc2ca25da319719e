"""The data loader: batches of a dataset in device memory or streamed from disk, sharded over devices.

For a given dataset and batch size, the images of a training step depend only on the seed and the step's number, not on
streaming, the number of processes that read, or an interruption. So the step's number is the loader's full state.
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

DEVICE_MEMORY_FRACTION = 0.25  # of a device, for images; the network needs the rest


class Batch(flax.struct.PyTreeNode):
    """A batch of images.

    Attributes:
      images: (batch, height, width, 3) uint8.
      labels: (batch,) int32.
      mask: (batch,) float32, 1 for an image and 0 for padding.
    """

    images: jax.Array
    labels: jax.Array
    mask: jax.Array


class BatchSource(Protocol):
    """Reads batches by the indices of their images."""

    def train(self, seed: int, first: int) -> Generator[Batch]:
        """Yields the batches of training steps `first`, `first` + 1, …, without end. Steps count from 0."""

    def batches(self, indices: list[np.ndarray]) -> Iterator[Batch]:
        """Yields a padded and masked batch for each array of indices."""


def pad_indices(indices: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices padded with zeros, int32, and the mask, float32, both (batch_size,)."""
    padded = np.zeros(batch_size, np.int32)
    padded[: len(indices)] = indices
    mask = np.arange(batch_size) < len(indices)
    return padded, mask.astype(np.float32)


class Loader:
    """Batches of a dataset for training, evaluation and batch-norm statistics."""

    def __init__(self, source: BatchSource, dataset: Dataset, batch_size: int, sharding: Any) -> None:
        """Stores the source of batches and their sizes.

        Args:
          source: reads the batches of `dataset`.
          dataset: n images.
          batch_size: images in a batch, over all processes.
          sharding: sharding of a batch's leading axis.
        """
        self._source = source
        self._sharding = sharding
        self._shape = dataset.images.shape
        self.count = len(dataset)
        self.batch_size = batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Number of full batches in an epoch. Each epoch drops its last, incomplete batch of other images."""
        return self.count // self.batch_size

    def shapes(self) -> Batch:
        """Returns a batch of `jax.ShapeDtypeStruct`."""

        def leaf(shape: tuple[int, ...], dtype: Any) -> Any:
            return jax.ShapeDtypeStruct((self.batch_size, *shape), dtype, sharding=self._sharding)

        return Batch(images=leaf(self._shape[1:], jnp.uint8), labels=leaf((), jnp.int32), mask=leaf((), jnp.float32))

    def train(self, seed: int, first: int = 0) -> Generator[Batch]:
        """Yields full batches from training step `first` on, epoch after epoch, without end."""
        return self._source.train(seed, first)

    def eval_batches(self) -> Iterator[Batch]:
        """Returns an iterator over all images once, in the dataset's order; the last batch is padded and masked."""
        indices = np.arange(self.count)
        starts = range(0, self.count, self.batch_size)
        return self._source.batches([indices[start : start + self.batch_size] for start in starts])

    def bn_batches(self, count: int, seed: int) -> jax.Array:
        """Returns random images for measuring batch-norm statistics, the same ones in each call.

        Args:
          count: images to return, rounded down to full batches, but at least one batch.
          seed: selects the images.

        Returns:
          (k, batch, height, width, 3) uint8, with k · batch ≤ n. Requires batch ≤ n, for n images in the dataset.
        """
        batches = max(1, min(count, self.count) // self.batch_size)
        order = np.random.default_rng((ORDER_STREAM, seed)).permutation(self.count)[: batches * self.batch_size]
        images = [batch.images for batch in self._source.batches(list(order.reshape(batches, self.batch_size)))]
        return jax.jit(lambda *images: jnp.stack(images), out_shardings=_stacked_sharding(self._sharding))(*images)


def fits_devices(dataset: Dataset) -> bool:
    """Returns whether a dataset takes at most a quarter of a device's memory; True on devices of unknown size."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return limit is None or dataset.images.nbytes <= DEVICE_MEMORY_FRACTION * limit


class DeviceSource:
    """Batches of a dataset that is replicated in the memory of every device as uint8."""

    def __init__(self, dataset: Dataset, batch_size: int, replicated: Any, sharding: Any) -> None:
        """Copies the dataset to the devices.

        Args:
          dataset: images in memory, or on disk.
          batch_size: images in a batch, over all processes.
          replicated: sharding of the dataset.
          sharding: sharding of a batch's leading axis.
        """
        self._count = len(dataset)
        self._batch_size = batch_size
        self._images = _to_devices(dataset.images, replicated)
        self._labels = _to_devices(dataset.labels, replicated)
        self._gather = jax.jit(_gather, out_shardings=sharding)

    def train(self, seed: int, first: int) -> Generator[Batch]:
        step = first
        while True:
            yield self._batch(step_indices(seed, step, self._count, self._batch_size))
            step += 1

    def batches(self, indices: list[np.ndarray]) -> Iterator[Batch]:
        return map(self._batch, indices)

    def _batch(self, indices: np.ndarray) -> Batch:
        return self._gather(self._images, self._labels, *pad_indices(indices, self._batch_size))


def _gather(images: jax.Array, labels: jax.Array, indices: jax.Array, mask: jax.Array) -> Batch:
    return Batch(images[indices], labels[indices], mask)


def _to_devices(array: Any, sharding: Any) -> jax.Array:
    """Copies an array that every process has in full to its own devices, without communication."""
    return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)


def _stacked_sharding(sharding: Any) -> Any:
    """Returns the sharding of batches that are stacked on a new leading axis."""
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))
    return sharding
