"""What a data set is, and `open_dataset`, which finds the reader for a path."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from flaxresnet.data.stored import StoredImages
from flaxresnet.runtime.errors import UserError, listed
from flaxresnet.runtime.process_group import ALONE, Processes

DEFAULT_FOLDER = Path("datasets")
USUAL_SIZE = (64, 64)  # the tutorials' images
HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf")
MOST_COUNTS = 20  # classes whose numbers of images are said one by one
MEMORY_SHARE = 0.25  # of this machine's memory, that images may take before they are streamed from disk
LOOKED_AT_WHOLE = 2**31  # bytes of pixels; of more, a fingerprint looks at some images only
LOOKED_AT = 512  # of those
ALL_TOGETHER = ", all of them together"  # in words, where splits do not count
Input = Literal["auto", "memory", "stream"]


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

    images: np.ndarray | StoredImages
    labels: np.ndarray
    class_names: tuple[str, ...]
    names_given: bool = True
    identity: str | None = None
    contents: str | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_streamed(self) -> bool:
        return isinstance(self.images, StoredImages)

    @property
    def image_size(self) -> tuple[int, int]:
        return self.images.shape[1], self.images.shape[2]

    def class_counts(self) -> np.ndarray:
        """Images a class: (classes,), int."""
        return np.bincount(self.labels, minlength=len(self.class_names))

    def fingerprint(self) -> str:
        """SHA-256 of shapes, pixels, labels and class names, to be compared by `same_data`.

        In place of pictures' pixels, their `identity` and, behind a dash, their `contents`: other bytes are other data,
        whether they are streamed or not. Of more than 2 GiB of pixels without those, as HDF5 files may have them, 512
        images are looked at, and a change to any other goes unnoticed.
        """
        digest = hashlib.sha256(repr((self.images.shape, self.class_names)).encode())
        for pixels in self._fingers():
            digest.update(np.ascontiguousarray(pixels).data)
        digest.update(np.ascontiguousarray(self.labels, np.int32).data)
        return "-".join(filter(None, (digest.hexdigest(), self.contents)))

    def _fingers(self) -> Iterator[np.ndarray]:
        if self.identity is not None:
            yield np.frombuffer(self.identity.encode(), np.uint8)
        elif self.images.nbytes > LOOKED_AT_WHOLE:
            yield self.images[np.linspace(0, len(self) - 1, LOOKED_AT, dtype=int)]
        else:
            yield from (self.images[start : start + LOOKED_AT] for start in range(0, len(self), LOOKED_AT))


def same_data(one: str | None, other: str | None) -> bool:
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
      centre: the share of test pictures that was taken, as `Preprocessing` has it.
      by_name: whether it is their names that divide the images into training and test, for want of anything said of it.
    """

    train: Dataset | None
    test: Dataset | None
    source: str
    path: str | None = None
    centre: float = 1.0
    by_name: bool = False

    def all_to_test(self) -> "Splits":
        """All images as the test split, read into memory; of pictures, opened as those by which a run is `judged`."""
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
    if len(counts) <= MOST_COUNTS:
        return ", ".join(map(str, counts))
    return f"{counts.min():,} to {counts.max():,}, median {int(np.median(counts)):,}"


def open_dataset(
    path: str | Path | None = None,
    image_size: tuple[int, int] = USUAL_SIZE,
    skip_bad: float = 0.0,
    input: Input = "auto",
    processes: Processes = ALONE,
    centre: float = 1.0,
    anew: bool = False,
    judged: bool = False,
) -> Splits:
    """Opens labelled images, never writing to where they are.

    Args:
      path: an HDF5 file with a training split, a test split or both, or a folder with one HDF5 file for each, in the
        tutorials' layout (see `flaxresnet.data.hdf5`); or a folder of pictures, one folder a class (see
        `flaxresnet.data.folder`); or a folder of ArrayRecord files (see `flaxresnet.data.array_record`). None: the
        folder `datasets` if it holds such, else drawn hand signs.
      image_size: height and width that pictures in folders are brought to; HDF5 files have their own.
      skip_bad: the largest share of images that may be unreadable and are then left out, in [0, 1).
      input: "memory" reads all images now, "stream" when they are asked for, "auto" the first where they take no more
        than a quarter of the machine's memory; of several machines', the one's that has least.
      processes: those that open the data together; each looks through a part of what is streamed.
      centre: the share that is taken of test pictures, as `Preprocessing` has it; images that have a size of their own
        are taken as they are.
      anew: look through all that is streamed for images that cannot be read, even where it was looked through before.
      judged: whether a run is judged by the images: training pictures are then taken as test pictures are.

    Returns:
      The splits found.

    Raises:
      UserError: the path or what it holds is not such a data set; the text says what is wrong with it.
    """
    from flaxresnet.data.array_record import holds_records, read_records
    from flaxresnet.data.folder import holds_classes, read_folder

    if input not in ("auto", "memory", "stream"):
        raise UserError(f"--input is {input!r}; give 'auto', 'memory' or 'stream'")
    given, path = path, Path(path or DEFAULT_FOLDER)
    try:
        files = hdf5_files(path) if path.is_dir() else [path]
        exists, records = path.exists(), holds_records(path)
        pictures = not files and not records and holds_classes(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if given is None and not (exists and (files or pictures or records)):
        from flaxresnet.data.kept_signs import default_signs

        return default_signs()
    if not exists:
        raise UserError(f"{path} does not exist; give an HDF5 file, or a folder with HDF5 files or with pictures")
    if pictures or records:
        read = read_folder if pictures else read_records
        splits = read(path, image_size, skip_bad, input, processes, centre, anew, judged)
        return replace(splits, path=str(path.absolute()))
    if not files:
        raise UserError(
            f"{path} holds neither an HDF5 file (*.h5) nor a folder of pictures for each class; give one that does"
        )
    from flaxresnet.data.hdf5 import read_hdf5

    return replace(read_hdf5(files, str(path), skip_bad, input, processes, anew), path=str(path.absolute()))


def is_to_be_streamed(source: str | Path, nbytes: int, input: Input, processes: Processes = ALONE) -> bool:
    """Whether images stay on disk, the same for all processes: the machine with the least memory decides.

    Raises UserError, in all of them, where memory was asked for that a machine has not.
    """
    mine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    memory = min((one for one in processes.gather(mine) if one is not None), default=None)
    if input == "memory" and memory and nbytes > memory:
        raise UserError(
            f"the images of {source} take {nbytes / 2**30:.1f} GiB, more than the {memory / 2**30:.1f} GiB of this "
            "machine; give --input stream"
        )
    return input == "stream" or (input == "auto" and memory is not None and nbytes > MEMORY_SHARE * memory)


def hdf5_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in HDF5_SUFFIXES and p.is_file())
