"""`flaxresnet adapt RUN OUT PHOTO…`."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from flaxresnet.adabn import adapt, subsample_indices
from flaxresnet.cli.image_args import ImageReader
from flaxresnet.cli.parser import positional
from flaxresnet.config.train_config import CheckpointChoice
from flaxresnet.data.preprocess import Preprocessing
from flaxresnet.evaluation import load_data, require_size
from flaxresnet.runs.run_dir import RunDir
from flaxresnet.runtime.compilation_cache import use_compilation_cache
from flaxresnet.runtime.errors import UserError
from flaxresnet.weights.run_weights import require_absent

BATCH = 32  # photos at a time
ALL_CLASSES = "(all classes have to be among them: others would be taken for those that are)"


@dataclass(frozen=True)
class Arguments:
    """Makes from a run another one, for photos of one place, camera or lamp, by some of them, without labels.

    The weights stay as they are; batch norm's statistics become those of the photos. Give 16 or more, of all classes,
    as they will come: photos of one class alone make other classes be taken for it. The new run is used like any other.

    Example: flaxresnet adapt runs/signs runs/here more/photos
    """

    run: str = positional("RUN")
    """Folder of the run (train.py's --workdir)."""

    target: str = positional("OUT")
    """Folder of the new run, which does not exist yet."""

    photos: tuple[str, ...] = positional("PHOTO…", default=())
    """Pictures of any size, folders of pictures, or patterns such as 'photos/*.jpg'; of many, 512 are taken."""

    data: str | None = None
    """Images of a data set instead, as for train.py, of all its splits; their labels are not looked at."""

    max_corrupt_fraction: float = 0.0
    """Largest share of unreadable pictures in --data that is left out."""

    checkpoint: CheckpointChoice = "latest"
    """The weights after the last epoch, or those that were best on the test images."""


def main(arguments: Arguments) -> int:
    run, target, photos, data = arguments.run, arguments.target, arguments.photos, arguments.data
    require_absent(target)
    if photos and data is not None:
        raise UserError(f"{photos[0]} and --data {data} are two things to adapt to; give one of them")
    if not photos and data is None:
        raise UserError(f"no photo given to adapt to; name some after the new run's folder ({target}), or give --data")
    if arguments.max_corrupt_fraction and data is None:
        raise UserError(
            f"--max-corrupt-fraction {arguments.max_corrupt_fraction} is of --data; photos that cannot be read are "
            "named and left out"
        )
    use_compilation_cache()
    preprocessing = RunDir(run).read_metadata().preprocessing
    images, status = (
        load_photos(photos, preprocessing) if data is None else (load_dataset_images(arguments, preprocessing), 0)
    )
    warning = adapt(run, images, target, arguments.checkpoint)
    print(f"{target}: {run}, adapted to {len(images)} photos")
    print(f"warning: {warning}" if warning else ALL_CLASSES)
    return status


def load_dataset_images(arguments: Arguments, preprocessing: Preprocessing) -> np.ndarray:
    """Images from all over the data's splits, as if these were one."""
    splits = load_data(arguments.run, arguments.data, "all", arguments.max_corrupt_fraction)
    parts = [part for part in (splits.train, splits.test) if part is not None]
    for part in parts:
        require_size(preprocessing, part, splits.source)
    sizes = [len(part) for part in parts]
    ends, chosen = np.cumsum(sizes), subsample_indices(sum(sizes))
    some = np.split(chosen, np.searchsorted(chosen, ends[:-1]))
    places = [mine - end + size for mine, end, size in zip(some, ends, sizes, strict=True)]
    return np.concatenate([part.images[mine] for part, mine in zip(parts, places, strict=True)])


def load_photos(words: tuple[str, ...], preprocessing: Preprocessing) -> tuple[np.ndarray, int]:
    """Some of the photos that are named, evenly taken, and the exit status: what cannot be read is named."""

    def some(files: Iterable[str]) -> list[str]:
        named = list(dict.fromkeys(files))
        return [named[place] for place in subsample_indices(len(named))]

    reader = ImageReader(words, preprocessing.load, BATCH, some)
    photos = [photo for batch in reader.batches for _, photo in batch]
    shape = 0, preprocessing.height, preprocessing.width, 3
    return np.stack(photos) if photos else np.zeros(shape, np.uint8), reader.status()
