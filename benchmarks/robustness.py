"""How accurate are runs on images that differ from the test images, as other people's photos do?

    python benchmarks/robustness.py RUN… [--data DATA]

The script applies the nineteen corruptions of `flaxresnet/reliability/corruptions.py` to the test images of each run,
or of DATA, in three strengths, and three and five random corruptions at once. The corruptions are seeded, so all runs
see the same images. For each run, the first table has the accuracy for each kind and strength with its 95% interval,
and the second the expected calibration error as trained and with the temperature fitted on unchanged images. The last
table compares the runs: accuracy on unchanged images ("clean"), the mean over the kinds for each strength, several
corruptions at the middle strength, and the training images of `--other`. Runs of one recipe also get their mean
(lowest–highest).

To choose a recipe without the test images, hold out training images and train and measure on them:

    python benchmarks/robustness.py --data DATA --hold-out FOLDER
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
BLOCKS_PER_HELD_OUT = 5
TOGETHER = (3, 5)  # corruptions at once
COMPARED = "middle"  # strength of the columns for several corruptions in the comparison of runs


@dataclass(frozen=True)
class Arguments:
    """Measures the accuracy of runs on changed test images, by kind and strength of change.

    Example: python benchmarks/robustness.py runs/signs runs/other --json robustness.json
    """

    runs: tuple[str, ...] = positional("RUN …", default=())
    """Folders of the runs to measure."""

    other: tuple[str, ...] = ()
    """Data of the same classes from other sources; their training images are a test as well."""

    data: str | None = None
    """Data whose test images are used, as for `flaxresnet train --data`. Left out: those of each run."""

    strengths: tuple[str, ...] = STRENGTHS
    """Strengths of the changes: mild, middle, strong."""

    hold_out: Path | None = None
    """Write --data to this folder with a fifth of its training images as the test images, and measure nothing."""

    json: Path | None = None
    """Write the figures to this file."""


def recipe_of(run: str) -> str:
    config = RunDir(run).read_metadata().config
    return f"{config.recipe}, {config.epochs} epochs"


def split_held_out(train: fr.Dataset) -> tuple[fr.Dataset, fr.Dataset]:
    """Splits training images into those to train on and one in five to measure on.

    It holds out blocks of neighbors, because neighbors in a file may show the same person.
    """
    blocks = np.array_split(np.arange(len(train)), BLOCKS)
    held_out = np.concatenate(blocks[BLOCKS_PER_HELD_OUT // 2 :: BLOCKS_PER_HELD_OUT])
    rest = np.setdiff1d(np.arange(len(train)), held_out)
    return subset(train, rest), subset(train, held_out)


def subset(data: fr.Dataset, indices: np.ndarray) -> fr.Dataset:
    return fr.Dataset(data.images[indices], data.labels[indices], data.class_names)


def write_held_out(data: str, folder: Path) -> None:
    """Writes the two parts of DATA's training images as the training and test images of a folder."""
    train = fr.open_dataset(data).train
    if train is None:
        raise UserError(f"{data} has no training images")
    folder.mkdir(parents=True, exist_ok=True)
    for split, part in zip(("train", "test"), split_held_out(train), strict=True):
        write_hdf5(folder / f"{split}.h5", split, part)
        print(f"{len(part)} images as {split} images in {folder}")


class CorruptionLogits(NamedTuple):
    """A run's logits for the test images after one corruption.

    Attributes:
      shift: kind of corruption; "none" for the unchanged images.
      strength: of `STRENGTHS`, or "none".
      logits: (images, classes).
    """

    shift: str
    strength: str
    logits: np.ndarray


def corruption_logits(
    logits_of: Callable[[np.ndarray], np.ndarray], images: np.ndarray, strengths: tuple[str, ...]
) -> list[CorruptionLogits]:
    """Returns the logits for the unchanged images, first, and for each kind and strength of corruption."""
    results = [CorruptionLogits("none", "none", logits_of(images))]
    for kind, strength, changed in iter_corruptions(images, strengths):
        results.append(CorruptionLogits(kind, strength, logits_of(changed)))
    return results


def composed_logits(
    logits_of: Callable[[np.ndarray], np.ndarray], images: np.ndarray, strengths: tuple[str, ...]
) -> list[CorruptionLogits]:
    """Returns the logits for the images with several corruptions at once."""
    results = []
    for count, strength in product(TOGETHER, strengths):
        logits = logits_of(compose_corruptions(images, count, strength))
        results.append(CorruptionLogits(f"{count} together", strength, logits))
    return results


def accuracy_rows(results: list[CorruptionLogits], labels: np.ndarray) -> list[dict[str, Any]]:
    """Returns rows of shift, strength, images, correct, accuracy and its 95% interval."""
    images = len(labels)
    rows = []
    for shift, strength, logits in results:
        correct = int((logits.argmax(axis=1) == labels).sum())
        row = {"shift": shift, "strength": strength, "images": images, "correct": correct}
        rows.append(row | {"accuracy": correct / images, "interval": wilson_interval(correct, images)})
    return rows


def summary(rows: list[Any], strengths: tuple[str, ...]) -> dict[str, Any]:
    """Returns the accuracy on the unchanged images, and the mean and the worst kind for each strength."""
    result: dict[str, Any] = {"clean": rows[0]["accuracy"]}
    for strength in strengths:
        by_kind = {row["shift"]: row["accuracy"] for row in rows if row["strength"] == strength}
        worst = min(by_kind, key=lambda kind: by_kind[kind])
        mean = float(np.mean(list(by_kind.values())))
        result[strength] = {"mean": mean, "worst": by_kind[worst], "worst shift": worst}
    return result


def calibration_rows(
    results: list[CorruptionLogits], composed: list[CorruptionLogits], labels: np.ndarray
) -> list[dict[str, Any]]:
    """Returns rows of images and their expected calibration error, as trained and with a temperature.

    The temperature is fitted on the unchanged images; each half of every class gets that of the other half, as in the
    report. All kinds of corruption of one strength are one row.

    Args:
      results: from `corruption_logits`; the first is for the unchanged images.
      composed: from `composed_logits`; each is one row.
      labels: (images,).
    """
    no_embeddings = np.zeros((len(labels), 1), np.float32)
    temperatures = assess("", results[0].logits, labels, no_embeddings, no_embeddings[:0]).temperatures
    groups: dict[str, list[np.ndarray]] = {}
    for result in results:
        groups.setdefault(result.strength, []).append(result.logits)
    for result in composed:
        groups[f"{result.shift}, {result.strength}"] = [result.logits]
    rows = []
    for name, parts in groups.items():
        logits = np.concatenate(parts)
        all_labels = np.tile(labels, len(parts))
        as_trained = calibration_error(reliability(softmax(logits, 1.0), all_labels))
        scaled = calibration_error(reliability(softmax(logits, np.tile(temperatures, len(parts))), all_labels))
        rows.append({"images": name, "as trained": as_trained, "with the temperature": scaled})
    return rows


def as_table(run: str, rows: list[Any], composed: list[Any], strengths: tuple[str, ...]) -> Table:
    table = Table("change", *strengths, title=run, box=box.SIMPLE)
    result = summary(rows, strengths)

    def cell(row: dict[str, Any]) -> str:
        low, high = row["interval"]
        return f"{row['accuracy']:.3f} ({low:.3f}–{high:.3f})"

    table.add_row("none", cell(rows[0]))
    for kind in dict.fromkeys(row["shift"] for row in rows[1:]):
        table.add_row(kind, *(cell(row) for row in rows if row["shift"] == kind))
    table.add_row("mean", *(f"{result[strength]['mean']:.3f}" for strength in strengths))
    table.add_row("worst", *(f"{result[strength]['worst']:.3f}" for strength in strengths))
    for kind in dict.fromkeys(row["shift"] for row in composed):
        table.add_row(kind, *(cell(row) for row in composed if row["shift"] == kind))
    return table


def calibration_table(run: str, rows: list[dict[str, Any]]) -> Table:
    table = Table("calibration error", *list(rows[0])[1:], title=run, box=box.SIMPLE)
    for row in rows:
        name, *errors = row.values()
        table.add_row(name, *(f"{error:.3f}" for error in errors))
    return table


def comparison(everything: dict[str, Any], strengths: tuple[str, ...], others: tuple[str, ...]) -> Table:
    """Returns a table with one row for each run, and for each recipe with several runs their means (lowest–highest)."""
    headers = ["", "clean", *strengths]
    if COMPARED in strengths:
        headers += [f"{count} together" for count in TOGETHER]
    headers += [f"training images of {other}" for other in others]
    columns = [Column(header, overflow="fold") for header in headers]  # paths may differ only in their ends
    table = Table(*columns, title="accuracy", box=box.SIMPLE)
    by_recipe: dict[str, list[list[float]]] = {}
    for run, result in everything.items():
        figures = [result["summary"]["clean"], *(result["summary"][strength]["mean"] for strength in strengths)]
        figures += [row["accuracy"] for row in result["together"] if row["strength"] == COMPARED]
        figures += [result["other"][other] for other in others]
        by_recipe.setdefault(result["recipe"], []).append(figures)
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
        write_held_out(arguments.data, arguments.hold_out)
        return
    if not arguments.runs:
        raise UserError("no RUN to measure; give the folder of one run or more")
    unknown = [strength for strength in arguments.strengths if strength not in STRENGTHS]
    if unknown:
        raise UserError(f"--strengths {unknown[0]!r} is not one of {', '.join(map(repr, STRENGTHS))}")
    use_compilation_cache()
    console = Console(width=100)
    everything = {}
    for run in arguments.runs:
        classifier = Classifier.load(run)
        splits = load_test_data(run, arguments.data)
        test = remap_labels(classifier, splits.test, splits.source)
        images = test.images[:]
        results = corruption_logits(classifier.logits, images, arguments.strengths)
        composed = composed_logits(classifier.logits, images, arguments.strengths)
        rows = accuracy_rows(results, test.labels)
        composed_rows = accuracy_rows(composed, test.labels)
        errors = calibration_rows(results, composed, test.labels)
        console.print(as_table(run, rows, composed_rows, arguments.strengths))
        console.print(calibration_table(run, errors))
        everything[run] = {
            "recipe": recipe_of(run),
            "summary": summary(rows, arguments.strengths),
            "rows": rows,
            "other": {other: fr.evaluate(run, other, split="train").accuracy for other in arguments.other},
            "together": composed_rows,
            "calibration": errors,
        }
    console.print(comparison(everything, arguments.strengths, arguments.other))
    if arguments.json:
        arguments.json.write_text(json.dumps(everything, indent=2) + "\n")


if __name__ == "__main__":
    begin(main, Arguments)
