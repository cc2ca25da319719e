"""Reads images from folders, one for each class: `cat/1.jpg`, or `train/cat/1.jpg` and `test/cat/2.jpg`.

Splits may be folders named train and test, or similar (see `split_folders.py`). Without such folders, a hash of class
and file name assigns each image to a split, one in five to test. An image stays in its split if others are added or
removed, except in a class with few images, of which at least one is for training and, if there are two, one for test.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from flaxresnet.data.dataset import Dataset, Splits
from flaxresnet.data.decode import image_size_of
from flaxresnet.data.image_files import find_images, is_run_folder
from flaxresnet.data.integrity_scan import drop_unreadable
from flaxresnet.data.lazy_images import EncodedImages, median_image_size
from flaxresnet.data.path_checks import require_regular_file
from flaxresnet.data.preprocess import MAX_INPUT_PIXELS, MAX_SIDE, Part, Preprocessing, is_input_size
from flaxresnet.data.read_options import ReadOptions
from flaxresnet.data.split_folders import class_folders, find_layout, subfolders
from flaxresnet.runtime.errors import UserError, listed, oserror_as_user_error

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

    def __init__(self, folder: Path, files: Sequence[ImageFile], preprocessing: Preprocessing) -> None:
        super().__init__(str(folder.absolute()), len(files), (preprocessing.height, preprocessing.width))
        self._paths = PackedPaths([file.path for file in files])
        self._preprocessing = preprocessing
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

    def _source_size(self, index: int) -> tuple[int, int]:
        return image_size_of(self._path(index))

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
    return bool(class_folders(folder))


def read_folder(folder: Path, options: ReadOptions) -> Splits:
    """Finds every image, and reads it into memory or checks that it can be read.

    Args:
      folder: see the module's docstring.
      options: image size, streaming, and the handling of unreadable images.

    Returns:
      The splits, with images of shape (*image_size, 3). The classes are the sorted names of the training
        folders, or of the test folders if there is no training split.

    Raises:
      UserError: if the image size is out of range, the folders look like splits but have other names, the test split
        has a class that training lacks, too many images are unreadable, or the images do not fit in memory.
    """
    image_size = _check_image_size(options.image_size)
    train_preprocessing = Preprocessing(*image_size, crop_pct=options.train_crop_pct, resize_mode=options.resize)
    test_preprocessing = replace(train_preprocessing, crop_pct=options.crop_pct)
    layout = find_layout(folder)
    other_files: Counter[str] = Counter()
    notes = list(layout.notes)
    if layout.has_splits:
        train = _image_files(layout.train, folder, other_files, notes)
        test = _image_files(layout.test, folder, other_files, notes)
        used = [str(path.relative_to(folder)) for path in (layout.train, layout.test) if path]
        origin = " and ".join(used)
    else:
        train, test = _hash_split(_image_files(folder, folder, other_files, notes), notes)
        origin = HASH_SPLIT
    if other_files:
        counts = listed([f"{count} {suffix or 'without a suffix'}" for suffix, count in other_files.most_common()])
        notes.append(f"{sum(other_files.values()):,} files in the class folders are not images: {counts}")
    class_names = _class_names(folder, train, test)
    datasets = [
        _label_images(folder, train, class_names, train_preprocessing),
        _label_images(folder, test, class_names, test_preprocessing),
    ]
    source_size = median_image_size([dataset.images for dataset in datasets])
    splits, skipped = drop_unreadable(folder, datasets, options)
    source = f"{folder} ({origin}){skipped}"
    return Splits(
        splits[0],
        splits[1],
        source,
        crop_pct=options.crop_pct,
        hash_split=not layout.has_splits,
        notes=tuple(notes),
        source_size=source_size,
    )


def name_hash(label: str, path: str | Path) -> float:
    """Returns a number in [0, 1) that depends on class and file name only."""
    digest = hashlib.sha256(f"{label}/{Path(path).name}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _check_image_size(image_size: tuple[int, int]) -> tuple[int, int]:
    size = [int(side) if isinstance(side, np.integer) else side for side in image_size]
    if not is_input_size(size):
        limits = f"two numbers from 1 to {MAX_SIDE}, of {MAX_INPUT_PIXELS:,} pixels at most"
        raise UserError(f"--image-size must be {limits}, not {image_size}")
    return size[0], size[1]


def _hash_split(files: list[ImageFile], notes: list[str]) -> tuple[list[ImageFile], list[ImageFile]]:
    """Returns the training and the test files: in each class, those with low hashes are for test."""
    by_class: dict[str, list[ImageFile]] = {}
    for file in files:
        by_class.setdefault(file.label, []).append(file)
    in_test: set[str] = set()
    for label, members in by_class.items():
        hashes = {file.path: name_hash(label, file.path) for file in members}
        ordered = sorted(hashes, key=hashes.__getitem__)
        if len(ordered) == 1:
            notes.append(f"the class {label} has one image, so it has no test image; add images, or remove the class")
            continue
        num_test = sum(value < TEST_FRACTION for value in hashes.values())
        in_test.update(ordered[: min(max(num_test, 1), len(ordered) - 1)])
    train = [file for file in files if file.path not in in_test]
    test = [file for file in files if file.path in in_test]
    return train, test


def _image_files(split: Path | None, folder: Path, other_files: Counter[str], notes: list[str]) -> list[ImageFile]:
    """Returns the images of a split, class by class, with paths relative to `folder`."""
    files: list[ImageFile] = []
    if split is None:
        return files
    for class_folder in subfolders(split):
        is_empty = True
        for path in find_images(class_folder, other_files):
            is_empty = False
            nbytes = 0
            mtime_ns = 0
            with suppress(OSError):  # a broken link; reading it reports the error
                status = os.stat(path)  # noqa: PTH116
                nbytes = status.st_size
                mtime_ns = status.st_mtime_ns
            files.append(ImageFile(class_folder.name, os.path.relpath(path, folder), nbytes, mtime_ns))
        holds_runs = any(path.is_dir() and is_run_folder(path) for path in class_folder.iterdir())
        if is_empty and not holds_runs:
            notes.append(f"the folder {class_folder} has no images, so it is not a class")
    return files


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
    folder: Path, files: Sequence[ImageFile], class_names: tuple[str, ...], preprocessing: Preprocessing
) -> Dataset:
    class_index = {name: index for index, name in enumerate(class_names)}
    labels = np.array([class_index[file.label] for file in files], np.int32)
    images = ImageFolderImages(folder, files, preprocessing)
    return Dataset(images, labels, class_names, identity=_identity(files))


def _identity(files: Sequence[ImageFile]) -> str:
    """Returns a hash of classes, paths and sizes. Reads no file; a copy of the folder has the same hash."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.label}\0{file.path}\0{file.nbytes}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
