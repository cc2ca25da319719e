"""`python -m flaxresnet adapt RUN OUT PHOTO…`."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import tyro

from flaxresnet.adaptation import MOST, adapt
from flaxresnet.commands.photos import Reader, files_of
from flaxresnet.compilation_cache import use_compilation_cache
from flaxresnet.config import Which
from flaxresnet.errors import UserError
from flaxresnet.evaluation import data_for
from flaxresnet.training.run_folder import RunFolder

BATCH = 32  # photos at a time


@dataclass(frozen=True)
class Arguments:
    """Makes a run of another for photos of one place, camera or lamp, from some of them, without labels.

    The weights stay as they are; batch norm's statistics become those of the photos. Give 16 or more, 50 are better,
    of all classes, as they will come; such of one class alone make the others be taken for it. The new run is used like
    any other: evaluate, predict, export. It does not say which photos are unlike the training images.

    Example: python -m flaxresnet adapt runs/signs runs/here more/photos
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run (train.py's --workdir)."""

    target: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder of the new run, which does not exist yet."""

    photos: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PHOTO…")] = ()
    """Pictures of any size, folders of pictures, or patterns such as 'photos/*.jpg'; of many, 512 are taken."""

    data: str | None = None
    """Images of HDF5 files or of a data set's folder instead, with all its splits; their labels are not looked at."""

    checkpoint: Which = "latest"
    """The weights after the last epoch, or those that were best on the test images."""


def main(arguments: Arguments) -> int:
    if bool(arguments.photos) == (arguments.data is not None):
        raise UserError("give photos, or --data, to adapt to: one of them")
    use_compilation_cache()
    images, status = of_photos(arguments) if arguments.data is None else (of_data(arguments.run, arguments.data), 0)
    warning = adapt(arguments.run, images, arguments.target, arguments.checkpoint)
    print(f"{arguments.target}: {arguments.run}, adapted to {len(images)} photos")
    if warning:
        print(f"warning: {warning}")
    return status


def of_data(run: str, data: str) -> np.ndarray:
    """The images of all splits."""
    splits = data_for(run, data, "all").all_to_test()
    return splits.test.images[:] if splits.test is not None else np.zeros((0, 0, 0, 3), np.uint8)


def of_photos(arguments: Arguments) -> tuple[np.ndarray, int]:
    """Some of the photos that are named, evenly taken, and the exit status: what cannot be read is named."""
    files = [file for word in arguments.photos for file in files_of(word)]
    some = np.unique(np.linspace(0, len(files) - 1, MOST).astype(int))
    preprocessing = RunFolder(arguments.run).read_info().preprocessing
    reader = Reader([files[place] for place in some], preprocessing.load, BATCH)
    photos = [photo for batch in reader.batches for _, photo in batch]
    shape = 0, preprocessing.height, preprocessing.width, 3
    return np.stack(photos) if photos else np.zeros(shape, np.uint8), reader.status()
