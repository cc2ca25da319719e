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

CHECKS = {
    "train": (at_least(1), at_most(1_000_000)),
    "test": (at_least(1), at_most(1_000_000)),
    "image_size": (at_least(MIN_IMAGE_SIZE), at_most(4096)),
    "seed": (at_least(0), at_most(2**64)),
    "shards": (at_least(1), at_most(99_999)),  # as many digits as their names have
    "variety": (between(0, 1),),
}


@dataclass(frozen=True)
class Arguments:
    """Draws hand signs, 0 to 5, or takes pictures from elsewhere, and writes them as files to train on.

    Example: flaxresnet make-data datasets

    Example: flaxresnet make-data records --source pictures/ --to arrayrecord
    """

    folder: str = positional("FOLDER", default="datasets")
    """Where the files go; files that are there already are not overwritten."""

    to: Literal["hdf5", "arrayrecord"] = "hdf5"
    """hdf5: the tutorials' layout, a file a split. arrayrecord: shards, to be streamed; pictures go in as they are."""

    source: str | None = None
    """Data to convert, of any kind that train.py reads. Left out: hand signs are drawn."""

    max_corrupt_fraction: float = 0.0
    """Largest share of unreadable pictures in --source that is left out."""

    shards: int = 16
    """ArrayRecord files for each split."""

    train: int = 1080
    """Training images to draw."""

    test: int = 120
    """Test images to draw."""

    image_size: int = 64
    """Height and width in pixels; of ArrayRecord pictures train.py's --image-size decides."""

    variety: float = DEFAULT_VARIETY
    """How much walls and cameras differ between drawn pictures: 0 (a bright, plain wall) to 1."""

    seed: int = 0
    """Which hands are drawn."""


def main(arguments: Arguments) -> int:
    hints = get_type_hints(Arguments)
    for name, checks in CHECKS.items():
        check_value(name, getattr(arguments, name), hints[name], checks)
    folder = Path(arguments.folder)
    files, write = WRITERS[arguments.to]
    for name in files:
        if (folder / name).exists():
            raise UserError(f"{folder / name} exists and is not overwritten; move it away, or name another folder")
    splits = _splits(arguments)
    with oserror_as_user_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for line in write(folder, splits, arguments.shards):
            print(line)
    return 0


def _splits(arguments: Arguments) -> Splits:
    side = arguments.image_size
    if arguments.source is None:
        try:
            return hand_signs(arguments.seed, arguments.train, arguments.test, side, arguments.variety)
        except MemoryError as error:
            count = arguments.train + arguments.test
            taken = f"{count:,} images of {side}×{side} take {count * side**2 * 3 / 2**30:,.1f} GiB of memory"
            raise UserError(f"{taken}, more than there is; give fewer by --train and --test") from error
    options = ReadOptions(image_size=(side, side), input="stream", max_corrupt_fraction=arguments.max_corrupt_fraction)
    return open_dataset(arguments.source, options)


def _write_hdf5(folder: Path, splits: Splits, _: int) -> Iterator[str]:
    for name, split in (("train", splits.train), ("test", splits.test)):
        if split is not None:
            write_hdf5(path := folder / f"{name}_signs.h5", name, split)
            yield f"{path}: {len(split)} images"


# What is written, by which one can see that it is there already, and how.
WRITERS: dict[str, tuple[tuple[str, ...], Callable[[Path, Splits, int], Iterator[str]]]] = {
    "hdf5": (("train_signs.h5", "test_signs.h5"), _write_hdf5),
    "arrayrecord": ((INDEX,), write_records),
}
