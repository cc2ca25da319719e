"""`flaxresnet evaluate RUN --data PATH`."""

import json
import sys
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flaxresnet.cli.parser import positional
from flaxresnet.config.train_config import CheckpointChoice
from flaxresnet.evaluation import Evaluation, Split, evaluate
from flaxresnet.runtime.compilation_cache import use_compilation_cache
from flaxresnet.runtime.terminal import status

ACCURACY = {"test": "Test Accuracy", "train": "Train Accuracy", "all": "Accuracy"}  # by split
MAX_LINE = 400  # columns if the output is not a terminal
MAX_CONFUSION = 20  # classes; a larger confusion matrix does not fit a terminal


@dataclass(frozen=True)
class Arguments:
    """Evaluates a run on labeled images: loss, accuracy, per-class metrics and confusion matrix.

    Example: flaxresnet evaluate runs/default --data datasets/test_signs.h5
    """

    run: str = positional("RUN")
    """Run folder (the --workdir of training)."""

    data: str | None = None
    """HDF5 file, folder with HDF5 or ArrayRecord files, or folder with one subfolder of images per class. Default: the
    dataset that the run was trained on."""

    max_corrupt_fraction: float = 0.0
    """Maximum fraction of corrupt images in --data to skip; the command fails above it."""

    checkpoint: CheckpointChoice = "latest"
    """Weights to use. latest: from the last epoch; best: from the epoch with the highest test accuracy, which makes
    test metrics look better than they are."""

    split: Split | None = None
    """Split to evaluate on. Default: test, or all images of an image folder that has no split folders and was not used
    in training."""

    json: bool = False
    """Print one JSON object instead of tables."""


def main(arguments: Arguments) -> int:
    use_compilation_cache()
    with status("Evaluating…"):
        result = evaluate(
            arguments.run,
            arguments.data,
            checkpoint=arguments.checkpoint,
            split=arguments.split,
            max_corrupt_fraction=arguments.max_corrupt_fraction,
        )
    if arguments.json:
        print(json.dumps(result.to_json()))
    else:
        # A file or a pipe has no width; `MAX_LINE` columns fit nearly all tables.
        show(result, Console() if sys.stdout.isatty() else Console(width=MAX_LINE))
    return 0


def show(result: Evaluation, console: Console) -> None:
    """Prints the metrics, the per-class table, and the confusion matrix of at most `MAX_CONFUSION` classes."""
    low, high = result.accuracy_interval
    interval = f"95% interval {low:.4f} to {high:.4f}, {result.count} images"
    lines = [
        f"data: {result.source}",
        f"Loss = {result.loss:.4f}",
        f"{ACCURACY[result.split]} = {result.accuracy:.4f}  ({interval})",
    ]
    if result.warning:
        lines.append(f"warning: {result.warning}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(per_class_table(result))
    if len(result.class_names) <= MAX_CONFUSION:
        console.print(confusion_table(result))
    else:
        console.print(
            f"the confusion matrix of {len(result.class_names)} classes is too large to print here; --json contains it"
        )


def per_class_table(result: Evaluation) -> Table:
    """Returns a table with the metrics of each class."""
    table = Table("class", title="per class (recall with its 95% interval)")
    for name in ("images", "precision", "recall", "interval", "F1"):
        table.add_column(name, justify="right")
    for row in result.per_class:
        low, high = row["recall_interval"]
        table.add_row(
            escape(row["class"]),
            str(row["images"]),
            _format(row["precision"]),
            _format(row["recall"]),
            f"{low:.3f}–{high:.3f}",
            _format(row["f1"]),
        )
    return table


def confusion_table(result: Evaluation) -> Table:
    """Returns the confusion matrix: rows are true classes, columns predicted classes."""
    table = Table("true \\ predicted", title="confusion matrix (images)")
    for name in result.class_names:
        table.add_column(escape(name), justify="right")
    for name, row in zip(result.class_names, result.confusion.tolist(), strict=True):
        table.add_row(escape(name), *(str(count) if count else "·" for count in row))
    return table


def _format(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
