"""Defines a dataset: labeled images of one size, in memory or on disk, in a training and a test split."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from flaxresnet.data.lazy_images import LazyImages
from flaxresnet.runtime.errors import listed

USUAL_SIZE = (64, 64)  # the tutorials' images
MAX_CLASS_COUNTS = 20  # classes whose numbers of images are said one by one
MAX_HASHED_BYTES = 2**31  # bytes of pixels; of more, a fingerprint looks at some images only
HASH_SAMPLE = 512  # of those
ALL_TOGETHER = ", all of them together"  # in words, where splits do not count


@dataclass(frozen=True)
class Dataset:
    """Labelled images of one size.

    Attributes:
      images: (n, height, width, 3), uint8, RGB, 0–255: in memory, or on disk and read when asked for.
      labels: (n,), int32, 0 ≤ label < len(class_names).
      class_names: one name a class.
      names_given: whether the names came with the data (else they are "0", "1", …).
      identity: what tells these images from others where pixels are not looked at, such as names and sizes of files.
      contents: what tells their files' bytes from others, where `identity` does not.
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
        return self.images.shape[1], self.images.shape[2]

    def class_counts(self) -> np.ndarray:
        """Images a class: (classes,), int."""
        return np.bincount(self.labels, minlength=len(self.class_names))

    def fingerprint(self) -> str:
        """SHA-256 of shapes, pixels, labels and class names, to be compared by `is_same_data`.

        In place of pictures' pixels, their `identity` and, behind a dash, their `contents`: other bytes are other data,
        whether they are streamed or not. Of more than 2 GiB of pixels without those, as HDF5 files may have them, 512
        images are looked at, and a change to any other goes unnoticed.
        """
        digest = hashlib.sha256(repr((self.images.shape, self.class_names)).encode())
        for pixels in self._hash_blocks():
            digest.update(np.ascontiguousarray(pixels).data)
        digest.update(np.ascontiguousarray(self.labels, np.int32).data)
        return "-".join(filter(None, (digest.hexdigest(), self.contents)))

    def _hash_blocks(self) -> Iterator[np.ndarray]:
        if self.identity is not None:
            yield np.frombuffer(self.identity.encode(), np.uint8)
        elif self.images.nbytes > MAX_HASHED_BYTES:
            yield self.images[np.linspace(0, len(self) - 1, HASH_SAMPLE, dtype=int)]
        else:
            yield from (self.images[start : start + HASH_SAMPLE] for start in range(0, len(self), HASH_SAMPLE))


def is_same_data(one: str | None, other: str | None) -> bool:
    """Whether two fingerprints are of the same data, as far as both tell: older ones say nothing of files' contents."""
    if one is None or other is None:
        return one is other
    return all(mine == theirs for mine, theirs in zip(one.split("-"), other.split("-"), strict=False))


@dataclass(frozen=True)
class Splits:
    """The training and the test images of a data set; either may be missing.

    Attributes:
      source: where they come from, as words.
      path: the absolute path of the file or folder; None where the images were drawn.
      crop_pct: the share of test pictures that was taken, as `Preprocessing` has it.
      hash_split: whether hashes of their names divide the images into training and test, for want of anything else.
    """

    train: Dataset | None
    test: Dataset | None
    source: str
    path: str | None = None
    crop_pct: float = 1.0
    hash_split: bool = False

    def merge_into_test(self) -> "Splits":
        """All images as the test split, read into memory; of pictures, opened with `eval_preprocessing`."""
        parts = [part for part in (self.train, self.test) if part is not None]
        images, labels = (np.concatenate([getattr(part, name)[:] for part in parts]) for name in ("images", "labels"))
        whole = Dataset(images, labels, parts[0].class_names, parts[0].names_given)
        return replace(self, train=None, test=whole, source=f"{self.source}{ALL_TOGETHER}")

    def describe(self) -> Iterator[str]:
        """Lines that say what was loaded, as the tutorials print it, with the class balance."""
        yield f"data: {self.source}"
        present = {name: split for name, split in (("train", self.train), ("test", self.test)) if split is not None}
        for name, split in present.items():
            word = {"train": "training", "test": "test"}[name]
            yield f"number of {word} examples = {len(split)}"
        for name, split in present.items():
            yield f"X_{name} shape: {split.images.shape}  Y_{name} shape: {split.labels.shape}"
        some = next(iter(present.values()))
        yield f"{len(some.class_names)} classes: {listed(some.class_names)}"
        for name, split in present.items():
            yield f"{name} images a class: {_balance(split.class_counts())}"


def _balance(counts: np.ndarray) -> str:
    if len(counts) <= MAX_CLASS_COUNTS:
        return ", ".join(map(str, counts))
    return f"{counts.min():,} to {counts.max():,}, median {int(np.median(counts)):,}"
