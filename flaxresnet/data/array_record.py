"""Pictures in ArrayRecord files, which are read at random as fast as in order: a few large files for many small ones.

A folder holds `index.json`, the labels, `train-labels.npy` and `test-labels.npy`, (n,) int32, and the pictures in
shards, `train-00000-of-00016.array_record`, …: a record is the bytes of a picture, as a file would have them. What the
files were called is in `train-names.json`, a list, where the pictures come from files.
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
from flaxresnet.data.integrity_scan import drop_unreadable
from flaxresnet.data.lazy_images import EncodedImages, LazyImages
from flaxresnet.data.path_checks import require_regular_file
from flaxresnet.data.preprocess import Part, Preprocessing, is_input_size
from flaxresnet.data.read_options import ReadOptions
from flaxresnet.runtime.errors import UserError

INDEX = "index.json"
FORMAT = 1
SPLITS = ("train", "test")
OPTIONS = "group_size:1,uncompressed"  # one record at a time is asked for, and pictures are compressed already
NO_LABELS = np.zeros(0, np.int32)


class ArrayRecordImages(EncodedImages):
    """Pictures in shards, decoded and brought to one size when they are asked for."""

    def __init__(
        self, folder: Path, shards: list[str], count: int, image_size: tuple[int, int], crop_pct: float = 1.0
    ) -> None:
        super().__init__(str(folder.absolute()), count, image_size)
        self._shards, self._preprocessing = shards, Preprocessing(*image_size, crop_pct=crop_pct)

    @cached_property
    def _records(self) -> Any:
        from grain.sources import ArrayRecordDataSource

        return ArrayRecordDataSource([str(Path(self.location) / shard) for shard in self._shards])

    def state(self) -> str:
        return repr([(Path(self.location) / shard).stat().st_mtime_ns for shard in self._shards])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_records", "_names")}

    def _bytes(self, place: int) -> bytes:
        try:
            return self._records[place]
        except Exception as error:  # whatever a damaged shard makes the library raise
            reason = _first_line(error) if str(error) else type(error).__name__
            raise UserError(f"{self._where(place)} cannot be read ({reason})") from error

    def _read(self, place: int, part: Part | None) -> np.ndarray:
        try:
            return self._preprocessing.load(io.BytesIO(self._bytes(place)), part)
        except UserError as error:
            raise UserError(f"{self._where(place)} cannot be read ({error})") from error

    def _name(self, place: int) -> str:
        return str(self._names[place]) if place < len(self._names) else f"record {place}"

    @cached_property
    def _names(self) -> list[Any]:
        path = Path(self.location) / f"{self._split}-names.json"
        try:  # read where a name is asked for, which is seldom
            require_regular_file(path)
            names = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError):  # there is none in folders of before, nor of drawn pictures
            return []
        return names if isinstance(names, list) else []

    @property
    def _split(self) -> str:
        return self._shards[0].partition("-")[0]

    def _where(self, place: int) -> str:
        return f"record {place} of the {self._split} split of {self.location} ({self._name(place)})"


def is_array_record_dir(folder: Path) -> bool:
    """Whether a folder is what `write_records` makes."""
    return (folder / INDEX).is_file() and next(folder.glob("*.array_record"), None) is not None


def read_records(folder: Path, options: ReadOptions) -> Splits:
    """Opens a folder of ArrayRecord files.

    Args:
      folder: see above.
      options: image size (unless the index gives one), streaming, and the handling of unreadable images.

    Raises:
      UserError: the folder is damaged, records cannot be read, or memory was asked for that the machine has not.
    """
    try:
        index = json.loads((folder / INDEX).read_text())
        if index["format"] > FORMAT:
            newer = f"has format {index['format']}; this version reads up to {FORMAT}"
            raise UserError(f"{folder / INDEX} {newer}")
        names, size = tuple(map(str, index["class_names"])), tuple(index["image_size"] or options.image_size)
        if not is_input_size(size):
            raise ValueError(f"image_size is {size}")
        if index["image_size"]:
            options = replace(options, crop_pct=1.0)
        shares = {"train": options.train_crop_pct, "test": options.crop_pct}
        found = [_split(folder, name, index["shards"].get(name, []), names, size, shares[name]) for name in SPLITS]
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {_first_line(error)}"
        raise UserError(f"{folder} is damaged ({reason}); make it again") from error
    splits, left_out = drop_unreadable(folder, found, options)
    return Splits(train=splits[0], test=splits[1], source=f"{folder} (ArrayRecord){left_out}", crop_pct=shares["test"])


def _split(
    folder: Path, name: str, shards: list[str], names: tuple[str, ...], image_size: tuple[int, int], crop_pct: float
) -> Dataset:
    if wrong := [shard for shard in shards if Path(shard).name != shard or not (folder / shard).is_file()]:
        raise UserError(f"{folder / INDEX} names {wrong[0]!r}, which is not a file beside it; make the folder again")
    labels = _labels(folder / f"{name}-labels.npy") if shards else NO_LABELS
    if labels.ndim != 1 or labels.dtype != np.int32 or not np.all((labels >= 0) & (labels < len(names))):
        raise ValueError(f"{name}-labels.npy holds {labels.dtype} {labels.shape}, not a class for each picture")
    digest = hashlib.sha256(repr([(shard, (folder / shard).stat().st_size) for shard in shards]).encode())
    images = ArrayRecordImages(folder, shards, len(labels), image_size, crop_pct)
    if shards and len(images._records) != len(labels):
        raise ValueError(f"{len(images._records)} {name} pictures, but {len(labels)} labels")
    return Dataset(images, labels, names, identity=digest.hexdigest())


def _labels(path: Path) -> np.ndarray:
    require_regular_file(path)
    try:
        return np.load(path, allow_pickle=False)
    except Exception as error:  # whatever a damaged file makes the library raise, if only for memory that it declares
        raise ValueError(f"{path.name} cannot be read, {type(error).__name__}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "no reason given")


def write_records(folder: Path, splits: Splits, shards: int) -> Iterator[str]:
    """Writes splits as ArrayRecord files and yields a line for each when it is done.

    Pictures in files go in as they are, and all others as PNGs.

    Args:
      folder: is there, and holds none of these files.
      splits: what to write.
      shards: files for each split, so that many machines can each read some.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    present = {name: split for name, split in ((name, getattr(splits, name)) for name in SPLITS) if split is not None}
    names = {name: [f"{name}-{k:05}-of-{shards:05}.array_record" for k in range(shards)] for name in present}
    for name, split in present.items():
        bounds = np.linspace(0, len(split), shards + 1, dtype=int)
        for shard, start, stop in zip(names[name], bounds[:-1], bounds[1:], strict=True):
            writer = ArrayRecordWriter(str(folder / shard), OPTIONS)
            for place in range(start, stop):
                writer.write(encoded(split.images, place))
            writer.close()
        np.save(folder / f"{name}-labels.npy", split.labels.astype(np.int32))
        if isinstance(split.images, EncodedImages):
            called = [split.images.name(place) for place in range(len(split))]
            (folder / f"{name}-names.json").write_text(json.dumps(called, indent=0))
        yield f"{folder}: {len(split)} {name} pictures in {shards} shards"
    some = next(iter(present.values()))
    size = None if isinstance(some.images, EncodedImages) else some.image_size
    index = {"format": FORMAT, "class_names": list(some.class_names), "image_size": size, "shards": names}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")  # last, for it says that the rest is whole


def encoded(images: np.ndarray | LazyImages, place: int) -> bytes:
    """The bytes of the picture at a place, as a file has them."""
    if isinstance(images, EncodedImages):
        return images.encoded(place)
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(images[place]).save(file, "PNG")
    return file.getvalue()
