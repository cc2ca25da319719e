"""The tutorials' HDF5 layout: `train_set_x`, `train_set_y`, `test_set_x`, `test_set_y` and `list_classes`.

`*_set_x` is (n, height, width, 3) uint8; `*_set_y` is (n,) integers or (n, classes) one-hot; `list_classes` names the
classes. The splits may be in one file or in two. Files are opened read-only. What they only point to
is not looked into: links into other files, external storage and virtual arrays are refused.
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

MAX_LABEL_BYTES = 2**30  # of labels or names; far more than any data set has
MAX_CLASSES = 100_000  # where list_classes does not say how many there are
MAX_CHUNK = 2**30  # bytes, once unpacked; a small file may declare any
MAX_PACKED = 1100  # bytes that one stored byte may stand for; deflate, the usual, reaches 1032
MIN_PACKED = 2**26  # bytes of an array from which that is looked at
MAX_LINKS = 16  # that lead from one to the next
CHUNK_CACHE = 2**26  # bytes; images of one chunk that are asked for one after the other are read once
CHUNK_IMAGES = 256  # images that are written together
READ_AT_ONCE = 2**26  # bytes of pixels that are looked at together

EXTERNAL_LINK_MSG = "lies in another file, which is not looked into; store the values themselves"


class Hdf5Images(LazyImages):
    """An array of images in an HDF5 file, which every process opens for itself."""

    def __init__(self, path: Path, key: str, shape: tuple[int, ...], suspects: ChunkSizeGuard) -> None:
        super().__init__(str(path.absolute()), shape[0], (shape[1], shape[2]))
        self._key = key
        self._suspects = suspects  # chunks that are looked at before the library unpacks them

    @cached_property
    def _array(self) -> h5py.Dataset:
        return h5py.File(self.location, "r", rdcc_nbytes=CHUNK_CACHE)[self._key]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_array"}

    def load(self, places: np.ndarray | None = None) -> tuple[np.ndarray, dict[int, str]]:
        """As of all stored images; neighbours in one piece, for which HDF5 reads each chunk once."""
        places = np.arange(len(self)) if places is None else places
        at = places if self._places is None else self._places[places]
        if len(at) and np.all(np.diff(at) == 1):
            try:
                self._suspects.check(f"{self.location}: {self._key}", self._array, int(at[0]), int(at[-1]) + 1)
                return np.asarray(self._array[at[0] : at[-1] + 1]), {}
            except MemoryError:
                raise UserError(
                    f"{self.location}: {self._key} has {self.nbytes / 2**30:.0f} GiB of pixels, which do not fit in "
                    "memory; give --input stream"
                ) from None
            except (OSError, RuntimeError, UserError):  # one by one they say which of them are damaged
                pass
        return super().load(places)

    def unreadable(self, places: Sequence[int]) -> dict[int, str]:
        found, step = dict[int, str](), max(1, READ_AT_ONCE // int(np.prod(self.shape[1:])))
        for start in range(0, len(places), step):
            some = places[start : start + step]
            found |= {some[row]: wrong for row, wrong in self.load(np.array(some))[1].items()}
        return found

    def state(self) -> str:
        about = Path(self.location).stat()
        return f"{self._key} {about.st_size} {about.st_mtime_ns}"

    def _read(self, place: int, part: Part | None) -> np.ndarray:
        try:
            self._suspects.check(f"{self.location}: {self._key}", self._array, place, place + 1)
            image = np.asarray(self._array[place])
        except (OSError, RuntimeError) as error:  # a damaged chunk, a file that is gone
            raise UserError(f"{self.location}: {self._key}[{place}] cannot be read ({_first_line(error)})") from error
        return Preprocessing(*image.shape[:2]).load(image, part) if part else image


def read_hdf5(files: Sequence[Path], source: str, options: ReadOptions) -> Splits:
    """Reads the training and the test split from one or more files.

    Args:
      files: at least one.
      source: where they come from, as words.
      options: streaming, and the handling of unreadable images. Images keep their size.

    Raises:
      UserError: a file or images in it cannot be read, a split is there twice, none is there, a split is malformed,
        the two differ in image size or class names, or memory was asked for that the machine has not.
    """
    found: dict[str, tuple[Path, Dataset]] = {}
    for path in files:
        for name, split in _read_file(path).items():
            if name in found:
                raise UserError(
                    f"{name}_set_x is in both {found[name][0]} and {path}; give one file, or a folder with one of each"
                )
            found[name] = path, split
    if not found:
        raise UserError(
            f"{source} has neither train_set_x nor test_set_x; the tutorials' layout keeps images there "
            "and labels in train_set_y and test_set_y"
        )
    splits = {name: split for name, (_, split) in found.items()}
    if len(splits) == 2:
        _check_agreement(source, splits)
    kept, left_out = drop_unreadable(source, list(splits.values()), options)
    whole = dict(zip(splits, kept, strict=True))
    return Splits(train=whole.get("train"), test=whole.get("test"), source=source + left_out)


def write_hdf5(path: Path, name: str, split: Dataset) -> None:
    """Writes one split (`name` is "train" or "test") as a file in the tutorials' layout."""
    with h5py.File(path, "w") as file:
        images = file.create_dataset(f"{name}_set_x", split.images.shape, np.uint8)
        for start in range(0, len(split), CHUNK_IMAGES):
            images[start : start + CHUNK_IMAGES] = split.images[start : start + CHUNK_IMAGES]
        file[f"{name}_set_y"] = split.labels.astype(np.int64)
        file["list_classes"] = np.array([c.encode() for c in split.class_names])


def _read_file(path: Path) -> dict[str, Dataset]:
    require_regular_file(path)
    try:
        with h5py.File(path, "r") as file:
            return {name: _read_split(path, file, name) for name in ("train", "test") if f"{name}_set_x" in file}
    except UserError:
        raise
    except (
        OSError,
        KeyError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:  # as h5py raises for foreign, truncated and damaged files
        reason = _first_line(error)
        raise UserError(f"{path} cannot be read as HDF5 ({reason}); is it whole, and an HDF5 file?") from error


def _read_split(path: Path, file: h5py.File, name: str) -> Dataset:
    where = f"{path}: {name}_set_x"
    x = _item(path, file, f"{name}_set_x")  # not read yet: a small file may declare a huge array
    if x.ndim != 4 or x.shape[-1] != 3:
        raise UserError(f"{where} has shape {x.shape}, not (images, height, width, 3); store RGB images in that order")
    if x.dtype != np.uint8:
        raise UserError(f"{where} holds {x.dtype}, not uint8; store pixels as whole numbers from 0 to 255")
    if x.shape[1] * x.shape[2] > MAX_PIXELS:
        size = f"{x.shape[1]}×{x.shape[2]}"
        raise UserError(f"{where} has images of {size} pixels; store them with {MAX_PIXELS:,} at most")
    if 0 in x.shape:
        raise UserError(f"{where} is empty (shape {x.shape}); give at least one image")
    _check_stored(path, f"{name}_set_x", x)
    if f"{name}_set_y" not in file:
        raise UserError(f"{path} has {name}_set_x but not {name}_set_y; store the labels there")
    names = _class_names(path, file)
    images = Hdf5Images(path, f"{name}_set_x", x.shape, ChunkSizeGuard(x))
    y = _array(path, file, f"{name}_set_y")
    labels = _labels(f"{path}: {name}_set_y", y, len(images), names)
    classes = y.shape[1] if y.ndim == 2 and y.shape[1] > 1 else int(labels.max()) + 1
    return Dataset(images, labels, names or tuple(map(str, range(classes))), names is not None)


def _item(path: Path, file: h5py.File, key: str) -> h5py.Dataset:
    item = _found(path, file, key)
    if not isinstance(item, h5py.Dataset):
        raise UserError(f"{path}: {key} is a group, not an array")
    if item.external or item.is_virtual:  # before its shape, which may be that of what lies there
        raise UserError(f"{path}: {key} {EXTERNAL_LINK_MSG}")
    if item.shape is None:
        raise UserError(f"{path}: {key} is an array without a shape; store the values")
    try:
        _ = item.dtype
    except TypeError as error:  # a type that NumPy has not, such as times or integers of 16 bytes
        raise UserError(f"{path}: {key} is of a type that cannot be read ({_first_line(error)})") from None
    if item.chunks and chunk_nbytes(item) > MAX_CHUNK:
        raise UserError(f"{path}: {key} is in chunks of {item.chunks}; store it in chunks of up to 1 GiB")
    if wrong := unsupported_reason(item):
        raise UserError(f"{path}: {key} {wrong}")
    return item


def _check_stored(path: Path, key: str, item: h5py.Dataset) -> None:
    """Raises UserError where hardly any of the values are there: what was never written reads as zeros, without end."""
    nbytes, stored = math.prod(item.shape) * item.dtype.itemsize, item.id.get_storage_size()
    if nbytes > max(MIN_PACKED, MAX_PACKED * stored):
        raise UserError(
            f"{path}: {key} declares {nbytes / 2**30:.1f} GiB, of which {stored:,} bytes are stored; store the values"
        )


def _found(path: Path, file: h5py.File, key: str) -> h5py.Group | h5py.Dataset:
    """What lies at a key, link by link: one into another file is refused before that file is opened."""
    here, names, links = file, [key], 0
    while names:
        if not isinstance(here, h5py.Group):
            raise KeyError(f"{names[0]} is looked for in an array")
        link = here.get(names[0], getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise UserError(f"{path}: {key} {EXTERNAL_LINK_MSG}")
        if not isinstance(link, h5py.SoftLink):
            here = here[names.pop(0)]  # the library says what is missing
            continue
        if (links := links + 1) > MAX_LINKS:
            raise UserError(f"{path}: {key} is a link to a link, more than {MAX_LINKS} times; store the values there")
        here = file if link.path.startswith("/") else here
        names[:1] = [name for name in link.path.split("/") if name not in ("", ".")]
    return here


def _array(path: Path, file: h5py.File, key: str) -> np.ndarray:
    item = _item(path, file, key)
    if item.nbytes > MAX_LABEL_BYTES:
        raise UserError(f"{path}: {key} has shape {item.shape}; give one label an image, one name a class")
    _check_stored(path, key, item)
    ChunkSizeGuard(item).check(f"{path}: {key}", item, 0, len(item) if item.shape else 0)
    return np.asarray(item[()])


def _labels(where: str, y: np.ndarray, count: int, names: tuple[str, ...] | None) -> np.ndarray:
    """Integer or one-hot labels as (n,) int32, checked."""
    if y.ndim not in (1, 2) or len(y) != count or 0 in y.shape:
        raise UserError(f"{where} has shape {y.shape} for {count} images; give one label an image")
    y = y.astype(np.int64) if y.dtype.kind == "b" else y
    if y.dtype.kind not in "iuf" or not np.all(np.isfinite(y)) or np.any(y != np.floor(y)):
        raise UserError(f"{where} holds labels that are not whole numbers ({y.dtype}); number the classes from 0")
    if y.ndim == 2 and y.shape[1] > 1:
        if not (np.all((y == 0) | (y == 1)) and np.all(y.sum(axis=1) == 1)):
            raise UserError(f"{where} has shape {y.shape} but its rows are not one-hot; set one 1 in each row")
        if names is not None and y.shape[1] != len(names):
            raise UserError(f"{where} is one-hot over {y.shape[1]} classes, but list_classes names {len(names)}")
        y = y.argmax(axis=1)
    y = y.reshape(-1)
    top = len(names) - 1 if names is not None else MAX_CLASSES - 1
    wrong = y[(y < 0) | (y > top)]  # before any conversion, which could wrap
    if wrong.size:
        classes = (
            f"the {len(names)} classes are 0 to {top}"
            if names is not None
            else f"number the classes from 0 to at most {top}"
        )
        raise UserError(f"{where} holds the label {int(wrong[0])}; {classes}")
    return y.astype(np.int32)


def _class_names(path: Path, file: h5py.File) -> tuple[str, ...] | None:
    if "list_classes" not in file:
        return None
    values = _array(path, file, "list_classes").reshape(-1).tolist()
    names = tuple(v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values)
    if not names or len(set(names)) < len(names):
        raise UserError(f"{path}: list_classes is {names}; name every class once")
    return names


def _check_agreement(source: str, splits: dict[str, Dataset]) -> None:
    train, test = splits["train"], splits["test"]
    if train.image_size != test.image_size:
        raise UserError(
            f"{source}: training images are {train.image_size} pixels (height, width) but test images are "
            f"{test.image_size}; store both in one size"
        )
    if train.class_names != test.class_names and train.names_given and test.names_given:
        raise UserError(f"{source}: list_classes is {train.class_names} for training but {test.class_names} for test")
    if not train.names_given or not test.names_given:
        longest = max(train, test, key=lambda s: (s.names_given, len(s.class_names))).class_names
        for name, split in splits.items():
            if int(split.labels.max()) >= len(longest):
                raise UserError(
                    f"{source}: {name}_set_y holds the label {int(split.labels.max())}; "
                    f"the {len(longest)} classes are 0 to {len(longest) - 1}"
                )
            splits[name] = replace(split, class_names=longest, names_given=train.names_given or test.names_given)


def _first_line(error: Exception) -> str:
    return str(error).strip("'\"").splitlines()[0] if str(error) else type(error).__name__
