"""`flaxresnet predict RUN PHOTO…`."""

import csv
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from flaxresnet.classifier import BATCH_SIZE, Classifier
from flaxresnet.cli.image_args import OOD_MESSAGE, ImageArguments, ImageReader, check, most_probable
from flaxresnet.runtime.compilation_cache import use_compilation_cache
from flaxresnet.runtime.errors import UserError


@dataclass(frozen=True)
class Arguments(ImageArguments):
    """Classifies photos: a line each with file, label and probability.

    The probability is calibrated, and a photo that is unlike the training images is said to be so, where the run has
    its report (`train.py` writes one at its end, and `flaxresnet report` at any time). Let the thing fill
    the picture, as it does in the training images.

    Example: flaxresnet predict runs/default photo.jpg more/photos --top-k 3
    """

    tta: bool = False
    """Average over views of each photo, nearer, farther, and mirrored if training mirrored: slower, sometimes better.
    Probabilities are calibrated for the photo alone."""

    json: bool = False
    """Print one JSON object a photo, with the probabilities of all classes."""

    csv: bool = False
    """Print a table with commas, with the probabilities of all classes."""


def main(arguments: Arguments) -> int:
    check(arguments)
    if arguments.json and arguments.csv:
        raise UserError("--json and --csv are two ways to print; give one of them")
    use_compilation_cache()
    classifier = Classifier.load(arguments.run, arguments.checkpoint)
    form = json_writer if arguments.json else csv_writer if arguments.csv else text_writer
    write = form(classifier.class_names, arguments.top_k)
    reader = ImageReader(arguments.photos, classifier.preprocessing.load, BATCH_SIZE)
    for batch in reader.batches:
        files, images = zip(*batch, strict=True)
        answers = classifier.predict_batch(np.stack(images), tta=arguments.tta)
        scores, signs = (
            [None] * len(batch) if known is None else known.tolist() for known in (answers.ood_score, answers.is_ood)
        )
        for answer in zip(files, answers.probabilities, scores, signs, strict=True):
            write(*answer)
        sys.stdout.flush()
    return reader.status()


# Each makes a function that prints a photo's answer: its file, the probabilities, (classes,), its OOD score and
# whether that is above the threshold, or None for both if the run is not calibrated.
Writer = Callable[[str, np.ndarray, float | None, bool | None], Any]


def text_writer(names: tuple[str, ...], top_k: int) -> Writer:
    def write(file: str, row: np.ndarray, score: float | None, is_ood: bool | None) -> None:
        best = most_probable(row, top_k)
        sign = [OOD_MESSAGE] if is_ood else []
        print(file, *(f"{names[index]}  {row[index]:.4f}" for index in best), *sign, sep="  ")

    return write


def json_writer(names: tuple[str, ...], top_k: int) -> Writer:
    def write(file: str, row: np.ndarray, score: float | None, is_ood: bool | None) -> None:
        probabilities = dict(zip(names, row.tolist(), strict=True))
        best = [names[index] for index in most_probable(row, top_k)]
        answer = {"file": file, "label": best[0], "probability": probabilities[best[0]]}
        more = {"top": [{"label": name, "probability": probabilities[name]} for name in best]} if top_k > 1 else {}
        odd = {"ood_score": score, "is_ood": is_ood}
        print(json.dumps(answer | more | odd | {"probabilities": probabilities}))

    return write


def csv_writer(names: tuple[str, ...], top_k: int) -> Writer:
    table = csv.writer(sys.stdout, lineterminator="\n")
    ranks = [f"{word} {rank}" for rank in range(2, top_k + 1) for word in ("label", "probability")]
    ranks = ranks[: 2 * (len(names) - 1)]
    table.writerow(["file", "label", "probability", *ranks, "ood_score", "is_ood", *(f"p({n})" for n in names)])

    def write(file: str, row: np.ndarray, score: float | None, is_ood: bool | None) -> None:
        best = most_probable(row, top_k)
        pairs = [cell for index in best for cell in (names[index], f"{row[index]:.6f}")]
        odd = ["" if score is None else f"{score:.6f}", "" if is_ood is None else str(is_ood).lower()]
        table.writerow([file, *pairs, *odd, *(f"{share:.6f}" for share in row)])

    return write
