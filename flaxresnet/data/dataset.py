"""What a data set is, and `open_dataset`, which finds the reader for a path."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from flaxresnet.errors import UserError, listed

DEFAULT_FOLDER = Path("datasets")
USUAL_SIZE = (64, 64)  # the tutorials' images
HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf")
MOST_COUNTS = 20  # classes whose numbers of images are said one by one


@dataclass(frozen=True)
class Dataset:
    """Labelled images of one size.

    Attributes:
      images: (n, height, width, 3), uint8, RGB, 0–255.
      labels: (n,), int32, 0 ≤ label < len(class_names).
      class_names: one name a class.
      names_given: whether the names came with the data (else they are "0", "1", …).
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    names_given: bool = True

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_size(self) -> tuple[int, int]:
        return self.images.shape[1], self.images.shape[2]

    def class_counts(self) -> np.ndarray:
        """Images a class: (classes,), int."""
        return np.bincount(self.labels, minlength=len(self.class_names))

    def fingerprint(self) -> str:
        """SHA-256 of shapes, pixels, labels and class names: equal exactly when the data are equal."""
        digest = hashlib.sha256(repr((self.images.shape, self.class_names)).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels, np.int32).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Splits:
    """The training and the test images of a data set; either may be missing.

    Attributes:
      source: where they come from, as words.
      path: the absolute path of the file or folder; None where the images were drawn.
    """

    train: Dataset | None
    test: Dataset | None
    source: str
    path: str | None = None

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
    if len(counts) <= MOST_COUNTS:
        return ", ".join(map(str, counts))
    return f"{counts.min():,} to {counts.max():,}, median {int(np.median(counts)):,}"


def open_dataset(
    path: str | Path | None = None, image_size: tuple[int, int] = USUAL_SIZE, skip_bad: float = 0.0
) -> Splits:
    """Opens labelled images, reading files only, never writing.

    Args:
      path: an HDF5 file with a training split, a test split or both, or a folder with one HDF5 file for each, in the
        tutorials' layout (see `flaxresnet.data.hdf5`); or a folder of pictures, one folder a class (see
        `flaxresnet.data.folder`). None: the folder `datasets` if it holds such, else drawn hand signs.
      image_size: height and width that pictures in folders are brought to; HDF5 files have their own.
      skip_bad: the largest share of pictures in folders that may be unreadable and are then left out, in [0, 1).

    Returns:
      The splits found, wholly in memory.

    Raises:
      UserError: the path or what it holds is not such a data set; the text says what is wrong with it.
    """
    from flaxresnet.data.folder import holds_classes, read_folder

    given, path = path, Path(path or DEFAULT_FOLDER)
    try:
        files = hdf5_files(path) if path.is_dir() else [path]
        exists = path.exists()
        pictures = not files and holds_classes(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if given is None and not (exists and (files or pictures)):
        from flaxresnet.data.synthetic import drawn_signs

        return drawn_signs()
    if not exists:
        raise UserError(f"{path} does not exist; give an HDF5 file, or a folder with HDF5 files or with pictures")
    if pictures:
        return replace(read_folder(path, image_size, skip_bad), path=str(path.absolute()))
    if not files:
        raise UserError(
            f"{path} holds neither an HDF5 file (*.h5) nor a folder of pictures for each class; give one that does"
        )
    from flaxresnet.data.hdf5 import read_hdf5

    return replace(read_hdf5(files, source=str(path)), path=str(path.absolute()))


def hdf5_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in HDF5_SUFFIXES and p.is_file())
