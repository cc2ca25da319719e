"""How right are runs on photos taken otherwise? `python benchmarks/robustness.py RUN… [--data DATA]`.

The test images of a run, or those of DATA, are changed in nineteen ways (`reliability/corruptions.py`), three strengths
each, always the same, and in three and in five of them at once, as other people's photos differ. To choose a recipe, do
not look at the test images: `--hold-out FOLDER --data DATA` writes data whose test images are blocks of the training
images, neighbours in the file together, for they may be of the same person. Train and measure on FOLDER, then.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from bench_cli import begin
from rich import box
from rich.console import Console
from rich.table import Column, Table

import flaxresnet as fr
from flaxresnet.classifier import Classifier
from flaxresnet.cli.parser import positional
from flaxresnet.data.hdf5 import write_hdf5
from flaxresnet.evaluation import load_test_data, remap_labels
from flaxresnet.reliability.calibration import calibration_error, reliability, softmax
from flaxresnet.reliability.corruptions import STRENGTHS, compose_corruptions, iter_corruptions
from flaxresnet.reliability.cross_fit import assess
from flaxresnet.reliability.intervals import wilson_interval
from flaxresnet.runs.run_dir import RunDir
from flaxresnet.runtime.compilation_cache import use_compilation_cache
from flaxresnet.runtime.errors import UserError

BLOCKS = 40  # of the training images, in the order of the data
TOGETHER = (3, 5)  # kinds of change at once
COMPARED = "middle"  # the strength of those in the comparison of runs
EVERY = 5  # one block of so many is held out


@dataclass(frozen=True)
class Arguments:
    """Accuracy by kind and strength of change.

    Example: python benchmarks/robustness.py runs/signs runs/other --json robustness.json
    """

    runs: tuple[str, ...] = positional("RUN …", default=())
    """Folders of runs; each is measured by itself."""

    other: tuple[str, ...] = ()
    """Data of the same classes but from elsewhere, whose training images are a test as well."""

    data: str | None = None
    """Data whose test images are taken, as for train.py. Left out: those of each run."""

    strengths: tuple[str, ...] = STRENGTHS
    """Some of mild, middle and strong."""

    hold_out: Path | None = None
    """Write --data with a part of its training images as test images to this folder, and measure nothing."""

    json: Path | None = None
    """Write the figures to this file."""


def recipe_of(run: str) -> str:
    config = RunDir(run).read_metadata().config
    return f"{config.recipe}, {config.epochs} epochs"


def held_out(train: fr.Dataset) -> tuple[fr.Dataset, fr.Dataset]:
    """Training images divided into those to train on and, block by block, those to choose by (about one in five)."""
    blocks = np.array_split(np.arange(len(train)), BLOCKS)
    chosen = np.concatenate(blocks[EVERY // 2 :: EVERY])
    rest = np.setdiff1d(np.arange(len(train)), chosen)
    first, second = (fr.Dataset(train.images[i], train.labels[i], train.class_names) for i in (rest, chosen))
    return first, second


class CorruptionLogits(NamedTuple):
    """A run's logits, (images, classes), for the test images changed in one way."""

    shift: str
    strength: str
    logits: np.ndarray


def answered(
    logits_of: Callable[[np.ndarray], np.ndarray], images: np.ndarray, strengths: tuple[str, ...]
) -> list[CorruptionLogits]:
    """To the images as they are, first, and to those of each kind and strength of change."""
    clean = CorruptionLogits("none", "none", logits_of(images))
    return [
        clean,
        *(
            CorruptionLogits(name, strength, logits_of(new))
            for name, strength, new in iter_corruptions(images, strengths)
        ),
    ]


def answered_together(
    logits_of: Callable[[np.ndarray], np.ndarray], images: np.ndarray, strengths: tuple[str, ...]
) -> list[CorruptionLogits]:
    """To the images with several changes at once."""
    return [
        CorruptionLogits(f"{count} together", strength, logits_of(compose_corruptions(images, count, strength)))
        for count, strength in product(TOGETHER, strengths)
    ]


def measured(answers: list[CorruptionLogits], labels: np.ndarray) -> list[dict[str, Any]]:
    """Rows of shift, strength, images, correct, accuracy and its interval."""
    rows = []
    for shift, strength, logits in answers:
        images, correct = len(labels), int((logits.argmax(axis=1) == labels).sum())
        row = {"shift": shift, "strength": strength, "images": images, "correct": correct}
        rows.append(row | {"accuracy": correct / images, "interval": wilson_interval(correct, images)})
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


def calibrated(
    answers: list[CorruptionLogits], several: list[CorruptionLogits], labels: np.ndarray
) -> list[dict[str, Any]]:
    """Rows of images, and their expected calibration errors as trained and with the temperature of unchanged ones.

    All kinds of change count together; each half of every class is judged by the temperature of the other half, as in
    the report. The first of `answers` is to the images as they are.
    """
    nothing = np.zeros((len(labels), 1), np.float32)
    temperatures = assess("", answers[0].logits, labels, nothing, nothing[:0]).temperatures
    sets: dict[str, list[np.ndarray]] = {}
    for one in answers:
        sets.setdefault(one.strength, []).append(one.logits)
    sets |= {f"{one.shift}, {one.strength}": [one.logits] for one in several}
    rows = []
    for name, parts in sets.items():
        logits, truth, by = np.concatenate(parts), np.tile(labels, len(parts)), np.tile(temperatures, len(parts))
        errors = [calibration_error(reliability(softmax(logits, t), truth)) for t in (1.0, by)]
        rows.append({"images": name, "as trained": errors[0], "with the temperature": errors[1]})
    return rows


def as_table(run: str, rows: list[Any], several: list[Any], strengths: tuple[str, ...]) -> Table:
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
    for kind in dict.fromkeys(row["shift"] for row in several):
        table.add_row(kind, *(figure(row) for row in several if row["shift"] == kind))
    return table


def errors_of(run: str, rows: list[dict[str, Any]]) -> Table:
    table = Table("calibration error", *list(rows[0])[1:], title=run, box=box.SIMPLE)
    for row in rows:
        name, *errors = row.values()
        table.add_row(name, *(f"{error:.3f}" for error in errors))
    return table


def comparison(everything: dict[str, Any], strengths: tuple[str, ...], others: tuple[str, ...]) -> Table:
    """A line a run, and below, for a recipe with several, their means (lowest–highest)."""
    together_of = [f"{count} together" for count in TOGETHER if COMPARED in strengths]
    heads = ["", "clean", *strengths, *together_of, *(f"training images of {other}" for other in others)]
    columns = [Column(head, overflow="fold") for head in heads]  # paths may differ in their ends alone
    table = Table(*columns, title="accuracy", box=box.SIMPLE)
    by_recipe: dict[str, list[list[float]]] = {}
    for run, found in everything.items():
        figures = [found["summary"]["clean"], *(found["summary"][strength]["mean"] for strength in strengths)]
        figures += [row["accuracy"] for row in found["together"] if row["strength"] == COMPARED]
        figures += [found["other"][other] for other in others]
        by_recipe.setdefault(found["recipe"], []).append(figures)
        table.add_row(run, *(f"{figure:.3f}" for figure in figures))
    for recipe, rows in by_recipe.items():
        if len(rows) > 1:
            spread = zip(np.mean(rows, axis=0), np.min(rows, axis=0), np.max(rows, axis=0), strict=True)
            table.add_row(f"mean of {recipe}", *(f"{mean:.3f} ({low:.3f}–{high:.3f})" for mean, low, high in spread))
    return table


def main(arguments: Arguments) -> None:
    if arguments.hold_out:
        if arguments.data is None:
            raise UserError("--hold-out needs --data")
        train = fr.open_dataset(arguments.data).train
        if train is None:
            raise UserError(f"{arguments.data} has no training images")
        arguments.hold_out.mkdir(parents=True, exist_ok=True)
        for split, part in zip(("train", "test"), held_out(train), strict=True):
            write_hdf5(arguments.hold_out / f"{split}.h5", split, part)
            print(f"{len(part)} images as {split} images in {arguments.hold_out}")
        return
    if not arguments.runs:
        raise UserError("no RUN given to measure; name the folder of one, or of several")
    if unknown := [strength for strength in arguments.strengths if strength not in STRENGTHS]:
        raise UserError(f"--strengths {unknown[0]!r} is not one of {', '.join(map(repr, STRENGTHS))}")
    use_compilation_cache()
    console, everything = Console(width=100), {}
    for run in arguments.runs:
        classifier = Classifier.load(run)
        splits = load_test_data(run, arguments.data)
        test = remap_labels(classifier, splits.test, splits.source)
        whole = classifier.logits, test.images[:], arguments.strengths
        alone, at_once = answered(*whole), answered_together(*whole)
        rows, several = measured(alone, test.labels), measured(at_once, test.labels)
        console.print(as_table(run, rows, several, arguments.strengths))
        found = {"recipe": recipe_of(run), "summary": summary(rows, arguments.strengths), "rows": rows}
        errors = calibrated(alone, at_once, test.labels)
        console.print(errors_of(run, errors))
        found["other"] = {other: fr.evaluate(run, other, split="train").accuracy for other in arguments.other}
        everything[run] = found | {"together": several, "calibration": errors}
    console.print(comparison(everything, arguments.strengths, arguments.other))
    if arguments.json:
        arguments.json.write_text(json.dumps(everything, indent=2) + "\n")


if __name__ == "__main__":
    begin(main, Arguments)
