"""`flaxresnet explain RUN PHOTO…`: Grad-CAM heatmaps."""

from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Literal

import numpy as np

from flaxresnet.classifier import Classifier
from flaxresnet.cli.image_args import (
    EXPLAINED,
    OOD_MESSAGE,
    ImageArguments,
    ImageReader,
    check,
    most_probable,
    note_if_uncalibrated,
)
from flaxresnet.data.decode import decode
from flaxresnet.runtime.compilation_cache import use_compilation_cache
from flaxresnet.runtime.errors import UserError, listed, oserror_as_user_error
from flaxresnet.runtime.local_path import require_local
from flaxresnet.runtime.terminal import align, status

BATCH_SIZE = 16  # photos per forward and backward pass
CLASSES_PER_LINE = 3  # under the image
MAX_NAME = 24  # characters of a file or class name in the image


@dataclass(frozen=True)
class Arguments(ImageArguments):
    """Draws Grad-CAM heatmaps: a PNG per photo that shows the evidence for a class.

    Example: flaxresnet explain runs/default photo.jpg --top-k 3
    """

    top_k: int = 3
    """Number of classes to name under the image, most probable first."""

    stage: Literal[2, 3, 4, 5] | None = None
    """Stage whose features the heatmap weights; early stages respond to small details. Default: the last stage with a
    feature map of at least 4×4, or 2 if no map is that large."""

    class_name: str | None = None
    """Class to explain. Default: the most probable class of each photo."""

    to_folder: str = "explanations"
    """Folder for the PNGs: photo.explained.png for photo.jpg. Replaces existing files."""


def main(arguments: Arguments) -> int:
    from flaxresnet.visualize.grad_cam import GradCAM
    from flaxresnet.visualize.heatmap import display_size, ellipsize, explanation
    from flaxresnet.visualize.plot_style import save

    check(arguments)
    require_local(arguments.to_folder)
    use_compilation_cache()
    with status("Loading the run…"):
        classifier = Classifier.load(arguments.run, arguments.checkpoint)
    names = classifier.class_names
    class_index = _index(arguments.class_name, names)
    explainer = GradCAM(classifier, arguments.stage, BATCH_SIZE)
    folder = Path(arguments.to_folder)
    written = set[Path]()
    rows = []

    def load(file: str) -> tuple[np.ndarray, np.ndarray]:
        photo = decode(file)
        return display_size(classifier.preprocessing.crop_pixels(photo)), classifier.preprocessing.load(photo)

    reader = ImageReader(arguments.photos, load, BATCH_SIZE)
    with status("Explaining the photos…"):
        for batch in reader.batches:
            images = np.stack([image for _, (_, image) in batch])
            probabilities, maps = explainer.explain(images, class_index)
            is_ood = classifier.predict_batch(images).is_ood if classifier.detects_ood else None
            for index, (file, (photo, _)) in enumerate(batch):
                best = most_probable(probabilities[index], arguments.top_k)
                explained = names[int(best[0]) if class_index is None else class_index]
                title = f"{ellipsize(Path(file).name, MAX_NAME)}: evidence for {ellipsize(explained, MAX_NAME)}"
                labels = [f"{ellipsize(names[i], MAX_NAME)}: {probabilities[index, i]:.4f}" for i in best]
                lines = []
                for start in range(0, len(labels), CLASSES_PER_LINE):
                    lines.append("   ".join(labels[start : start + CLASSES_PER_LINE]))
                figure = explanation(photo, maps[index], f"{title} (stage {explainer.stage})", lines)
                target = unique_path(folder, Path(file).stem, written)
                with oserror_as_user_error(folder):
                    folder.mkdir(parents=True, exist_ok=True)
                save(figure, target)
                row = [file, names[best[0]], f"{probabilities[index, best[0]]:.4f}", str(target)]
                if is_ood is not None and is_ood[index]:
                    row.append(OOD_MESSAGE)
                rows.append(row)
    for line in align(rows, right=[2]):
        print(line)
    if rows:
        print(f"wrote {len(rows):,} {'image' if len(rows) == 1 else 'images'} to {folder}/")
    if reader.num_read:
        note_if_uncalibrated(classifier, arguments)
    return reader.exit_status()


def _index(class_name: str | None, names: tuple[str, ...]) -> int | None:
    if class_name is None:
        return None
    if class_name not in names:
        raise UserError(f"--class-name {class_name!r} is not a class of the run; the classes are {listed(names)}")
    return names.index(class_name)


def unique_path(folder: Path, stem: str, written: set[Path]) -> Path:
    """Returns a path for a stem that is not yet in `written`, and adds it there; repeated stems get a number."""
    path = folder / f"{stem}{EXPLAINED}"
    numbers = count(2)
    while path in written:
        path = folder / f"{stem}-{next(numbers)}{EXPLAINED}"
    written.add(path)
    return path
