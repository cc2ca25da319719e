"""`python -m flaxresnet make-data FOLDER`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from flaxresnet.config import flag
from flaxresnet.data.hdf5 import write_hdf5
from flaxresnet.data.synthetic import DEFAULT_VARIETY, drawn_signs
from flaxresnet.errors import UserError
from flaxresnet.models.resnet import SMALLEST_IMAGE
from flaxresnet.writing import saying_why_not

LEAST = {"train": 1, "test": 1, "image_size": SMALLEST_IMAGE, "seed": 0}


@dataclass(frozen=True)
class Arguments:
    """Draws hand signs, 0 to 5, and writes train_signs.h5 and test_signs.h5 in the tutorials' layout.

    Example: python -m flaxresnet make-data datasets
    """

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")] = "datasets"
    """Where the two files go; files that are there already are not overwritten."""

    train: int = 1080
    """Training images."""

    test: int = 120
    """Test images."""

    image_size: int = 64
    """Height and width in pixels."""

    variety: float = DEFAULT_VARIETY
    """How much walls and cameras differ between pictures: 0 (a bright, plain wall) to 1."""

    seed: int = 0
    """Which hands are drawn."""


def main(arguments: Arguments) -> int:
    for name, least in LEAST.items():
        if (value := getattr(arguments, name)) < least:
            raise UserError(f"{flag(name)} must be at least {least}, not {value}")
    if not 0 <= arguments.variety <= 1:
        raise UserError(f"--variety must be between 0 and 1, not {arguments.variety}")
    folder = Path(arguments.folder)
    paths = {name: folder / f"{name}_signs.h5" for name in ("train", "test")}
    for path in paths.values():
        if path.exists():
            raise UserError(f"{path} exists and is not overwritten; move it away, or name another folder")
    splits = drawn_signs(arguments.seed, arguments.train, arguments.test, arguments.image_size, arguments.variety)
    with saying_why_not(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, path in paths.items():
            write_hdf5(path, name, getattr(splits, name))
            print(f"{path}: {len(getattr(splits, name))} images")
    return 0
