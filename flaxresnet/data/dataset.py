"""Defines a dataset: labeled images of one size, in memory or on disk, in a training and a test split."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from flaxresnet.data.lazy_images import LazyImages
from flaxresnet.runtime.terminal import class_counts

USUAL_SIZE = (64, 64)  # the tutorials' images
MAX_SHRINK = 4  # linear; `Splits.describe` reports images that shrink more
ADVISED_SIDE = 224  # pixels; the largest image size to suggest
MAX_HASHED_BYTES = 2**31  # bytes of pixels; for larger datasets, the fingerprint covers a sample
HASH_SAMPLE = 512  # images in the sample; smaller datasets are hashed in blocks of as many
ALL_TOGETHER = ", all of them together"  # ends the source of merged splits


@dataclass(frozen=True)
class Dataset:
    """Labeled images of one size.

    Attributes:
      images: (n, height, width, 3) uint8 RGB in [0, 255], in memory or read from disk when indexed.
      labels: (n,) int32, 0 ≤ label < len(class_names).
      class_names: one name for each class.
      names_given: whether the names came with the data; if not, they are "0", "1", ….
      identity: a string that replaces the pixels in the fingerprint, such as a hash of file names and sizes.
      contents: a hash of the files' bytes, if `identity` does not cover them.
    """

    images: np.ndarray | LazyImages
    labels: np.ndarray
    class_names: tuple[str, ...]
    names_given: bool = True
    identity: str | None = None
    contents: str | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_streamed(self) -> bool:
        return isinstance(self.images, LazyImages)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.images.shape[1], self.images.shape[2]

    def class_counts(self) -> np.ndarray:
        """Returns the number of images of each class: (classes,) int."""
        return np.bincount(self.labels, minlength=len(self.class_names))

    def fingerprint(self) -> str:
        """Returns the SHA-256 of shapes, pixels, labels and class names, for `is_same_data`.

        Datasets with an `identity`, such as image folders, contribute it in place of pixels, and add `contents` after a
        hyphen, so the fingerprint does not depend on streaming. For other datasets of more than 2 GiB of pixels, such
        as HDF5 files, the hash covers 512 images; it misses a change to any other image.
        """
        digest = hashlib.sha256(repr((self.images.shape, self.class_names)).encode())
        for block in self._hash_blocks():
            digest.update(np.ascontiguousarray(block).data)
        digest.update(np.ascontiguousarray(self.labels, np.int32).data)
        return f"{digest.hexdigest()}-{self.contents}" if self.contents else digest.hexdigest()

    def _hash_blocks(self) -> Iterator[np.ndarray]:
        if self.identity is not None:
            yield np.frombuffer(self.identity.encode(), np.uint8)
        elif self.images.nbytes > MAX_HASHED_BYTES:
            yield self.images[np.linspace(0, len(self) - 1, HASH_SAMPLE, dtype=int)]
        else:
            for start in range(0, len(self), HASH_SAMPLE):
                yield self.images[start : start + HASH_SAMPLE]


def is_same_data(a: str | None, b: str | None) -> bool:
    """Returns whether two fingerprints match. One without `contents`, of an older run, matches any contents."""
    if a is None or b is None:
        return a is b
    return all(part_a == part_b for part_a, part_b in zip(a.split("-"), b.split("-"), strict=False))


@dataclass(frozen=True)
class Splits:
    """The training and the test split of a dataset. Either may be None.

    Attributes:
      source: describes where the images come from.
      path: absolute path of the file or folder; None for drawn images.
      crop_pct: fraction of each test image that the center crop covers; see `Preprocessing`.
      hash_split: whether a hash of each file name assigns the images to splits, because no folders do.
      notes: sentences about files and folders that were not used, for `data_warnings`.
      source_size: median (height, width) of the images' files in pixels, before resizing; None if there are no files.
      from_hdf5: whether the images come from HDF5 files, as in the Keras tutorials.
    """

    train: Dataset | None
    test: Dataset | None
    source: str
    path: str | None = None
    crop_pct: float = 1.0
    hash_split: bool = False
    from_hdf5: bool = False
    notes: tuple[str, ...] = ()
    source_size: tuple[int, int] | None = None

    def merge_into_test(self) -> "Splits":
        """Returns all images, in memory, as the test split. Requires splits opened with `eval_preprocessing`."""
        splits = [split for split in (self.train, self.test) if split is not None]
        images = np.concatenate([split.images[:] for split in splits])
        labels = np.concatenate([split.labels for split in splits])
        merged = Dataset(images, labels, splits[0].class_names, splits[0].names_given)
        return replace(self, train=None, test=merged, source=f"{self.source}{ALL_TOGETHER}")

    def describe(self) -> Iterator[str]:
        """Yields the source, the size of each split, and a table of the images of each class."""
        yield f"data: {self.source}"
        sizes = []
        counts = {}
        for name, split in (("training", self.train), ("test", self.test)):
            if split is not None:
                height, width = split.image_size
                sizes.append(f"{len(split):,} {name} images of {height}×{width}")
                counts[name] = split.class_counts().tolist()
                class_names = split.class_names
        yield f"{', '.join(sizes)}, {len(class_names)} classes"
        yield class_counts(class_names, counts)
        advice = self.shrink_advice()
        if advice is not None:
            yield advice

    def shrink_advice(self) -> str | None:
        """Returns a sentence if resizing shrinks the images more than `MAX_SHRINK`-fold, else None."""
        split = self.test if self.train is None else self.train
        if self.source_size is None or split is None:
            return None
        height, width = split.image_size
        factor = min(self.source_size[0] / height, self.source_size[1] / width)
        if factor <= MAX_SHRINK:
            return None
        source = "×".join(map(str, self.source_size))
        text = f"resizing shrinks the images {factor:.1f}-fold, from {source} (median) to {height}×{width}"
        side = min(ADVISED_SIDE, 32 * math.ceil(min(self.source_size) / MAX_SHRINK / 32))
        if side <= max(height, width):
            return f"{text}; a larger --image-size preserves more detail"
        return f"{text}; --image-size {side} {side} preserves more detail"

    def describe_arrays(self) -> Iterator[str]:
        """Yields the numbers and shapes of the examples, in the format of the Keras tutorials."""
        splits = {"train": self.train, "test": self.test}
        present = {name: split for name, split in splits.items() if split is not None}
        for name, split in present.items():
            yield f"number of {'training' if name == 'train' else name} examples = {len(split)}"
        for name, split in present.items():
            yield f"X_{name} shape: {split.images.shape}  Y_{name} shape: {split.labels.shape}"
