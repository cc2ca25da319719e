"""`python -m flaxresnet check-data PATH`."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from flaxresnet.data.dataset import open_dataset


@dataclass(frozen=True)
class Arguments:
    """Reads a data set as training would and says what it holds; exit status 2 says that training would refuse it.

    Example: python -m flaxresnet check-data datasets
    """

    data: Annotated[str, tyro.conf.Positional]
    """HDF5 file, or folder with a train and a test HDF5 file."""


def main(arguments: Arguments) -> int:
    for line in open_dataset(arguments.data).describe():
        print(line)
    return 0
