"""`flaxresnet explain RUN PHOTO…`: where the network looked."""

from dataclasses import dataclass
from itertools import chain, count
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
)
from flaxresnet.data.decode import decode
from flaxresnet.runtime.compilation_cache import use_compilation_cache
from flaxresnet.runtime.errors import UserError, listed, oserror_as_user_error

BATCH = 16  # photos at a time
IN_A_LINE = 3  # classes under the picture, for which there is room


@dataclass(frozen=True)
class Arguments(ImageArguments):
    """Shows what in a photo speaks for a class: Grad-CAM, as a PNG with the photo and the same with a map over it.

    Example: flaxresnet explain runs/default photo.jpg --top-k 3
    """

    top_k: int = 3
    """How many classes are named under the picture, the most probable first."""

    stage: Literal[2, 3, 4, 5] | None = None
    """Whose features are shown; early stages see small things. Left out: the last with at least 4×4 places."""

    class_name: str | None = None
    """The class that is explained. Left out: each photo's most probable one."""

    to_folder: str = "explanations"
    """Where the PNGs are written: photo.explained.png for photo.jpg. Explanations that are there are replaced."""


def main(arguments: Arguments) -> int:
    from flaxresnet.visualize.grad_cam import GradCAM
    from flaxresnet.visualize.heatmap import display_size, ellipsize, explanation
    from flaxresnet.visualize.plot_style import save

    check(arguments)
    use_compilation_cache()
    classifier = Classifier.load(arguments.run, arguments.checkpoint)
    names = classifier.class_names
    chosen = _index(arguments.class_name, names)
    explainer = GradCAM(classifier, arguments.stage, BATCH)
    folder, written = Path(arguments.to_folder), set[Path]()

    def load(name: str) -> tuple[np.ndarray, np.ndarray]:
        photo = decode(name)
        return display_size(classifier.preprocessing.crop_pixels(photo)), classifier.preprocessing.load(photo)

    reader = ImageReader(arguments.photos, load, BATCH)
    for batch in reader.batches:
        images = np.stack([image for _, (_, image) in batch])
        probabilities, maps = explainer.explain(images, chosen)
        is_ood = classifier.predict_batch(images).is_ood if classifier.detects_ood else None
        signs = [[OOD_MESSAGE] if is_ood is not None and is_ood[place] else [] for place in range(len(batch))]
        for (name, (photo, _)), row, heat, sign in zip(batch, probabilities, maps, signs, strict=True):
            best = most_probable(row, arguments.top_k)
            explained = names[int(best[0]) if chosen is None else chosen]
            short = ellipsize(Path(name).name, 24), ellipsize(explained, 24)
            title = "{}: what speaks for {} (stage {})".format(*short, explainer.stage)
            words = [f"{ellipsize(names[index], 24)}: {row[index]:.4f}" for index in best]
            lines = ["   ".join(words[start : start + IN_A_LINE]) for start in range(0, len(words), IN_A_LINE)]
            figure = explanation(photo, heat, title, lines)
            target = unique_path(folder, Path(name).stem, written)
            with oserror_as_user_error(folder):
                folder.mkdir(parents=True, exist_ok=True)
            save(figure, target)
            print(name, names[int(best[0])], f"{row[best[0]]:.4f}", *sign, target, sep="  ", flush=True)
    return reader.status()


def _index(class_name: str | None, names: tuple[str, ...]) -> int | None:
    if class_name is None:
        return None
    if class_name not in names:
        raise UserError(f"--class-name {class_name!r} is none of the run's classes: {listed(names)}")
    return names.index(class_name)


def unique_path(folder: Path, stem: str, written: set[Path]) -> Path:
    """A file of a name that no photo has by chance, with a number where another photo of this name has been there."""
    numbers = chain([""], (f"-{number}" for number in count(2)))
    numbered = (folder / f"{stem}{number}{EXPLAINED}" for number in numbers)
    free = next(path for path in numbered if path not in written)
    written.add(free)
    return free
