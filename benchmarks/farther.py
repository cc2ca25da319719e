"""Is a thing recognised that does not fill the photo? `python benchmarks/farther.py RUN [--data DATA]`.

The test images are laid into larger photos, whose walls and sleeves go on as their edges end, in the middle or
anywhere, and answered twice: by the whole photo, and as `predict --closer` does, which looks at parts where that is
strange. So are the test images as they are, and some changed ones, which should not lose by it. The run needs its
report.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from command import begin
from rich import box
from rich.console import Console
from rich.table import Table

from flaxresnet.classifier import Classifier
from flaxresnet.compilation_cache import use_compilation_cache
from flaxresnet.evaluation import fitted, judging, require_comparison
from flaxresnet.training.metrics import wilson_interval
from flaxresnet.trust.shifts import shifted, together

# The picture as a share of the photo's shorter side, the photo's width by its height, and whether in its middle.
LAID = (
    (2 / 3, 1.0, True),
    (1 / 2, 1.0, True),
    (1 / 2, 1.0, False),
    (1 / 2, 4 / 3, False),
    (1 / 3, 1.0, True),
    (1 / 3, 4 / 3, False),
)


@dataclass(frozen=True)
class Arguments:
    """Accuracy on photos in which the thing is small, by the whole photo and with its parts.

    Example: python benchmarks/farther.py runs/signs
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run, with a report."""

    data: str | None = None
    """Data whose test images are taken, as for train.py. Left out: those of the run."""

    json: Path | None = None
    """Write the figures to this file."""


def laid(image: np.ndarray, share: float, aspect: float, middle: bool, rng: np.random.Generator) -> np.ndarray:
    """The image in a larger photo, whose edges are those of the image, repeated."""
    height, width = image.shape[:2]
    tall, wide = round(height / share), round(width / share * aspect)
    top, left = (
        (whole - part) // 2 if middle else int(rng.integers(0, whole - part + 1))
        for whole, part in ((tall, height), (wide, width))
    )
    return np.pad(image, ((top, tall - height - top), (left, wide - width - left), (0, 0)), mode="edge")


def photos(images: np.ndarray) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Sets of photos by name."""
    yield "as they are", list(images)
    for share, aspect, middle in LAID:
        rng = np.random.default_rng(0)
        name = f"{share:.2f} of the side{', 4:3' if aspect > 1 else ''}, {'in the middle' if middle else 'anywhere'}"
        yield name, [laid(image, share, aspect, middle, rng) for image in images]
    for name in ("rotation", "scale", "light gradient", "occlusion", "background"):
        yield f"{name}, strong", list(shifted(images, name, "strong"))
    yield "three changes at once, middle", list(together(images, 3, "middle"))


def main(arguments: Arguments) -> None:
    use_compilation_cache()
    classifier, splits = Classifier.load(arguments.run), judging(arguments.run, arguments.data)
    require_comparison(classifier, arguments.run)
    test = fitted(classifier, splits.test, splits.source)
    rows: list[dict[str, Any]] = []
    for name, some in photos(test.images[:]):
        images = np.stack([classifier.preprocessing.load(photo) for photo in some])
        answers = classifier.answers(images)
        parts = {i: classifier.closer(some[i], float(answers.strangeness[i])) for i in np.flatnonzero(answers.strange)}
        parts = {place: part for place, part in parts.items() if part is not None}
        for place, (image, _) in parts.items():
            images[place] = image
        closer = classifier.answers(images)
        rights = [int((a.probabilities.argmax(axis=1) == test.labels).sum()) for a in (answers, closer)]
        rows.append(
            {
                "photos": name,
                "images": len(test),
                "strange": int(answers.strange.sum()),
                "in part": len(parts),
                "right, whole": rights[0],
                "right, with parts": rights[1],
                "confidence, whole": float(answers.probabilities.max(axis=1).mean()),
                "confidence, with parts": float(closer.probabilities.max(axis=1).mean()),
            }
        )
    Console(width=110).print(as_table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def as_table(rows: list[dict[str, Any]]) -> Table:
    table = Table("photos", box=box.SIMPLE)
    for name in ("strange", "in part", "accuracy, whole", "accuracy, with parts", "confidence, both"):
        table.add_column(name, justify="right")
    for row in rows:
        figures = []
        for way in ("whole", "with parts"):
            low, high = wilson_interval(row[f"right, {way}"], row["images"])
            figures.append(f"{row[f'right, {way}'] / row['images']:.3f} ({low:.2f}–{high:.2f})")
        sure = f"{row['confidence, whole']:.2f}, {row['confidence, with parts']:.2f}"
        table.add_row(row["photos"], *(f"{row[n] / row['images']:.2f}" for n in ("strange", "in part")), *figures, sure)
    return table


if __name__ == "__main__":
    begin(main, Arguments)
