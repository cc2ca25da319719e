"""Batches that are read from disk, by worker processes or threads, while the devices compute (through Grain)."""

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
from flaxresnet.data.loader import Batch, padded
from flaxresnet.data.preprocess import RandomCrop
from flaxresnet.data.shuffle import step_indices

CROP_STREAM = 0xC209  # apart from the order of the images
MAX_STEPS = 2**40  # of a run; Grain asks for a number
MAX_WORKERS = 16
FEW_CORES = 2
AHEAD = 2  # batches that a worker process reads ahead


def usual_workers() -> int:
    """Worker processes where nobody has said how many: a core each, but one for the process that trains.

    On few cores none: threads do as well there, start at once and need no memory of their own.
    """
    mine = available_cpus()
    return 0 if mine <= FEW_CORES else min(MAX_WORKERS, mine - 1)


class StreamSource:
    """A data set of which every process reads its own part of each batch."""

    def __init__(self, dataset: Dataset, batch_size: int, split: Any, workers: int, smallest_crop: float = 1.0) -> None:
        """Sets it up; nothing is read yet.

        Args:
          dataset: with `LazyImages`.
          batch_size: images a batch, over all processes.
          split: the sharding of a batch's leading axis.
          workers: processes that read training images; 0 for threads of this one, which read all others.
          smallest_crop: the smallest share of a training image's area that a random part of it takes; 1 for the whole.
        """
        self._dataset, self._batch_size, self._split, self._workers = dataset, batch_size, split, workers
        self._rows = local_rows(split, batch_size)
        self._crop = RandomCrop(smallest_crop) if smallest_crop < 1 else None

    def train(self, seed: int, first: int) -> Generator[Batch]:
        read = LoadTrainBatch(self._dataset, self._batch_size, self._rows, seed, self._crop)
        return self._batches(read, range(first, MAX_STEPS), self._workers)

    def at(self, places: list[np.ndarray]) -> Generator[Batch]:
        read = LoadEvalBatch(self._dataset, self._batch_size, self._rows, places)
        return self._batches(read, range(len(places)), workers=0)

    def _batches(self, read: Any, steps: range, workers: int) -> Generator[Batch]:
        import grain
        from absl.flags import FLAGS

        threads = 1 if workers else min(MAX_WORKERS, available_cpus())
        reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
        dataset = grain.MapDataset.range(steps.start, steps.stop).map(read).to_iter_dataset(reading)
        if workers:  # whole batches go to the workers in turn, so that their number changes nothing
            if not FLAGS.is_parsed():  # Grain asks for flags of its own, which `absl.app` would have parsed
                FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=AHEAD)
            dataset = dataset.mp_prefetch(options, worker_init_fn=init_worker)
        with closing(iter(dataset)) as batches:
            for arrays in batches:
                # A worker's lie in shared memory, which a batch must not keep: it may be there at the process's end,
                # when nobody would give that memory back.
                yield Batch(*(self._placed(np.array(array) if workers else array) for array in arrays))

    def _placed(self, mine: np.ndarray) -> jax.Array:
        whole = (self._batch_size, *mine.shape[1:])
        return jax.make_array_from_process_local_data(self._split, mine, whole)


def init_worker(_: int, __: int) -> None:
    """Lets a worker process leave signals to the one that it works for, and end when that one is gone.

    A scheduler sends SIGTERM to all processes of a job; the last steps before they stop together need batches.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def local_rows(split: Any, batch_size: int) -> np.ndarray:
    """The rows of a batch that lie on this process's devices, in order."""
    spans = {
        index[0].indices(batch_size)[:2] for index in split.addressable_devices_indices_map((batch_size,)).values()
    }
    return np.concatenate([np.arange(*span) for span in sorted(spans)])


@dataclass(frozen=True)
class LoadTrainBatch:
    """From the number of a training step to this process's rows of it: images, labels and mask."""

    dataset: Dataset
    batch_size: int
    rows: np.ndarray
    seed: int
    crop: RandomCrop | None

    def __call__(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        places = step_indices(self.seed, step, len(self.dataset), self.batch_size)[self.rows]
        parts = None
        if self.crop:  # drawn for each image on its own, whichever process reads it
            draws = [np.random.default_rng((CROP_STREAM, self.seed, step, int(row))) for row in self.rows]
            parts = [partial(self.crop, rng=rng) for rng in draws]
        return read_images(self.dataset.images, places, parts), self.dataset.labels[places], np.ones(len(places), "f4")


@dataclass(frozen=True)
class LoadEvalBatch:
    """From the number of a batch to this process's rows of it, padded: images, labels and mask."""

    dataset: Dataset
    batch_size: int
    rows: np.ndarray
    places: list[np.ndarray]

    def __call__(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        places, mask = (values[self.rows] for values in padded(self.places[number], self.batch_size))
        return read_images(self.dataset.images, places), self.dataset.labels[places], mask


def read_images(stored: np.ndarray | LazyImages, places: np.ndarray, parts: Sequence[Any] | None = None) -> np.ndarray:
    """Images, or parts of them, (n, height, width, 3): read in the order in which they lie, which disks like."""
    images = np.empty((len(places), *stored.shape[1:]), np.uint8)
    for row in np.argsort(places, kind="stable"):
        place = int(places[row])
        part = parts[row] if parts else None
        images[row] = stored.read(place, part) if isinstance(stored, LazyImages) else stored[place]
    return images
