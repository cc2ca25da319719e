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
from flaxresnet.runtime.terminal import next_command, status
from flaxresnet.weights.run_weights import require_absent

BATCH_SIZE = 32  # photos per read
ALL_CLASSES = "note: include photos of every class; missing classes will be misclassified"


@dataclass(frozen=True)
class Arguments:
    """Adapts a run to a new site, camera or lighting with unlabeled photos (AdaBN), and writes it as a new run.

    The weights stay the same; the statistics of batch norm become those of the photos. Give 16 or more photos of all
    classes, in their usual proportions: adapting to a single class biases predictions toward that class.

    Example: flaxresnet adapt runs/signs runs/here more/photos
    """

    run: str = positional("RUN")
    """Run folder (the --workdir of training)."""

    target: str = positional("OUT")
    """Folder of the new run; must not exist."""

    photos: tuple[str, ...] = positional("PHOTO…", default=())
    """Images of any size, folders of images, or patterns such as 'photos/*.jpg'; at most 512 are used."""

    data: str | None = None
    """Dataset to adapt to instead of photos, in any format that training reads. All splits are used, without their
    labels."""

    max_corrupt_fraction: float = 0.0
    """Maximum fraction of corrupt images in --data to skip; the command fails above it."""

    checkpoint: CheckpointChoice = "latest"
    """Weights to use. latest: from the last epoch; best: from the epoch with the highest test accuracy."""


def main(arguments: Arguments) -> int:
    run = arguments.run
    target = arguments.target
    photos = arguments.photos
    data = arguments.data
    require_absent(target)
    if photos and data is not None:
        raise UserError(f"{photos[0]} and --data {data} exclude each other; give photos or --data")
    if not photos and data is None:
        raise UserError(f"no photo given to adapt to; name some after the new run folder ({target}), or give --data")
    if arguments.max_corrupt_fraction and data is None:
        raise UserError(
            f"--max-corrupt-fraction {arguments.max_corrupt_fraction} applies to --data; unreadable photos are "
            "reported and skipped"
        )
    use_compilation_cache()
    preprocessing = RunDir(run).read_metadata().preprocessing
    exit_status = 0
    with status("Reading the photos…"):
        if data is None:
            images, exit_status = load_photos(photos, preprocessing)
        else:
            images = load_dataset_images(arguments, preprocessing)
    with status("Adapting the run…"):
        warning = adapt(run, images, target, arguments.checkpoint)
    print(f"wrote {target}: {run}, adapted to {len(images)} photos")
    print(f"warning: {warning}" if warning else ALL_CLASSES)
    print(next_command("flaxresnet", "predict", target, "PHOTO"))
    return exit_status


def load_dataset_images(arguments: Arguments, preprocessing: Preprocessing) -> np.ndarray:
    """Returns at most 512 evenly spaced images from all splits of `--data`, (n, height, width, 3) uint8.

    Raises:
      UserError: the data cannot be read, or the images differ in size from the network's input.
    """
    splits = load_data(arguments.run, arguments.data, "all", arguments.max_corrupt_fraction)
    parts = [part for part in (splits.train, splits.test) if part is not None]
    for part in parts:
        require_size(preprocessing, part, splits.source)
    indices = subsample_indices(sum(map(len, parts)))
    images = []
    start = 0
    for part in parts:
        in_part = indices[(indices >= start) & (indices < start + len(part))]
        images.append(part.images[in_part - start])
        start += len(part)
    return np.concatenate(images)


def load_photos(patterns: tuple[str, ...], preprocessing: Preprocessing) -> tuple[np.ndarray, int]:
    """Returns at most 512 evenly spaced photos, (n, height, width, 3) uint8, and the exit status of `ImageReader`."""

    def select(files: Iterable[str]) -> list[str]:
        distinct = list(dict.fromkeys(files))
        return [distinct[index] for index in subsample_indices(len(distinct))]

    reader = ImageReader(patterns, preprocessing.load, BATCH_SIZE, select)
    photos = [photo for batch in reader.batches for _, photo in batch]
    if not photos:
        return np.zeros((0, preprocessing.height, preprocessing.width, 3), np.uint8), reader.exit_status()
    return np.stack(photos), reader.exit_status()
