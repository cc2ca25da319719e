"""Does fine-tuning beat training from scratch on few pictures? `python benchmarks/finetuning.py DATA`.

A network is first trained on drawn hand signs. Then, for each seed and number of training pictures, the same pictures
(as many of each class) train a network from those weights with the recipe `finetune`, and one from scratch with the
recipe `robust`, for as many epochs. Test accuracy is on all test pictures; the interval is over them, for all seeds
together.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from command import begin
from rich import box
from rich.console import Console
from rich.table import Table

import flaxresnet as fr
from flaxresnet.data.hdf5 import write_hdf5
from flaxresnet.training.metrics import wilson_interval


@dataclass(frozen=True)
class Arguments:
    """Compares test accuracies after fine-tuning and after training from scratch.

    Example: python benchmarks/finetuning.py datasets/ --counts 60 180 --seeds 0 1 2
    """

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """As for train.py."""

    pretrained: str = "runs/drawn"
    """Run on drawn hand signs to start from; it is trained where it is not there."""

    pretraining_epochs: int = 20
    """Epochs of that run."""

    counts: tuple[int, ...] = (60, 180)
    """Training pictures."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Choices of the pictures, and starts of training."""

    epochs: int = 30
    """Of fine-tuning, and of training from scratch."""

    batch_size: int = 20
    """Images in a step."""

    model: str = "resnet50"
    """Size of the network."""

    json: Path | None = None
    """Write the figures to this file."""


def some_of(data: fr.Dataset, count: int, seed: int) -> fr.Dataset:
    """As many pictures of each class, drawn from a seed."""
    order = np.random.default_rng(seed).permutation(len(data))
    classes = len(data.class_names)
    chosen = [i for c in range(classes) for i in order[data.labels[order] == c][: count // classes]]
    return fr.Dataset(data.images[np.sort(chosen)], data.labels[np.sort(chosen)], data.class_names)


def main(arguments: Arguments) -> None:
    splits = fr.open_dataset(arguments.data)
    common: dict[str, Any] = {"model": arguments.model}
    pretraining = fr.TrainConfig(workdir=arguments.pretrained, epochs=arguments.pretraining_epochs, **common)
    pretrained = fr.fit(pretraining)
    print(f"drawn hand signs: test accuracy {pretrained.test_accuracy:.3f}")
    ways = {"fine-tuned": {"init": arguments.pretrained, "recipe": "finetune"}, "from scratch": {"recipe": "robust"}}
    rows = []
    for count in arguments.counts:
        for seed in arguments.seeds:
            with tempfile.TemporaryDirectory() as folder:
                write_hdf5(Path(folder) / "train.h5", "train", some_of(splits.train, count, seed))
                write_hdf5(Path(folder) / "test.h5", "test", splits.test)
                common |= {"data": folder, "seed": seed, "epochs": arguments.epochs, "batch_size": arguments.batch_size}
                for way, options in ways.items():
                    run = fr.fit(fr.TrainConfig(workdir=f"{folder}/{way}", **common, **options), verbose=False)
                    history = [row["test_accuracy"] for row in run.history]
                    rows.append(
                        {"count": count, "seed": seed, "way": way, "accuracy": run.test_accuracy, "history": history}
                    )
                    print(f"{count} pictures, seed {seed}, {way}: test accuracy {run.test_accuracy:.3f}", flush=True)
    Console(width=100).print(as_table(rows, len(splits.test)))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def as_table(rows: list[dict[str, Any]], test_images: int) -> Table:
    table = Table("pictures", "way", "test accuracy by seed", "mean", "95% interval", box=box.SIMPLE)
    for count, way in dict.fromkeys((row["count"], row["way"]) for row in rows):
        found = [row["accuracy"] for row in rows if (row["count"], row["way"]) == (count, way)]
        low, high = wilson_interval(round(sum(found) * test_images), len(found) * test_images)
        figures = ", ".join(f"{accuracy:.3f}" for accuracy in found)
        table.add_row(str(count), way, figures, f"{np.mean(found):.3f}", f"{low:.3f}–{high:.3f}")
    return table


if __name__ == "__main__":
    begin(main, Arguments)
