"""Reads and writes images in ArrayRecord files: a few large files that support fast random access.

A folder holds
- `index.json`: format, class names, the shards of each split, and the image size (null for image files);
- `train-labels.npy` and `test-labels.npy`: (n,) int32;
- `train-names.json` and `test-names.json`: list of original file names, if the records are image files;
- `train-00000-of-00016.array_record`, …: shards, in which a record is the encoded bytes of an image.
"""

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from flaxresnet.data.dataset import Dataset, Splits
from flaxresnet.data.decode import image_size_of
from flaxresnet.data.integrity_scan import drop_unreadable
from flaxresnet.data.lazy_images import EncodedImages, LazyImages, median_image_size
from flaxresnet.data.path_checks import require_regular_file
from flaxresnet.data.preprocess import Part, Preprocessing, is_input_size
from flaxresnet.data.read_options import ReadOptions
from flaxresnet.runtime.errors import UserError

INDEX = "index.json"
FORMAT = 1
SPLITS = ("train", "test")
OPTIONS = "group_size:1,uncompressed"  # records are read one at a time, and images are compressed already
NO_LABELS = np.zeros(0, np.int32)


class ArrayRecordImages(EncodedImages):
    """Images in shards that are decoded and resized when they are indexed."""

    def __init__(self, folder: Path, shards: list[str], count: int, preprocessing: Preprocessing) -> None:
        super().__init__(str(folder.absolute()), count, (preprocessing.height, preprocessing.width))
        self._shards = shards
        self._preprocessing = preprocessing

    @cached_property
    def records(self) -> Any:
        """The records of all shards in order, as a Grain data source of bytes."""
        from grain.sources import ArrayRecordDataSource

        return ArrayRecordDataSource([str(Path(self.location) / shard) for shard in self._shards])

    def mtime_key(self) -> str:
        return repr([(Path(self.location) / shard).stat().st_mtime_ns for shard in self._shards])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("records", "_names")}

    def _read_bytes(self, index: int) -> bytes:
        try:
            return self.records[index]
        except Exception as error:  # the library raises various types for a damaged shard
            reason = _first_line(error) if str(error) else type(error).__name__
            raise UserError(f"{self._describe(index)} cannot be read ({reason})") from error

    def _read(self, index: int, part: Part | None) -> np.ndarray:
        try:
            return self._preprocessing.load(io.BytesIO(self._read_bytes(index)), part)
        except UserError as error:
            raise UserError(f"{self._describe(index)} cannot be read ({error})") from error

    def _source_size(self, index: int) -> tuple[int, int]:
        return image_size_of(io.BytesIO(self._read_bytes(index)))

    def _name(self, index: int) -> str:
        return str(self._names[index]) if index < len(self._names) else f"record {index}"

    @cached_property
    def _names(self) -> list[Any]:
        """The original file names; read only if a message needs one. Empty for drawn images and in older folders."""
        path = Path(self.location) / f"{self._split}-names.json"
        try:
            require_regular_file(path)
            names = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError):
            return []
        return names if isinstance(names, list) else []

    @property
    def _split(self) -> str:
        return self._shards[0].partition("-")[0]

    def _describe(self, index: int) -> str:
        return f"record {index} of the {self._split} split of {self.location} ({self._name(index)})"


def is_array_record_dir(folder: Path) -> bool:
    """Returns whether a folder has the files that `write_records` writes."""
    return (folder / INDEX).is_file() and next(folder.glob("*.array_record"), None) is not None


def read_records(folder: Path, options: ReadOptions) -> Splits:
    """Opens a folder of ArrayRecord files.

    Args:
      folder: see the module's docstring.
      options: image size (unless the index gives one), streaming, and the handling of unreadable images.

    Raises:
      UserError: if the folder is damaged or has a newer format, too many images are unreadable, or the images do not
        fit in memory.
    """
    try:
        index = json.loads((folder / INDEX).read_text())
        if index["format"] > FORMAT:
            raise UserError(
                f"{folder / INDEX} has format {index['format']}, but this version reads up to {FORMAT}; "
                "update flaxresnet, or make the folder again"
            )
        if index["image_size"]:
            options = replace(options, image_size=tuple(index["image_size"]), crop_pct=1.0)
        if not is_input_size(options.image_size):
            raise ValueError(f"image_size is {options.image_size}")
        preprocessing = Preprocessing(*options.image_size, crop_pct=options.train_crop_pct, resize_mode=options.resize)
        train = _open_split(folder, "train", index, preprocessing)
        test = _open_split(folder, "test", index, replace(preprocessing, crop_pct=options.crop_pct))
        source_size = median_image_size([train.images, test.images])
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {_first_line(error)}"
        raise UserError(f"{folder} is damaged ({reason}); make it again") from error
    splits, skipped = drop_unreadable(folder, [train, test], options)
    source = f"{folder} (ArrayRecord){skipped}"
    return Splits(splits[0], splits[1], source, crop_pct=options.crop_pct, source_size=source_size)


def _open_split(folder: Path, name: str, index: dict[str, Any], preprocessing: Preprocessing) -> Dataset:
    """Returns a split, empty if the folder has none. Raises ValueError and others for a damaged folder."""
    class_names = tuple(map(str, index["class_names"]))
    shards = index["shards"].get(name, [])
    for shard in shards:
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise UserError(f"{folder / INDEX} names {shard!r}, which is not a file beside it; make the folder again")
    labels = _read_labels(folder / f"{name}-labels.npy") if shards else NO_LABELS
    if labels.ndim != 1 or labels.dtype != np.int32 or not np.all((labels >= 0) & (labels < len(class_names))):
        raise ValueError(f"{name}-labels.npy holds {labels.dtype} {labels.shape}, not a class for each image")
    sizes = [(shard, (folder / shard).stat().st_size) for shard in shards]
    images = ArrayRecordImages(folder, shards, len(labels), preprocessing)
    if shards and len(images.records) != len(labels):
        raise ValueError(f"{len(images.records)} {name} images, but {len(labels)} labels")
    return Dataset(images, labels, class_names, identity=hashlib.sha256(repr(sizes).encode()).hexdigest())


def _read_labels(path: Path) -> np.ndarray:
    require_regular_file(path)
    try:
        return np.load(path, allow_pickle=False)
    except Exception as error:  # NumPy raises various types, such as MemoryError for the declared shape
        raise ValueError(f"{path.name} cannot be read, {type(error).__name__}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "no reason given")


def write_records(folder: Path, splits: Splits, shards: int) -> Iterator[str]:
    """Writes splits as ArrayRecord files, and yields a line for the user after each split.

    Copies the bytes of images that are files; encodes all others as PNG.

    Args:
      folder: an existing folder without these files.
      splits: the images to write.
      shards: number of files for each split, at least 1.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    index: dict[str, Any] = {"format": FORMAT, "class_names": [], "image_size": None, "shards": {}}
    for name in SPLITS:
        split = getattr(splits, name)
        if split is None:
            continue
        shard_names = [f"{name}-{shard:05}-of-{shards:05}.array_record" for shard in range(shards)]
        bounds = np.linspace(0, len(split), shards + 1, dtype=int)
        for shard_name, start, stop in zip(shard_names, bounds[:-1], bounds[1:], strict=True):
            writer = ArrayRecordWriter(str(folder / shard_name), OPTIONS)
            for row in range(start, stop):
                writer.write(encode(split.images, row))
            writer.close()
        np.save(folder / f"{name}-labels.npy", split.labels.astype(np.int32))
        if isinstance(split.images, EncodedImages):
            file_names = [split.images.name(row) for row in range(len(split))]
            (folder / f"{name}-names.json").write_text(json.dumps(file_names, indent=0))
        else:
            index["image_size"] = split.image_size
        index["class_names"] = list(split.class_names)
        index["shards"][name] = shard_names
        yield f"{folder}: {len(split)} {name} images in {shards} shards"
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")  # last: it marks the folder as complete


def encode(images: np.ndarray | LazyImages, index: int) -> bytes:
    """Returns an image as the bytes of its file, or as PNG if it has no file."""
    if isinstance(images, EncodedImages):
        return images.encoded(index)
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(images[index]).save(file, "PNG")
    return file.getvalue()
