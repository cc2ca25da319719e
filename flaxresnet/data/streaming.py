"""Streams batches from disk through Grain, in worker processes or threads, while the devices compute."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from flaxresnet.data.dataset import Dataset
from flaxresnet.data.lazy_images import LazyImages, available_cpus
from flaxresnet.data.loader import Batch, pad_indices
from flaxresnet.data.preprocess import Part, RandomCrop
from flaxresnet.data.shuffle import step_indices
from flaxresnet.data.worker_import import next_or_import_error, require_script_file

CROP_STREAM = 0xC209  # separates the random numbers of crops from those of the order of images
MAX_STEPS = 2**40  # in a run; Grain needs a finite number
MAX_WORKERS = 16
MAX_CORES_WITHOUT_WORKERS = 2
PREFETCH_BATCHES = 2  # of a worker process

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]  # images, labels and mask of a batch


def default_num_workers() -> int:
    """Returns the default number of worker processes: all cores but one, which trains, and at most 16.

    0 on one or two cores: threads read as fast there, start at once, and share the memory of the process.
    """
    cores = available_cpus()
    return 0 if cores <= MAX_CORES_WITHOUT_WORKERS else min(MAX_WORKERS, cores - 1)


class StreamSource:
    """Batches of a dataset; each process reads its own rows of a batch."""

    def __init__(
        self, dataset: Dataset, batch_size: int, sharding: Any, workers: int, crop_min_area: float = 1.0
    ) -> None:
        """Stores the parameters. Reads no image yet.

        Args:
          dataset: images on disk, or in memory if they do not fit on a device.
          batch_size: images in a batch, over all processes.
          sharding: sharding of a batch's leading axis.
          workers: processes that read training images; 0 reads in threads. Evaluation always reads in threads.
          crop_min_area: smallest area of a random crop of a training image, as a fraction of the image; 1 turns random
            crops off.
        """
        self._dataset = dataset
        self._batch_size = batch_size
        self._sharding = sharding
        self._workers = workers
        self._rows = local_rows(sharding, batch_size)
        self._crop = RandomCrop(crop_min_area) if crop_min_area < 1 else None

    def train(self, seed: int, first: int) -> Generator[Batch]:
        load = LoadTrainBatch(self._dataset, self._batch_size, self._rows, seed, self._crop)
        return self._stream(load, range(first, MAX_STEPS), self._workers)

    def batches(self, indices: list[np.ndarray]) -> Generator[Batch]:
        load = LoadEvalBatch(self._dataset, self._batch_size, self._rows, indices)
        return self._stream(load, range(len(indices)), workers=0)

    def _stream(self, load: Any, numbers: range, workers: int) -> Generator[Batch]:
        """Yields the batch of each number. `load` converts a number to `Arrays`, and is picklable."""
        import grain
        from absl.flags import FLAGS

        threads = 1 if workers else min(MAX_WORKERS, available_cpus())
        read_options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
        dataset = grain.MapDataset.range(numbers.start, numbers.stop).map(load).to_iter_dataset(read_options)
        if workers:  # a worker loads full batches, so the number of workers does not change a batch
            require_script_file()
            if not FLAGS.is_parsed():  # Grain reads flags, which `absl.app` would have parsed
                FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=PREFETCH_BATCHES)
            dataset = dataset.mp_prefetch(options, worker_init_fn=init_worker)
        with closing(iter(dataset)) as batches:
            while (arrays := next_or_import_error(batches)) is not None:
                if workers:
                    # A worker's arrays are in shared memory, which leaks if a batch still refers to it when the
                    # process ends.
                    arrays = [np.array(array) for array in arrays]
                yield Batch(*map(self._to_devices, arrays))

    def _to_devices(self, rows: np.ndarray) -> jax.Array:
        global_shape = (self._batch_size, *rows.shape[1:])
        return jax.make_array_from_process_local_data(self._sharding, rows, global_shape)


def init_worker(_: int, __: int) -> None:
    """Makes a worker process ignore signals and exit when its parent exits.

    A scheduler sends SIGTERM to all processes of a job, and a closing terminal sends SIGHUP, but the parent needs
    batches until it has stopped training.
    """
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


def local_rows(sharding: Any, batch_size: int) -> np.ndarray:
    """Returns the rows of a batch that are on this process's devices, sorted: (k,) int."""
    device_indices = sharding.addressable_devices_indices_map((batch_size,)).values()
    spans = {index[0].indices(batch_size)[:2] for index in device_indices}
    return np.concatenate([np.arange(*span) for span in sorted(spans)])


@dataclass(frozen=True)
class LoadTrainBatch:
    """Loads this process's rows of the batch of a training step."""

    dataset: Dataset
    batch_size: int
    rows: np.ndarray
    seed: int
    crop: RandomCrop | None

    def __call__(self, step: int) -> Arrays:
        indices = step_indices(self.seed, step, len(self.dataset), self.batch_size)[self.rows]
        parts: list[Part | None] = [None] * len(indices)
        if self.crop:  # seeded for each image, so that a crop does not depend on the process that reads it
            rngs = [np.random.default_rng((CROP_STREAM, self.seed, step, int(row))) for row in self.rows]
            parts = [partial(self.crop, rng=rng) for rng in rngs]
        images = read_images(self.dataset.images, indices, parts)
        return images, self.dataset.labels[indices], np.ones(len(indices), np.float32)


@dataclass(frozen=True)
class LoadEvalBatch:
    """Loads this process's rows of a padded batch of given indices, by the batch's number."""

    dataset: Dataset
    batch_size: int
    rows: np.ndarray
    indices: list[np.ndarray]

    def __call__(self, number: int) -> Arrays:
        padded, mask = pad_indices(self.indices[number], self.batch_size)
        indices = padded[self.rows]
        images = read_images(self.dataset.images, indices, [None] * len(indices))
        return images, self.dataset.labels[indices], mask[self.rows]


def read_images(stored: np.ndarray | LazyImages, indices: np.ndarray, parts: Sequence[Part | None]) -> np.ndarray:
    """Reads images, or parts of them, in the order in which they are stored, which is faster on disks.

    Args:
      stored: n images, in memory or on disk.
      indices: (k,) integers.
      parts: for each index, the box to crop; None reads the image as `stored` gives it. Ignored for images in memory.

    Returns:
      (k, height, width, 3) uint8, in the order of `indices`.
    """
    images = np.empty((len(indices), *stored.shape[1:]), np.uint8)
    for row in np.argsort(indices, kind="stable"):
        index = int(indices[row])
        images[row] = stored.read(index, parts[row]) if isinstance(stored, LazyImages) else stored[index]
    return images
