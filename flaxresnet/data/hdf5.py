"""The tutorials' HDF5 layout: `train_set_x`, `train_set_y`, `test_set_x`, `test_set_y` and `list_classes`.

- `*_set_x`: (n, height, width, 3) uint8.
- `*_set_y`: (n,) integers, or (n, classes) one-hot.
- `list_classes`: the class names.

The splits may be in one file or in two. Files are opened read-only. Links to other files, external storage and virtual
arrays are rejected, so that a file cannot make the reader open other files.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from flaxresnet.data.dataset import Dataset, Splits
from flaxresnet.data.decode import MAX_PIXELS
from flaxresnet.data.hdf5_limits import ChunkSizeGuard, chunk_nbytes, unsupported_reason
from flaxresnet.data.integrity_scan import drop_unreadable
from flaxresnet.data.lazy_images import LazyImages
from flaxresnet.data.path_checks import require_regular_file
from flaxresnet.data.preprocess import Part, Preprocessing
from flaxresnet.data.read_options import ReadOptions
from flaxresnet.runtime.errors import UserError

MAX_LABEL_BYTES = 2**30  # of labels or class names; far more than any dataset has
MAX_CLASSES = 100_000  # in a file without list_classes
MAX_CHUNK = 2**30  # bytes of a decompressed chunk; a small file may declare any size
MAX_COMPRESSION = 1100  # bytes for each stored byte; DEFLATE, the usual filter, reaches 1032
MIN_CHECKED_BYTES = 2**26  # smaller arrays may declare more than they store
MAX_LINKS = 16  # soft links in a row
CHUNK_CACHE = 2**26  # bytes; neighboring images of a chunk are decompressed once
CHUNK_IMAGES = 256  # images written at once
MAX_BLOCK_BYTES = 2**26  # bytes of pixels checked at once

EXTERNAL_LINK_MSG = "is stored in another file, which is not opened; store the values in this file"


class Hdf5Images(LazyImages):
    """An array of images in an HDF5 file. Each process opens the file for itself."""

    def __init__(self, path: Path, key: str, shape: tuple[int, ...], guard: ChunkSizeGuard) -> None:
        super().__init__(str(path.absolute()), shape[0], (shape[1], shape[2]))
        self._key = key
        self._guard = guard
        self._description = f"{self.location}: {key}"

    @cached_property
    def _array(self) -> h5py.Dataset:
        return h5py.File(self.location, "r", rdcc_nbytes=CHUNK_CACHE)[self._key]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_array"}

    def load(self, indices: np.ndarray | None = None) -> tuple[np.ndarray, dict[int, str]]:
        """Reads images as `LazyImages.load` does; consecutive ones at once, so that HDF5 reads each chunk once."""
        if indices is None:
            indices = np.arange(len(self))
        stored = indices if self._indices is None else self._indices[indices]
        if len(stored) and np.all(np.diff(stored) == 1):
            start = int(stored[0])
            stop = int(stored[-1]) + 1
            try:
                self._guard.check(self._description, self._array, start, stop)
                return np.asarray(self._array[start:stop]), {}
            except MemoryError:
                raise UserError(
                    f"{self._description} has {self.nbytes / 2**30:.0f} GiB of pixels, which do not fit in memory; "
                    "give --input stream"
                ) from None
            except (OSError, RuntimeError, UserError):  # reading them one by one finds the damaged ones
                pass
        return super().load(indices)

    def read_errors(self, indices: Sequence[int]) -> dict[int, str]:
        errors: dict[int, str] = {}
        step = max(1, MAX_BLOCK_BYTES // math.prod(self.shape[1:]))
        for start in range(0, len(indices), step):
            block = indices[start : start + step]
            _, block_errors = self.load(np.array(block))
            errors |= {block[row]: message for row, message in block_errors.items()}
        return errors

    def mtime_key(self) -> str:
        status = Path(self.location).stat()
        return f"{self._key} {status.st_size} {status.st_mtime_ns}"

    def _read(self, index: int, part: Part | None) -> np.ndarray:
        try:
            self._guard.check(self._description, self._array, index, index + 1)
            image = np.asarray(self._array[index])
        except (OSError, RuntimeError) as error:  # a damaged chunk, or a removed file
            raise UserError(f"{self._description}[{index}] cannot be read ({_first_line(error)})") from error
        return Preprocessing(*image.shape[:2]).load(image, part) if part else image


def read_hdf5(files: Sequence[Path], source: str, options: ReadOptions) -> Splits:
    """Reads the training and the test split from HDF5 files.

    Args:
      files: one or more files in the tutorials' layout.
      source: path of the dataset, for messages.
      options: streaming, and the handling of unreadable images. Images keep their size.

    Raises:
      UserError: if a file cannot be read or is malformed, the files hold neither split or one split twice, the
        splits differ in image size or class names, too many images are unreadable, or the images do not fit in memory.
    """
    paths: dict[str, Path] = {}
    splits: dict[str, Dataset] = {}
    for path in files:
        for name, split in _read_file(path).items():
            if name in splits:
                raise UserError(
                    f"{name}_set_x is in both {paths[name]} and {path}; give one file, or a folder with one of each"
                )
            paths[name] = path
            splits[name] = split
    if not splits:
        raise UserError(
            f"{source} has neither train_set_x nor test_set_x; store images there, and labels in train_set_y and "
            "test_set_y, as in the tutorials' layout"
        )
    if len(splits) == 2:
        _check_agreement(source, splits)
    readable, skipped = drop_unreadable(source, list(splits.values()), options)
    by_name = dict(zip(splits, readable, strict=True))
    return Splits(by_name.get("train"), by_name.get("test"), source + skipped, from_hdf5=True)


def write_hdf5(path: Path, name: str, split: Dataset) -> None:
    """Writes a split to a new file in the tutorials' layout; `name` is "train" or "test"."""
    with h5py.File(path, "w") as file:
        images = file.create_dataset(f"{name}_set_x", split.images.shape, np.uint8)
        for start in range(0, len(split), CHUNK_IMAGES):
            images[start : start + CHUNK_IMAGES] = split.images[start : start + CHUNK_IMAGES]
        file[f"{name}_set_y"] = split.labels.astype(np.int64)
        file["list_classes"] = np.array([class_name.encode() for class_name in split.class_names])


def _read_file(path: Path) -> dict[str, Dataset]:
    require_regular_file(path)
    try:
        with h5py.File(path, "r") as file:
            return {name: _read_split(path, file, name) for name in ("train", "test") if f"{name}_set_x" in file}
    except UserError:
        raise
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:  # by h5py, for damaged and other files
        raise UserError(
            f"{path} cannot be read as HDF5 ({_first_line(error)}); check that it is a complete HDF5 file"
        ) from error


def _read_split(path: Path, file: h5py.File, name: str) -> Dataset:
    """Returns a split with `Hdf5Images`: a small file may declare a huge array, so its pixels are not read yet."""
    images_key = f"{name}_set_x"
    labels_key = f"{name}_set_y"
    description = f"{path}: {images_key}"
    pixels = _find_array(path, file, images_key)
    if pixels.ndim != 4 or pixels.shape[-1] != 3:
        raise UserError(
            f"{description} has shape {pixels.shape}, not (images, height, width, 3); store RGB images in that order"
        )
    if pixels.dtype != np.uint8:
        raise UserError(f"{description} holds {pixels.dtype}, not uint8; store pixels as integers from 0 to 255")
    height, width = pixels.shape[1:3]
    if height * width > MAX_PIXELS:
        raise UserError(f"{description} has images of {height}×{width} pixels; store them with {MAX_PIXELS:,} at most")
    if 0 in pixels.shape:
        raise UserError(f"{description} is empty (shape {pixels.shape}); give at least one image")
    _check_stored(path, images_key, pixels)
    if labels_key not in file:
        raise UserError(f"{path} has {images_key} but not {labels_key}; store the labels there")
    class_names = _read_class_names(path, file)
    images = Hdf5Images(path, images_key, pixels.shape, ChunkSizeGuard(pixels))
    stored_labels = _read_array(path, file, labels_key)
    labels = _to_labels(f"{path}: {labels_key}", stored_labels, len(images), class_names)
    if class_names is not None:
        return Dataset(images, labels, class_names)
    is_one_hot = stored_labels.ndim == 2 and stored_labels.shape[1] > 1
    classes = stored_labels.shape[1] if is_one_hot else int(labels.max()) + 1
    return Dataset(images, labels, tuple(map(str, range(classes))), names_given=False)


def _find_array(path: Path, file: h5py.File, key: str) -> h5py.Dataset:
    """Returns the array at a key, not read yet; raises UserError if it is unsafe or unsupported."""
    item = _resolve(path, file, key)
    if not isinstance(item, h5py.Dataset):
        raise UserError(f"{path}: {key} is a group; store an array there")
    if item.external or item.is_virtual:  # before its shape, which reads the other file
        raise UserError(f"{path}: {key} {EXTERNAL_LINK_MSG}")
    if item.shape is None:
        raise UserError(f"{path}: {key} is an array without a shape; store the values")
    try:
        _ = item.dtype
    except TypeError as error:  # NumPy has no such type, as for times or 16-byte integers
        raise UserError(
            f"{path}: {key} has an unsupported type ({_first_line(error)}); store integers, floats or strings"
        ) from None
    if item.chunks and chunk_nbytes(item) > MAX_CHUNK:
        raise UserError(f"{path}: {key} is in chunks of {item.chunks}; store it in chunks of up to 1 GiB")
    reason = unsupported_reason(item)
    if reason:
        raise UserError(f"{path}: {key} {reason}")
    return item


def _check_stored(path: Path, key: str, array: h5py.Dataset) -> None:
    """Raises UserError if hardly any value is stored: HDF5 reads missing values as zeros, whatever the shape."""
    nbytes = math.prod(array.shape) * array.dtype.itemsize
    stored = array.id.get_storage_size()
    if nbytes > max(MIN_CHECKED_BYTES, MAX_COMPRESSION * stored):
        raise UserError(
            f"{path}: {key} declares {nbytes / 2**30:.1f} GiB, of which {stored:,} bytes are stored; store the values"
        )


def _resolve(path: Path, file: h5py.File, key: str) -> h5py.Group | h5py.Dataset:
    """Returns the item at a key. Follows soft links one by one, to reject an external link before HDF5 opens it."""
    item = file
    names = [key]
    links = 0
    while names:
        if not isinstance(item, h5py.Group):
            raise KeyError(f"{names[0]} is inside an array")
        link = item.get(names[0], getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise UserError(f"{path}: {key} {EXTERNAL_LINK_MSG}")
        if not isinstance(link, h5py.SoftLink):
            item = item[names.pop(0)]  # h5py raises KeyError with the missing name
            continue
        links += 1
        if links > MAX_LINKS:
            raise UserError(f"{path}: {key} is a chain of more than {MAX_LINKS} links; store the values there")
        if link.path.startswith("/"):
            item = file
        names[:1] = [name for name in link.path.split("/") if name not in ("", ".")]
    return item


def _read_array(path: Path, file: h5py.File, key: str) -> np.ndarray:
    array = _find_array(path, file, key)
    if array.nbytes > MAX_LABEL_BYTES:
        raise UserError(f"{path}: {key} has shape {array.shape}; store one label an image, or one name a class")
    _check_stored(path, key, array)
    ChunkSizeGuard(array).check(f"{path}: {key}", array, 0, len(array) if array.shape else 0)
    return np.asarray(array[()])


def _to_labels(description: str, stored: np.ndarray, count: int, class_names: tuple[str, ...] | None) -> np.ndarray:
    """Converts integer or one-hot labels to (n,) int32; raises UserError if they are invalid."""
    if stored.ndim not in (1, 2) or len(stored) != count or 0 in stored.shape:
        raise UserError(f"{description} has shape {stored.shape} for {count} images; store one label an image")
    if stored.dtype.kind == "b":
        stored = stored.astype(np.int64)
    if stored.dtype.kind not in "iuf" or not np.all(np.isfinite(stored)) or np.any(stored != np.floor(stored)):
        raise UserError(f"{description} holds labels that are not integers ({stored.dtype}); number the classes from 0")
    if stored.ndim == 2 and stored.shape[1] > 1:
        if not (np.all((stored == 0) | (stored == 1)) and np.all(stored.sum(axis=1) == 1)):
            raise UserError(f"{description} has shape {stored.shape} but its rows are not one-hot; set one 1 in a row")
        if class_names is not None and stored.shape[1] != len(class_names):
            raise UserError(
                f"{description} is one-hot over {stored.shape[1]} classes, but list_classes names "
                f"{len(class_names)}; store one column a class"
            )
        stored = stored.argmax(axis=1)
    stored = stored.reshape(-1)
    last_class = MAX_CLASSES - 1 if class_names is None else len(class_names) - 1
    invalid = stored[(stored < 0) | (stored > last_class)]  # before the conversion to int32, which could wrap
    if invalid.size:
        raise UserError(
            f"{description} holds the label {int(invalid[0])}; number the classes from 0 to at most {last_class}"
        )
    return stored.astype(np.int32)


def _read_class_names(path: Path, file: h5py.File) -> tuple[str, ...] | None:
    if "list_classes" not in file:
        return None
    values = _read_array(path, file, "list_classes").reshape(-1).tolist()
    names = tuple(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in values)
    if not names or len(set(names)) < len(names):
        raise UserError(f"{path}: list_classes is {names}; name every class once")
    return names


def _check_agreement(source: str, splits: dict[str, Dataset]) -> None:
    """Raises UserError if the splits do not match; gives both the names of one unless both files name the classes."""
    train = splits["train"]
    test = splits["test"]
    if train.image_size != test.image_size:
        raise UserError(
            f"{source}: training images are {train.image_size} pixels (height, width) but test images are "
            f"{test.image_size}; store both in one size"
        )
    if train.names_given and test.names_given:
        if train.class_names != test.class_names:
            raise UserError(
                f"{source}: list_classes is {train.class_names} for training but {test.class_names} for test; "
                "store the same names for both"
            )
        return
    reference = max(train, test, key=lambda split: (split.names_given, len(split.class_names)))
    last_class = len(reference.class_names) - 1
    for name, split in splits.items():
        largest = int(split.labels.max())
        if largest > last_class:
            raise UserError(f"{source}: {name}_set_y holds the label {largest}; the last class is {last_class}")
        splits[name] = replace(split, class_names=reference.class_names, names_given=reference.names_given)


def _first_line(error: Exception) -> str:
    return str(error).strip("'\"").splitlines()[0] if str(error) else type(error).__name__
