"""How right are runs on photos taken otherwise? `python benchmarks/robustness.py RUN… [--data DATA]`.

The test images of a run, or those of DATA, are changed in nineteen ways (`flaxresnet/trust/shifts.py`), three strengths
each, always the same. To choose a recipe, do not look at the test images: `--hold-out FOLDER --data DATA` writes
data whose test images are blocks of the training images, neighbours in the file together, for they may be of the same
person. Train and measure on FOLDER, then.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

import flaxresnet as fr
from flaxresnet.classifier import Classifier
from flaxresnet.compilation_cache import use_compilation_cache
from flaxresnet.data.hdf5 import write_hdf5
from flaxresnet.evaluation import data_for, fitted
from flaxresnet.training.metrics import wilson_interval
from flaxresnet.trust.shifts import STRENGTHS, hits

BLOCKS = 40  # of the training images, in the order of the data
EVERY = 5  # one block of so many is held out


@dataclass(frozen=True)
class Arguments:
    """Accuracy by kind and strength of change.

    Example: python benchmarks/robustness.py runs/signs runs/other --json robustness.json
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Folders of runs; each is measured by itself."""

    data: str | None = None
    """Data whose test images are taken, as for train.py. Left out: those of each run."""

    strengths: tuple[str, ...] = STRENGTHS
    """Some of mild, middle and strong."""

    hold_out: Path | None = None
    """Write --data with a part of its training images as test images to this folder, and measure nothing."""

    json: Path | None = None
    """Write the figures to this file."""


def held_out(train: fr.Dataset) -> tuple[fr.Dataset, fr.Dataset]:
    """Training images divided into those to train on and, block by block, those to choose by (about one in five)."""
    blocks = np.array_split(np.arange(len(train)), BLOCKS)
    chosen = np.concatenate(blocks[EVERY // 2 :: EVERY])
    rest = np.setdiff1d(np.arange(len(train)), chosen)
    first, second = (fr.Dataset(train.images[i], train.labels[i], train.class_names) for i in (rest, chosen))
    return first, second


def measured(classify: Callable[[np.ndarray], np.ndarray], test: fr.Dataset, strengths: tuple[str, ...]) -> list[Any]:
    """Rows of shift, strength, images, correct, accuracy and its interval; the first is of the images as they are."""
    clean = int((classify(test.images[:]) == test.labels).sum())
    rows = [{"shift": "none", "strength": "none", "images": len(test), "correct": clean}]
    rows += hits(classify, test.images[:], test.labels, strengths)
    for row in rows:
        row["accuracy"] = row["correct"] / row["images"]
        row["interval"] = wilson_interval(row["correct"], row["images"])
    return rows


def summary(rows: list[Any], strengths: tuple[str, ...]) -> dict[str, Any]:
    """Accuracy on the images as they are, and the mean and the worst kind for each strength."""
    found: dict[str, Any] = {"clean": rows[0]["accuracy"]}
    for strength in strengths:
        of_kind = {row["shift"]: row["accuracy"] for row in rows if row["strength"] == strength}
        worst = min(of_kind, key=lambda kind: of_kind[kind])
        found[strength] = {
            "mean": float(np.mean(list(of_kind.values()))),
            "worst": of_kind[worst],
            "worst shift": worst,
        }
    return found


def as_table(run: str, rows: list[Any], strengths: tuple[str, ...]) -> Table:
    table = Table("change", *strengths, title=run, box=box.SIMPLE)
    found = summary(rows, strengths)

    def figure(row: dict[str, Any]) -> str:
        low, high = row["interval"]
        return f"{row['accuracy']:.3f} ({low:.3f}–{high:.3f})"

    table.add_row("none", figure(rows[0]))
    for kind in dict.fromkeys(row["shift"] for row in rows[1:]):
        table.add_row(kind, *(figure(row) for row in rows if row["shift"] == kind))
    table.add_row("mean", *(f"{found[strength]['mean']:.3f}" for strength in strengths))
    table.add_row("worst", *(f"{found[strength]['worst']:.3f}" for strength in strengths))
    return table


def main(arguments: Arguments) -> None:
    if arguments.hold_out:
        if arguments.data is None:
            raise SystemExit("--hold-out needs --data")
        train = fr.open_dataset(arguments.data).train
        if train is None:
            raise SystemExit(f"{arguments.data} has no training images")
        arguments.hold_out.mkdir(parents=True, exist_ok=True)
        for split, part in zip(("train", "test"), held_out(train), strict=True):
            write_hdf5(arguments.hold_out / f"{split}.h5", split, part)
            print(f"{len(part)} images as {split} images in {arguments.hold_out}")
        return
    use_compilation_cache()
    console, everything = Console(width=100), {}
    for run in arguments.runs:
        classifier = Classifier.load(run)
        splits = data_for(run, arguments.data, "test")
        if splits.test is None:
            raise SystemExit(f"{splits.source} has no test images")
        test = fitted(classifier, splits.test, splits.source)
        rows = measured(lambda x, c=classifier: c.logits(x).argmax(axis=1), test, arguments.strengths)
        console.print(as_table(run, rows, arguments.strengths))
        everything[run] = {"summary": summary(rows, arguments.strengths), "rows": rows}
    if arguments.json:
        arguments.json.write_text(json.dumps(everything, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
