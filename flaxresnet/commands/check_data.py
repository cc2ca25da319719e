"""`python -m flaxresnet check-data PATH`."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from flaxresnet.data.dataset import USUAL_SIZE, open_dataset
from flaxresnet.training.preparation import check_trainable


@dataclass(frozen=True)
class Arguments:
    """Reads a data set as training would and says what it holds, or with exit status 2 what is wrong with it.

    Example: python -m flaxresnet check-data datasets
    """

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """HDF5 file, folder with a train and a test HDF5 file, or folder of pictures for each class."""

    image_size: tuple[int, int] = USUAL_SIZE
    """Height and width that pictures in folders are brought to."""

    skip_bad: float = 0.0
    """Largest share of unreadable pictures in folders that is left out."""


def main(arguments: Arguments) -> int:
    splits = open_dataset(arguments.data, arguments.image_size, arguments.skip_bad)
    for line in splits.describe():
        print(line)
    if splits.train is None or splits.test is None:
        there, missing = ("test", "training") if splits.train is None else ("training", "test")
        print(f"only a {there} split: a run can be evaluated on it, but training needs a {missing} split as well")
    else:
        check_trainable(splits)
    return 0
