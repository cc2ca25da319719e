"""Images that stay on disk until they are indexed."""

import abc
import contextlib
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

SAMPLE_SIZE = 200  # images whose headers are read
QUEUE_SIZE = 4096  # reads that are submitted to the threads at once


class ContentHash:
    """Hash of image files that does not depend on the order in which threads read them: a sum of SHA-256 digests.

    Attributes:
      total: the sum so far, in [0, 2²⁵⁶). The sums of parts add up, modulo 2²⁵⁶, to the sum of all images.
    """

    MODULUS = 2**256

    def __init__(self) -> None:
        self.total = 0
        self._lock = threading.Lock()

    def add(self, index: int, content: bytes, sign: int = 1) -> None:
        """Adds the file of an image, or removes it again if the sign is -1. Thread-safe."""
        digest = hashlib.sha256(index.to_bytes(8, "big") + content).digest()
        with self._lock:
            self.total = (self.total + sign * int.from_bytes(digest, "big")) % self.MODULUS


def available_cpus() -> int:
    """Returns the number of cores that this process may use; under a scheduler, often fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class LazyImages(abc.ABC):
    """Images on disk that can be indexed as an (n, height, width, 3) uint8 array. Picklable, for worker processes.

    Attributes:
      location: absolute path of the file or folder.
      shape: (n, height, width, 3).
      dtype: uint8.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, location: str, count: int, image_size: tuple[int, int]) -> None:
        self.location = location
        self.shape = (count, *image_size, 3)
        self._indices: np.ndarray | None = None  # into the stored images, after `take`

    @abc.abstractmethod
    def _read(self, index: int, part: Part | None) -> np.ndarray: ...

    def read(self, index: int, part: Part | None = None) -> np.ndarray:
        """Returns an image, or a part of it resized to the dataset's image size: (height, width, 3) uint8.

        Raises:
          UserError: if the image cannot be read.
        """
        return self._read(self._stored_index(index), part)

    def _stored_index(self, index: int) -> int:
        return index if self._indices is None else int(self._indices[index])

    def take(self, indices: np.ndarray) -> Self:
        """Returns the images at (k,) integer indices, still on disk."""
        subset = copy.copy(self)
        subset._indices = indices if self._indices is None else self._indices[indices]
        subset.shape = (len(indices), *self.shape[1:])
        return subset

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that the images would take in memory."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        if isinstance(index, int | np.integer):
            return self.read(int(index))
        images, errors = self.load(np.arange(len(self))[index])
        for message in errors.values():
            raise UserError(message)
        return images

    def load(self, indices: np.ndarray | None = None) -> tuple[np.ndarray, dict[int, str]]:
        """Reads images into memory.

        Args:
          indices: (k,) integers; None reads all images.

        Returns:
          (k, height, width, 3) uint8, and a dict from the row of each unreadable image to the error message. The
          pixels of such a row are undefined.
        """
        if indices is None:
            indices = np.arange(len(self))
        images = np.empty((len(indices), *self.shape[1:]), np.uint8)

        def read(row: int) -> None:
            images[row] = self.read(int(indices[row]))

        return images, _collect_errors(read, len(indices))

    def read_errors(self, indices: Sequence[int]) -> dict[int, str]:
        """Reads images, discards them, and returns a dict from the index of each unreadable one to its error."""
        errors = _collect_errors(lambda row: self.read(indices[row]), len(indices))
        return {indices[row]: message for row, message in errors.items()}

    def mtime_key(self) -> str:
        """Returns a string that changes if a file is written again. Reads no image."""
        return ""

    def with_hashing(self, content_hash: ContentHash) -> Self:
        """Returns these images. If they are stored one by one, reading one also adds its bytes to the hash."""
        return self


class EncodedImages(LazyImages):
    """Images that are stored one by one as encoded bytes, such as a JPEG file each."""

    _content_hash: ContentHash | None = None

    def read(self, index: int, part: Part | None = None) -> np.ndarray:
        image = super().read(index, part)
        if self._content_hash is not None:  # decoding has left the bytes in the page cache
            self._content_hash.add(self._stored_index(index), self.encoded(index))
        return image

    def with_hashing(self, content_hash: ContentHash) -> Self:
        hashing = copy.copy(self)
        hashing._content_hash = content_hash
        return hashing

    @abc.abstractmethod
    def _read_bytes(self, index: int) -> bytes: ...

    @abc.abstractmethod
    def _name(self, index: int) -> str: ...

    @abc.abstractmethod
    def _source_size(self, index: int) -> tuple[int, int]: ...

    def source_size(self, index: int) -> tuple[int, int]:
        """Returns (height, width) in pixels of the stored image, before resizing, from the file's header.

        Raises:
          UserError: if the header cannot be read.
        """
        return self._source_size(self._stored_index(index))

    def name(self, index: int) -> str:
        """Returns the image's file name in the original dataset, relative to its folder."""
        return self._name(self._stored_index(index))

    def encoded(self, index: int) -> bytes:
        """Returns the encoded bytes of an image.

        Raises:
          UserError: if they cannot be read.
        """
        return self._read_bytes(self._stored_index(index))


def median_image_size(splits: Sequence[Any]) -> tuple[int, int] | None:
    """Returns the median (height, width) of stored images, from the headers of at most `SAMPLE_SIZE` of them.

    Args:
      splits: images of each split. Only `EncodedImages` have headers.

    Returns:
      Pixels; None if no header can be read.
    """
    encoded = [images for images in splits if isinstance(images, EncodedImages) and len(images)]
    sizes = []
    for images in encoded:
        count = min(len(images), SAMPLE_SIZE // len(encoded))
        for index in np.linspace(0, len(images) - 1, count, dtype=int):
            with contextlib.suppress(UserError):  # reading the images reports the error
                sizes.append(images.source_size(int(index)))
    if not sizes:
        return None
    height, width = np.median(sizes, axis=0)
    return round(height), round(width)


def _collect_errors(read: Callable[[int], object], count: int) -> dict[int, str]:
    """Calls `read(0)`, …, `read(count - 1)` in threads; returns the messages of their UserErrors by number."""

    def error_message(number: int) -> str | None:
        try:
            read(number)
        except UserError as error:
            return str(error)
        return None

    errors: dict[int, str] = {}
    with ThreadPoolExecutor(available_cpus()) as pool:  # image decoders release the GIL
        for start in range(0, count, QUEUE_SIZE):
            numbers = range(start, min(start + QUEUE_SIZE, count))
            for number, message in zip(numbers, pool.map(error_message, numbers), strict=True):
                if message is not None:
                    errors[number] = message
    return errors
