"""`python -m flaxresnet predict RUN PHOTO…`."""

import csv
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from flaxresnet.classifier import BATCH, Classifier
from flaxresnet.commands.photos import PhotoArguments, Reader, check, most_probable
from flaxresnet.compilation_cache import use_compilation_cache
from flaxresnet.errors import UserError


@dataclass(frozen=True)
class Arguments(PhotoArguments):
    """Classifies photos: a line each with file, label and probability.

    Example: python -m flaxresnet predict runs/default photo.jpg more/photos --top-k 3
    """

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
    form = as_json if arguments.json else as_csv if arguments.csv else as_words
    write = form(classifier.class_names, arguments.top_k)
    reader = Reader(arguments.photos, classifier.preprocessing.load, BATCH)
    for batch in reader.batches:
        rows = classifier.probabilities(np.stack([image for _, image in batch]))
        for (file, _), row in zip(batch, rows, strict=True):
            write(file, row)
        sys.stdout.flush()
    return reader.status()


# Each makes a function that prints a photo's answer: its file and the probabilities, (classes,).
Writer = Callable[[str, np.ndarray], Any]


def as_words(names: tuple[str, ...], top_k: int) -> Writer:
    def write(file: str, row: np.ndarray) -> None:
        best = most_probable(row, top_k)
        print(file, *(f"{names[index]}  {row[index]:.4f}" for index in best), sep="  ")

    return write


def as_json(names: tuple[str, ...], top_k: int) -> Writer:
    def write(file: str, row: np.ndarray) -> None:
        probabilities = dict(zip(names, row.tolist(), strict=True))
        best = [names[index] for index in most_probable(row, top_k)]
        answer = {"file": file, "label": best[0], "probability": probabilities[best[0]]}
        more = {"top": [{"label": name, "probability": probabilities[name]} for name in best]} if top_k > 1 else {}
        print(json.dumps(answer | more | {"probabilities": probabilities}))

    return write


def as_csv(names: tuple[str, ...], top_k: int) -> Writer:
    table = csv.writer(sys.stdout, lineterminator="\n")
    ranks = [f"{word} {rank}" for rank in range(2, top_k + 1) for word in ("label", "probability")]
    table.writerow(["file", "label", "probability", *ranks[: 2 * (len(names) - 1)], *(f"p({name})" for name in names)])

    def write(file: str, row: np.ndarray) -> None:
        best = most_probable(row, top_k)
        pairs = [cell for index in best for cell in (names[index], f"{row[index]:.6f}")]
        table.writerow([file, *pairs, *(f"{share:.6f}" for share in row)])

    return write
