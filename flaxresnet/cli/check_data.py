"""`flaxresnet check-data PATH`."""

from dataclasses import dataclass

from flaxresnet.cli.parser import positional
from flaxresnet.data.dataset import USUAL_SIZE
from flaxresnet.data.open import open_dataset
from flaxresnet.data.read_options import ReadOptions
from flaxresnet.data.sanity_checks import data_warnings
from flaxresnet.training.run_setup import check_trainable


@dataclass(frozen=True)
class Arguments:
    """Reads a data set as training would and says what it holds, or with exit status 2 what is wrong with it.

    Warns of what can be read but is suspicious: test images that are training images too, or nearly, and the like.

    Example: flaxresnet check-data datasets
    """

    data: str = positional("PATH")
    """HDF5 file, folder with HDF5 files or ArrayRecord files, or folder of pictures for each class."""

    image_size: tuple[int, int] = USUAL_SIZE
    """Height and width that pictures in folders are brought to."""

    max_corrupt_fraction: float = 0.0
    """Largest share of unreadable images that is left out."""


def main(arguments: Arguments) -> int:
    # From disk, because the files' names are known there.
    options = ReadOptions(
        image_size=arguments.image_size,
        input="stream",
        max_corrupt_fraction=arguments.max_corrupt_fraction,
        rescan=True,
    )
    splits = open_dataset(arguments.data, options)
    for line in splits.describe():
        print(line)
    if splits.train is None or splits.test is None:
        there, missing = ("test", "training") if splits.train is None else ("training", "test")
        print(f"only a {there} split: a run can be evaluated on it, but training needs a {missing} split as well")
    else:
        check_trainable(splits)
    for sentence in data_warnings(splits, thorough=True):
        print(f"warning: {sentence}")
    return 0
