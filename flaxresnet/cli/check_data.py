"""`flaxresnet check-data PATH`."""

from dataclasses import dataclass

from flaxresnet.cli.parser import positional
from flaxresnet.data.dataset import USUAL_SIZE, Splits
from flaxresnet.data.open import open_dataset
from flaxresnet.data.read_options import ReadOptions
from flaxresnet.data.sanity_checks import data_warnings
from flaxresnet.runtime.terminal import next_command, status
from flaxresnet.training.run_setup import check_trainable


@dataclass(frozen=True)
class Arguments:
    """Reads a dataset as training does, and lists its splits and classes.

    Warns of likely mistakes, such as test images that equal, or nearly equal, a training image. Exits with status 2 if
    the dataset cannot be read, or if its two splits are unfit for training. A missing split is not an error.

    Example: flaxresnet check-data datasets
    """

    data: str = positional("PATH")
    """HDF5 file, folder with HDF5 or ArrayRecord files, or folder with one subfolder of images per class."""

    image_size: tuple[int, int] = USUAL_SIZE
    """Height and width in pixels, to which image files are resized."""

    max_corrupt_fraction: float = 0.0
    """Maximum fraction of corrupt images to skip; the check fails above it."""

    verbose: bool = False
    """Also print the shapes of the arrays."""


def main(arguments: Arguments) -> int:
    # Streaming keeps the file names, which the warnings quote.
    options = ReadOptions(
        image_size=arguments.image_size,
        input="stream",
        max_corrupt_fraction=arguments.max_corrupt_fraction,
        rescan=True,
    )
    with status("Reading the images…"):
        splits = open_dataset(arguments.data, options)
    for line in splits.describe():
        print(line)
    if arguments.verbose:
        for line in splits.describe_arrays():
            print(line)
    print()
    is_trainable = splits.train is not None and splits.test is not None
    if is_trainable:
        check_trainable(splits)
    with status("Looking for duplicates…"):
        warnings = list(data_warnings(splits, thorough=True))
    for warning in warnings:
        print(f"warning: {warning}")
    print(_result(splits, len(warnings)))
    if is_trainable:
        print(next_command("flaxresnet", "train", "--data", arguments.data))
    return 0


def _result(splits: Splits, num_warnings: int) -> str:
    """Returns the result of the check as one sentence."""
    found = "no problems found" if not num_warnings else f"{num_warnings} warning{'s' if num_warnings > 1 else ''}"
    if splits.train is None:
        return f"result: {found}; only a test split, so you can evaluate a run on it; training needs a training split"
    if splits.test is None:
        return f"result: {found}; only a training split; training needs a test split as well"
    return f"result: {found}; ready for training"
