"""`flaxresnet make-data FOLDER`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_type_hints

from flaxresnet.cli.parser import positional
from flaxresnet.config.validation import at_least, at_most, between, check_value
from flaxresnet.data.array_record import INDEX, write_records
from flaxresnet.data.dataset import Splits
from flaxresnet.data.hand_signs.render import DEFAULT_VARIETY, hand_signs
from flaxresnet.data.hdf5 import write_hdf5
from flaxresnet.data.open import open_dataset
from flaxresnet.data.read_options import ReadOptions
from flaxresnet.models.resnet import MIN_IMAGE_SIZE
from flaxresnet.runtime.errors import UserError, oserror_as_user_error
from flaxresnet.runtime.local_path import require_local
from flaxresnet.runtime.terminal import next_command, status

CHECKS = {
    "train": (at_least(1), at_most(1_000_000)),
    "test": (at_least(1), at_most(1_000_000)),
    "image_size": (at_least(MIN_IMAGE_SIZE), at_most(4096)),
    "seed": (at_least(0), at_most(2**64)),
    "shards": (at_least(1), at_most(99_999)),  # file names have five digits for the number of shards
    "variety": (between(0, 1),),
}


@dataclass(frozen=True)
class Arguments:
    """Writes training data: drawn hand signs of the classes 0 to 5, or images from --source.

    Example: flaxresnet make-data datasets

    Example: flaxresnet make-data records --source images/ --to arrayrecord
    """

    folder: str = positional("FOLDER", default="datasets")
    """Folder to write to. The command does not overwrite existing files."""

    to: Literal["hdf5", "arrayrecord"] = "hdf5"
    """hdf5: the tutorials' layout, one file per split. arrayrecord: shards for streaming, with unchanged image
    files."""

    source: str | None = None
    """Data to convert, in any format that training reads. Default: draw hand signs."""

    max_corrupt_fraction: float = 0.0
    """Maximum fraction of corrupt images in --source to skip; the command fails above it."""

    shards: int = 16
    """Number of ArrayRecord files per split."""

    train: int = 1080
    """Number of training images to draw."""

    test: int = 120
    """Number of test images to draw."""

    image_size: int = 64
    """Height and width in pixels of drawn images, and of images from --source in HDF5 files. ArrayRecord files store
    image files unchanged; training resizes them to its own --image-size."""

    variety: float = DEFAULT_VARIETY
    """Variation of backgrounds and cameras between drawn images, from 0 (a bright, plain background) to 1."""

    seed: int = 0
    """Random seed of the drawn images."""


def main(arguments: Arguments) -> int:
    hints = get_type_hints(Arguments)
    for name, checks in CHECKS.items():
        check_value(name, getattr(arguments, name), hints[name], checks)
    require_local(arguments.folder)
    folder = Path(arguments.folder)
    files, write = WRITERS[arguments.to]
    for name in files:
        if (folder / name).exists():
            raise UserError(f"{folder / name} exists and is not overwritten; move it, or name another folder")
    with status("Drawing the images…" if arguments.source is None else "Reading the images…"):
        splits = _splits(arguments)
    with oserror_as_user_error(folder), status("Writing the files…"):
        folder.mkdir(parents=True, exist_ok=True)
        lines = list(write(folder, splits, arguments.shards))
    for line in lines:
        print(f"wrote {line}")
    print(next_command("flaxresnet", "train", "--data", arguments.folder))
    return 0


def _splits(arguments: Arguments) -> Splits:
    """Returns the images to write: drawn hand signs, or those of `--source`."""
    side = arguments.image_size
    if arguments.source is None:
        try:
            return hand_signs(arguments.seed, arguments.train, arguments.test, side, arguments.variety)
        except MemoryError as error:
            count = arguments.train + arguments.test
            size = count * side**2 * 3 / 2**30
            raise UserError(
                f"{count:,} images of {side}×{side} take {size:,.1f} GiB of memory, more than is available; reduce "
                "--train and --test"
            ) from error
    options = ReadOptions(image_size=(side, side), input="stream", max_corrupt_fraction=arguments.max_corrupt_fraction)
    return open_dataset(arguments.source, options)


def _write_hdf5(folder: Path, splits: Splits, _: int) -> Iterator[str]:
    """Writes one file per split and yields a line about each file."""
    for name, split in (("train", splits.train), ("test", splits.test)):
        if split is not None:
            path = folder / f"{name}_signs.h5"
            write_hdf5(path, name, split)
            yield f"{path}: {len(split)} images"


# Format → (files that exist if the folder already holds data in this format, writer).
WRITERS: dict[str, tuple[tuple[str, ...], Callable[[Path, Splits, int], Iterator[str]]]] = {
    "hdf5": (("train_signs.h5", "test_signs.h5"), _write_hdf5),
    "arrayrecord": ((INDEX,), write_records),
}
