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

ACCURACY = {"test": "Test Accuracy", "train": "Train Accuracy", "all": "Accuracy"}  # of the splits
MAX_LINE = 400  # columns, where the output is no terminal
MAX_CONFUSION = 20  # classes; a larger matrix does not fit a terminal, and is in --json


@dataclass(frozen=True)
class Arguments:
    """Evaluates a trained run on labelled images.

    Example: flaxresnet evaluate runs/default --data datasets/test_signs.h5
    """

    run: str = positional("RUN")
    """Folder of the run (train.py's --workdir)."""

    data: str | None = None
    """HDF5 file or folder with a test split, or folder of pictures of each class. Left out: what it was trained on."""

    max_corrupt_fraction: float = 0.0
    """Largest share of unreadable pictures in --data that is left out."""

    checkpoint: CheckpointChoice = "latest"
    """The weights after the last epoch, or those that were best on the test images (a flattering choice)."""

    split: Split | None = None
    """Which split of the data, or all of it. Left out: test; all of a folder of pictures that has no folders for splits
    and was not trained with."""

    json: bool = False
    """Print one JSON object instead of tables."""


def main(arguments: Arguments) -> int:
    use_compilation_cache()
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
        # A file or a pipe takes lines of any length; only a terminal has a width.
        show(result, Console() if sys.stdout.isatty() else Console(width=MAX_LINE))
    return 0


def show(result: Evaluation, console: Console) -> None:
    low, high = result.accuracy_interval
    lines = (
        f"data: {result.source}",
        f"Loss = {result.loss:.4f}",
        f"{ACCURACY[result.split]} = {result.accuracy:.4f}"
        f"  (95% interval {low:.4f} to {high:.4f}, {result.count} images)",
        *([f"warning: {result.warning}"] if result.warning else []),
    )
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(per_class_table(result))
    if len(result.class_names) <= MAX_CONFUSION:
        console.print(confusion_table(result))
    else:
        console.print(f"confusion matrix of {len(result.class_names)} classes: see --json")


def per_class_table(result: Evaluation) -> Table:
    table = Table("class", title="per class (recall with its 95% interval)")
    for name in ("images", "precision", "recall", "interval", "F1"):
        table.add_column(name, justify="right")
    for row in result.per_class:
        low, high = row["recall_interval"]
        figures = [_figure(row[key]) for key in ("precision", "recall")]
        table.add_row(escape(row["class"]), str(row["images"]), *figures, f"{low:.3f}–{high:.3f}", _figure(row["f1"]))
    return table


def confusion_table(result: Evaluation) -> Table:
    table = Table("true \\ predicted", title="confusion matrix (images)")
    for name in result.class_names:
        table.add_column(escape(name), justify="right")
    for name, row in zip(result.class_names, result.confusion.tolist(), strict=True):
        table.add_row(escape(name), *(str(count) if count else "·" for count in row))
    return table


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
