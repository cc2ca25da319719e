"""Reads images from folders, one for each class: `cat/1.jpg`, or `train/cat/1.jpg` and `test/cat/2.jpg`.

Splits may be folders named train and test (or val, valid, validation). Without such folders, a hash of class and file
name assigns each image to a split, one in five to test. An image stays in its split if others are added or removed.
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

# Paths are strings here: a million `Path` objects take seconds to create and a GiB of memory.
IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".jp2"),
    *(".avif", ".heic", ".heif", ".hif"),
}
TEST_NAMES = ("test", "val", "valid", "validation")  # the first of them that exists is the test split
TEST_FRACTION = 0.2
HASH_SPLIT = f"split by the hash of each name, {TEST_FRACTION:.0%} for test"


@dataclass(frozen=True)
class ImageFile:
    """An image file in a class folder.

    Attributes:
      label: name of the class.
      path: relative to the dataset's folder.
      nbytes: size of the file; 0 if it is a broken link.
      mtime_ns: time of the last change, nanoseconds since the epoch; 0 if it is a broken link.
    """

    label: str
    path: str
    nbytes: int
    mtime_ns: int


class ImageFolderImages(EncodedImages):
    """Image files that are decoded and resized, as in prediction, when they are indexed."""

    def __init__(
        self, folder: Path, files: Sequence[ImageFile], image_size: tuple[int, int], crop_pct: float = 1.0
    ) -> None:
        super().__init__(str(folder.absolute()), len(files), image_size)
        self._paths = PackedPaths([file.path for file in files])
        self._preprocessing = Preprocessing(*image_size, crop_pct=crop_pct)
        mtimes = np.array([file.mtime_ns for file in files], np.int64)
        self._mtime_key = hashlib.sha256(mtimes.tobytes()).hexdigest()

    def mtime_key(self) -> str:
        return self._mtime_key

    def _read(self, index: int, part: Part | None) -> np.ndarray:
        return self._preprocessing.load(self._path(index), part)

    def _read_bytes(self, index: int) -> bytes:
        path = self._path(index)
        require_regular_file(path)
        with oserror_as_user_error(path, "read"):
            return Path(path).read_bytes()

    def _name(self, index: int) -> str:
        return self._paths[index]

    def _path(self, index: int) -> str:
        return os.path.join(self.location, self._paths[index])  # noqa: PTH118


class PackedPaths:
    """Paths in one block of bytes. A list of a million strings would take 100 MiB more."""

    def __init__(self, paths: Sequence[str]) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self._bounds = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self._bytes = b"".join(encoded)

    def __getitem__(self, index: int) -> str:
        return os.fsdecode(self._bytes[self._bounds[index] : self._bounds[index + 1]])


def is_image_folder(folder: Path) -> bool:
    """Returns whether a folder, or a split in it, has a subfolder with an image."""
    return bool(_class_folders(folder) or _present_splits(folder))


def read_folder(folder: Path, options: ReadOptions) -> Splits:
    """Finds every image, and reads it into memory or checks that it can be read.

    Args:
      folder: see the module's docstring.
      options: image size, streaming, and the handling of unreadable images.

    Returns:
      The splits, with images of shape (*image_size, 3). The classes are the sorted names of the training folders.

    Raises:
      UserError: if the image size is out of range, the test split has a class that training lacks, too many images
        are unreadable, or the images do not fit in memory.
    """
    image_size = _check_image_size(options.image_size)
    present = _present_splits(folder)
    if present:
        train, test, origin = _read_named_splits(folder, present)
    else:
        train, test = _read_hash_splits(folder)
        origin = HASH_SPLIT
    class_names = _class_names(folder, train, test)
    datasets = [
        _label_images(folder, train, image_size, class_names, options.train_crop_pct),
        _label_images(folder, test, image_size, class_names, options.crop_pct),
    ]
    splits, skipped = drop_unreadable(folder, datasets, options)
    source = f"{folder} ({origin}){skipped}"
    return Splits(splits[0], splits[1], source, crop_pct=options.crop_pct, hash_split=not present)


def is_hashed_to_test(label: str, path: str | Path) -> bool:
    """Returns whether an image of a folder without splits belongs to test; depends on class and file name only."""
    digest = hashlib.sha256(f"{label}/{Path(path).name}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") < TEST_FRACTION * 2**64


def _check_image_size(image_size: tuple[int, int]) -> tuple[int, int]:
    size = [int(side) if isinstance(side, np.integer) else side for side in image_size]
    if not is_input_size(size):
        limits = f"two numbers from 1 to {MAX_SIDE}, of {MAX_INPUT_PIXELS:,} pixels at most"
        raise UserError(f"--image-size must be {limits}, not {image_size}")
    return size[0], size[1]


def _present_splits(folder: Path) -> list[str]:
    return [name for name in ("train", *TEST_NAMES) if _class_folders(folder / name)]


def _read_named_splits(folder: Path, present: list[str]) -> tuple[list[ImageFile], list[ImageFile], str]:
    """Returns the training files, the test files, and a description of the folders used."""
    used = present[:2] if present[0] == "train" else present[:1]
    files = {name: list(_image_files(folder / name, folder)) for name in used}
    origin = " and ".join(used)
    unused = present[len(used) :]
    if unused:
        origin += f"; {', '.join(unused)} is not used"
    train = files.pop("train", [])
    test = next(iter(files.values()), [])
    return train, test, origin


def _read_hash_splits(folder: Path) -> tuple[list[ImageFile], list[ImageFile]]:
    train: list[ImageFile] = []
    test: list[ImageFile] = []
    for file in _image_files(folder, folder):
        split = test if is_hashed_to_test(file.label, file.path) else train
        split.append(file)
    return train, test


def _class_folders(folder: Path) -> list[Path]:
    """Returns the subfolders, sorted, that hold an image at any depth and are not named like splits."""
    if not folder.is_dir():
        return []
    subfolders = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    return [path for path in subfolders if path.name not in ("train", *TEST_NAMES) and next(_walk(path), None)]


def _image_files(split: Path, folder: Path) -> Iterator[ImageFile]:
    """Yields the images of a split's classes, sorted by path, with paths relative to `folder`."""
    for class_folder in _class_folders(split):
        for path in _walk(class_folder):
            nbytes = 0
            mtime_ns = 0
            with suppress(OSError):  # a broken link; reading it reports the error
                status = os.stat(path)  # noqa: PTH116
                nbytes = status.st_size
                mtime_ns = status.st_mtime_ns
            yield ImageFile(class_folder.name, os.path.relpath(path, folder), nbytes, mtime_ns)


def _walk(folder: str | Path, parents: frozenset[tuple[int, int]] | None = None) -> Iterator[str]:
    """Yields the images in a folder and its subfolders, sorted by path.

    Follows links, except to a folder's own parents: such a link is a cycle, or adds the images of other classes.
    """
    if parents is None:
        parents = frozenset(map(_inode, Path(folder).resolve().parents))
    inode = _inode(folder)
    if inode in parents:
        return
    _, subfolders, files = next(os.walk(folder), ("", [], []))
    for name in sorted(files):
        if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith("."):  # noqa: PTH122
            yield os.path.join(folder, name)  # noqa: PTH118
    for name in sorted(subfolders):
        if not name.startswith("."):
            yield from _walk(os.path.join(folder, name), parents | {inode})  # noqa: PTH118


def _inode(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)  # noqa: PTH116
    return status.st_dev, status.st_ino


def _class_names(folder: Path, train: Sequence[ImageFile], test: Sequence[ImageFile]) -> tuple[str, ...]:
    train_names = sorted({file.label for file in train})
    test_names = sorted({file.label for file in test})
    if not train_names:
        return tuple(test_names)
    unknown = sorted(set(test_names) - set(train_names))
    if unknown:
        raise UserError(
            f"{folder} has test images of classes without training images: {listed(unknown)}; "
            "add training images, or remove these test images"
        )
    return tuple(train_names)


def _label_images(
    folder: Path, files: Sequence[ImageFile], image_size: tuple[int, int], class_names: tuple[str, ...], crop_pct: float
) -> Dataset:
    class_index = {name: index for index, name in enumerate(class_names)}
    labels = np.array([class_index[file.label] for file in files], np.int32)
    images = ImageFolderImages(folder, files, image_size, crop_pct)
    return Dataset(images, labels, class_names, identity=_identity(files))


def _identity(files: Sequence[ImageFile]) -> str:
    """Returns a hash of classes, paths and sizes. Reads no file; a copy of the folder has the same hash."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.label}\0{file.path}\0{file.nbytes}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
