"""Images that stay on disk and are read when they are asked for."""

import abc
import copy
import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import numpy as np

from flaxresnet.data.preprocess import Part
from flaxresnet.runtime.errors import UserError

QUEUE_SIZE = 4096  # reads that wait for a thread


class ContentHash:
    """Tells pictures by the bytes of their files: a sum of digests, the same in whatever order they are read.

    Attributes:
      total: of what was added so far, in [0, 2²⁵⁶); totals of parts add up to that of all, by the same modulus.
    """

    MODULUS = 2**256

    def __init__(self) -> None:
        self.total = 0
        self._lock = threading.Lock()

    def add(self, place: int, content: bytes, times: int = 1) -> None:
        """Counts the picture at a place, from any thread; -1 times takes it off again."""
        digest = hashlib.sha256(place.to_bytes(8, "big") + content).digest()
        with self._lock:
            self.total = (self.total + times * int.from_bytes(digest, "big")) % self.MODULUS


def available_cpus() -> int:
    """Cores that this process may use, which under a scheduler are not all that there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LazyImages(abc.ABC):
    """Images on disk, to be indexed as an array of (n, height, width, 3) uint8 would be; worker processes get copies.

    Attributes:
      location: where they are.
      shape: (n, height, width, 3).
      dtype: uint8.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, location: str, count: int, image_size: tuple[int, int]) -> None:
        self.location, self.shape = location, (count, *image_size, 3)
        self._places: np.ndarray | None = None

    @abc.abstractmethod
    def _read(self, place: int, part: Part | None) -> np.ndarray: ...

    def read(self, place: int, part: Part | None = None) -> np.ndarray:
        """The image at a place, (height, width, 3) uint8, or a part of it in the same size.

        Raises UserError where it cannot be read.
        """
        return self._read(self._at(place), part)

    def _at(self, place: int) -> int:
        return place if self._places is None else int(self._places[place])

    def only(self, places: np.ndarray) -> Self:
        """Some of the images."""
        some = copy.copy(self)
        some._places = places if self._places is None else self._places[places]
        some.shape = (len(places), *self.shape[1:])
        return some

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that they would take in memory."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        if isinstance(index, int | np.integer):
            return self.read(int(index))
        images, bad = self.load(np.arange(len(self))[index])
        if bad:
            raise UserError(next(iter(bad.values())))
        return images

    def load(self, places: np.ndarray | None = None) -> tuple[np.ndarray, dict[int, str]]:
        """Images into memory, all of them by default: (n, height, width, 3), and row → what is wrong with it."""
        places = np.arange(len(self)) if places is None else places
        images = np.empty((len(places), *self.shape[1:]), np.uint8)

        def read(row: int) -> None:
            images[row] = self.read(int(places[row]))

        return images, _collect_errors(read, len(places))

    def unreadable(self, places: Sequence[int]) -> dict[int, str]:
        """Place → what is wrong with the image there; reads those at the places, and keeps none."""
        found = _collect_errors(lambda i: self.read(places[i]), len(places))
        return {places[i]: wrong for i, wrong in found.items()}

    def state(self) -> str:
        """What changes when their files do, such as when these were written, without looking at the images."""
        return ""

    def with_hashing(self, contents: ContentHash) -> Self:
        """The same images, of which each that is read is added to the contents, where it has bytes of its own."""
        return self


class EncodedImages(LazyImages):
    """Images of which each has bytes of its own, as a picture's file has them."""

    _contents: ContentHash | None = None

    def read(self, place: int, part: Part | None = None) -> np.ndarray:
        image = super().read(place, part)
        if self._contents is not None:  # its bytes are still in the system's memory, from being decoded
            self._contents.add(self._at(place), self.encoded(place))
        return image

    def with_hashing(self, contents: ContentHash) -> Self:
        with_hashing = copy.copy(self)
        with_hashing._contents = contents
        return with_hashing

    @abc.abstractmethod
    def _bytes(self, place: int) -> bytes: ...

    @abc.abstractmethod
    def _name(self, place: int) -> str: ...

    def name(self, place: int) -> str:
        """What the picture at a place is called where it comes from: its file, below the folder of all."""
        return self._name(self._at(place))

    def encoded(self, place: int) -> bytes:
        """The bytes of the picture at a place; raises UserError where they cannot be read."""
        return self._bytes(self._at(place))


def _collect_errors(read: Callable[[int], object], count: int) -> dict[int, str]:
    """What is wrong with those of `count` images that `read` raises UserError for, in order."""

    def trouble(place: int) -> str | None:
        try:
            read(place)
        except UserError as error:
            return str(error)
        return None

    found = dict[int, str]()
    with ThreadPoolExecutor(available_cpus()) as pool:  # decoders do not hold Python's lock
        for start in range(0, count, QUEUE_SIZE):
            places = range(start, min(start + QUEUE_SIZE, count))
            found |= {place: wrong for place, wrong in zip(places, pool.map(trouble, places), strict=True) if wrong}
    return found
