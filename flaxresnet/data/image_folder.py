"""Pictures in folders, one a class: `cat/1.jpg`, or `train/cat/1.jpg` and `test/cat/2.jpg`.

Splits may be folders named train and test (or val, valid, validation). Where there are none, a picture's name decides:
one in five goes to test, by a hash of its class and name, whatever other pictures there are.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flaxresnet.data.dataset import Dataset, Splits
from flaxresnet.data.integrity_scan import drop_unreadable
from flaxresnet.data.lazy_images import EncodedImages
from flaxresnet.data.path_checks import require_regular_file
from flaxresnet.data.preprocess import MAX_INPUT_PIXELS, MAX_SIDE, Part, Preprocessing, is_input_size
from flaxresnet.data.read_options import ReadOptions
from flaxresnet.runtime.errors import UserError, listed, oserror_as_user_error

# Paths are text here and not `Path`, of which a million take a while to make and a GiB to keep.
ENDINGS = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".jp2"),
    *(".avif", ".heic", ".heif", ".hif"),
}
TEST_NAMES = ("test", "val", "valid", "validation")  # the first that is there is the test split
TEST_SHARE = 0.2
BY_NAME = f"split by the hash of each name, {TEST_SHARE:.0%} for test"


@dataclass(frozen=True)
class ImageFile:
    """A file that was found: its class, its path below the data's folder, its size in bytes, and when it changed."""

    label: str
    path: str
    nbytes: int
    changed: int


class ImageFolderImages(EncodedImages):
    """Pictures that are decoded, and brought to one size as photos are in prediction, when they are asked for."""

    def __init__(
        self, folder: Path, pictures: Sequence[ImageFile], image_size: tuple[int, int], crop_pct: float = 1.0
    ) -> None:
        super().__init__(str(folder.absolute()), len(pictures), image_size)
        self._paths = PackedPaths([picture.path for picture in pictures])
        self._preprocessing = Preprocessing(*image_size, crop_pct=crop_pct)
        self._state = hashlib.sha256(
            np.array([picture.changed for picture in pictures], np.int64).tobytes()
        ).hexdigest()

    def state(self) -> str:
        return self._state

    def _read(self, place: int, part: Part | None) -> np.ndarray:
        return self._preprocessing.load(self._path(place), part)

    def _bytes(self, place: int) -> bytes:
        require_regular_file(self._path(place))
        with oserror_as_user_error(self._path(place), "read"):
            return Path(self._path(place)).read_bytes()

    def _name(self, place: int) -> str:
        return self._paths[place]

    def _path(self, place: int) -> str:
        return os.path.join(self.location, self._paths[place])  # noqa: PTH118


class PackedPaths:
    """Many names in little memory: one block of bytes, where a list of a million paths would take a hundred MiB."""

    def __init__(self, names: Sequence[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self._bytes = b"".join(encoded)

    def __getitem__(self, place: int) -> str:
        return os.fsdecode(self._bytes[self._ends[place] : self._ends[place + 1]])


def is_image_folder(folder: Path) -> bool:
    """Whether a folder has folders of pictures, or of folders of pictures, one a class."""
    return any(_classes(part) for part in (folder, *(folder / name for name in ("train", *TEST_NAMES))))


def read_folder(folder: Path, options: ReadOptions) -> Splits:
    """Finds every picture and, in the size given, reads it into memory or sees that it can be read.

    Args:
      folder: see above.
      options: image size, streaming, and the handling of unreadable images.

    Raises:
      UserError: the size or the share cannot be, there is no picture, the splits differ in their classes, pictures
        cannot be read, or memory was asked for that the machine has not.
    """
    sides = [int(side) if isinstance(side, np.integer) else side for side in options.image_size]
    if not is_input_size(sides):
        limits = f"two numbers from 1 to {MAX_SIDE}, of {MAX_INPUT_PIXELS:,} pixels at most"
        raise UserError(f"--image-size must be {limits}, not {options.image_size}")
    image_size = sides[0], sides[1]
    train, test, how = _splits(folder)
    hash_split = how == BY_NAME
    names = _class_names(folder, train, test)
    shares = (train, options.train_crop_pct), (test, options.crop_pct)
    found = [_labelled(folder, pictures, image_size, names, share) for pictures, share in shares]
    splits, left_out = drop_unreadable(folder, found, options)
    return Splits(splits[0], splits[1], f"{folder} ({how}){left_out}", crop_pct=options.crop_pct, hash_split=hash_split)


def in_test(label: str, path: str | Path) -> bool:
    """Whether a picture goes to test, where nobody has said so; it depends on its class and file name alone."""
    digest = hashlib.sha256(f"{label}/{Path(path).name}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") < TEST_SHARE * 2**64


def _splits(folder: Path) -> tuple[list[ImageFile], list[ImageFile], str]:
    """The pictures for training and for test, and in words how they were told apart."""
    parts = [name for name in ("train", *TEST_NAMES) if _classes(folder / name)]
    if not parts:
        every = list(_pictures(folder, folder))
        train, test = ([p for p in every if in_test(p.label, p.path) is wanted] for wanted in (False, True))
        return train, test, BY_NAME
    tests = [name for name in parts if name in TEST_NAMES]
    train = list(_pictures(folder / "train", folder)) if "train" in parts else []
    test = list(_pictures(folder / tests[0], folder)) if tests else []
    how = " and ".join(name for name in ("train", *tests[:1]) if name in parts)
    return train, test, how + (f"; {', '.join(tests[1:])} is not used" if len(tests) > 1 else "")


def _classes(folder: Path) -> list[Path]:
    """Folders in a folder that hold a picture, at any depth; those named like splits are none."""
    if not folder.is_dir():
        return []
    inside = (path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith("."))
    return [path for path in inside if path.name not in ("train", *TEST_NAMES) and next(_files(path), None)]


def _pictures(split: Path, folder: Path) -> Iterator[ImageFile]:
    """Every picture of a split, in the order of their names, with paths below the folder."""
    for label in _classes(split):
        for path in _files(label):
            nbytes = changed = 0
            with suppress(OSError):  # a link to nothing; reading it says so
                about = os.stat(path)  # noqa: PTH116
                nbytes, changed = about.st_size, about.st_mtime_ns
            yield ImageFile(label.name, os.path.relpath(path, folder), nbytes, changed)


def _files(folder: str | Path, above: frozenset[tuple[int, int]] | None = None) -> Iterator[str]:
    """Every picture in a folder and below it, in the order of their names; links that lead to a folder above do not.

    Such a link would go round in a circle, or bring other classes' pictures into this one.
    """
    if above is None:
        above = frozenset(map(_identity_of, Path(folder).resolve().parents))
    identity = _identity_of(folder)
    _, folders, files = next(os.walk(folder), ("", [], []))
    if identity in above:
        return
    for name in sorted(files):
        if os.path.splitext(name)[1].lower() in ENDINGS and not name.startswith("."):  # noqa: PTH122
            yield os.path.join(folder, name)  # noqa: PTH118
    for name in sorted(folders):
        if not name.startswith("."):
            yield from _files(os.path.join(folder, name), above | {identity})  # noqa: PTH118


def _identity_of(folder: str | Path) -> tuple[int, int]:
    about = os.stat(folder)  # noqa: PTH116
    return about.st_dev, about.st_ino


def _class_names(folder: Path, train: Sequence[ImageFile], test: Sequence[ImageFile]) -> tuple[str, ...]:
    ours, theirs = (sorted({picture.label for picture in pictures}) for pictures in (train, test))
    if ours and (is_ood := sorted(set(theirs) - set(ours))):
        raise UserError(f"{folder} has test pictures of classes that training has not: {listed(is_ood)}")
    return tuple(ours or theirs)


def _labelled(
    folder: Path, pictures: Sequence[ImageFile], image_size: tuple[int, int], names: tuple[str, ...], crop_pct: float
) -> Dataset:
    number = {name: index for index, name in enumerate(names)}
    images = ImageFolderImages(folder, pictures, image_size, crop_pct)
    labels = np.array([number[picture.label] for picture in pictures], np.int32)
    return Dataset(images, labels, names, identity=_identity(pictures))


def _identity(pictures: Sequence[ImageFile]) -> str:
    """Tells these from others by classes, names and sizes, before any is read: a copy of the folder has the same."""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(f"{picture.label}\0{picture.path}\0{picture.nbytes}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
