"""Does fine-tuning beat training from scratch on few photos?

    python benchmarks/finetuning.py DATA
    python benchmarks/finetuning.py DATA --rooms 0 1 2 --counts 24 --ways "as it is" adapted fine-tuned

The script first trains a network on drawn hand signs, unless `--pretrained` exists. For each seed and number of
training photos, stratified by class, it then fine-tunes these weights with the recipe `finetune` and trains a network
from scratch with the recipe `robust`, on the same photos and for as many epochs.

With `--rooms`, the pretrained network, which has to have the classes of DATA, is brought to the test photos of DATA as
taken in a room (`apply_room`): some of each class are for training or for `flaxresnet adapt`, the others are the test.

The table has one row for each number of photos and each way: the test accuracy for each seed (and room), their mean,
and the 95% interval over the test photos of all seeds together, which ignores that seeds share their test photos.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from bench_cli import begin
from rich import box
from rich.console import Console
from rich.table import Table

import flaxresnet as fr
from flaxresnet.adabn import MIN_PHOTOS
from flaxresnet.cli.parser import positional
from flaxresnet.config.recipes import Model
from flaxresnet.data.hdf5 import write_hdf5
from flaxresnet.reliability.corruptions import CORRUPTIONS
from flaxresnet.reliability.intervals import wilson_interval
from flaxresnet.runs.run_dir import RunDir
from flaxresnet.runtime.errors import UserError
from flaxresnet.training.run_setup import check_trainable

Way = Literal["as it is", "adapted", "fine-tuned", "from scratch"]
# Corruptions that all photos of a room share. The background has clutter at any --strength.
ROOM = ("background", "scale", "colour temperature", "gamma", "light gradient")


@dataclass(frozen=True)
class Arguments:
    """Compares fine-tuning, adaptation and training from scratch on few photos.

    Example: python benchmarks/finetuning.py datasets/ --counts 60 180 --seeds 0 1 2
    """

    data: str = positional("DATA")
    """Photos to train on and to test on, as for `flaxresnet train --data`."""

    pretrained: str = "runs/drawn"
    """Run to start from. If the folder has no run, one is trained there on drawn hand signs."""

    pretraining_epochs: int = 20
    """Epochs of that run."""

    counts: tuple[int, ...] = (60, 180)
    """Numbers of training photos."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Random seeds of the choice of photos and of training."""

    rooms: tuple[int, ...] = ()
    """Numbers of rooms, which seed background and light. The photos are then DATA's test photos in these rooms."""

    strength: Literal["mild", "middle", "strong"] = "middle"
    """Strength of a room's light and distance."""

    ways: tuple[Way, ...] = ("fine-tuned", "from scratch")
    """Ways to compare. "as it is" is the pretrained network, which has to have the classes of DATA. "adapted" is that
    network after `flaxresnet adapt`, which takes the photos without their labels."""

    options: tuple[str, ...] = ()
    """More options of fine-tuning, as NAME=VALUE in JSON, such as learning_rate=1e-3."""

    epochs: int = 30
    """Epochs of fine-tuning and of training from scratch."""

    batch_size: int = 20
    """Images in a step."""

    model: Model = "resnet50"
    """Network to train."""

    json: Path | None = None
    """Write the figures to this file."""


def stratified_sample(data: fr.Dataset, count: int, seed: int) -> tuple[fr.Dataset, fr.Dataset]:
    """Returns `count` random photos with as many of each class, and all other photos.

    Raises:
      UserError: one of the two would be empty.
    """
    order = np.random.default_rng(seed).permutation(len(data))
    classes = len(data.class_names)
    by_class = [order[data.labels[order] == label][: count // classes] for label in range(classes)]
    chosen = np.sort(np.concatenate(by_class))
    rest = np.setdiff1d(np.arange(len(data)), chosen)
    if not min(len(chosen), len(rest)):
        raise UserError(f"--counts {count} of {len(data)} photos leaves none for training, or none for testing")
    return subset(data, chosen), subset(data, rest)


def subset(data: fr.Dataset, indices: np.ndarray) -> fr.Dataset:
    return fr.Dataset(data.images[indices], data.labels[indices], data.class_names)


def apply_room(data: fr.Dataset, room: int, strength: str) -> fr.Dataset:
    """Returns all photos with one background, one light and one distance, which the number `room` seeds."""
    images = []
    for image in data.images[:]:
        random = np.random.default_rng(room)  # the same for every photo
        for name in ROOM:
            image = CORRUPTIONS[name].apply(image, "strong" if name == "background" else strength, random)
        images.append(image)
    return fr.Dataset(np.stack(images), data.labels, data.class_names)


def tasks(arguments: Arguments) -> Iterator[tuple[dict[str, Any], fr.Dataset, fr.Dataset]]:
    """Yields the fields that identify a row of figures, the training photos, and the test photos."""
    train, test = check_trainable(fr.open_dataset(arguments.data))
    for count in arguments.counts:
        for seed in arguments.seeds:
            for room in arguments.rooms:
                task = {"pictures": f"{count} of room {room}", "seed": seed}
                yield task, *stratified_sample(apply_room(test, room, arguments.strength), count, seed)
            if not arguments.rooms:
                yield {"pictures": str(count), "seed": seed}, stratified_sample(train, count, seed)[0], test


def finetuning_options(arguments: Arguments) -> dict[str, Any]:
    """Returns the fields of TrainConfig for fine-tuning.

    Raises:
      UserError: `--options` cannot be parsed, names no field, or has a value that does not fit.
    """
    options: dict[str, Any] = {"init": arguments.pretrained, "recipe": "finetune"}
    for option in arguments.options:
        try:
            name, value = option.split("=", 1)
            options[name] = json.loads(value)
        except ValueError:
            raise UserError(f"--options {option!r}: give NAME=VALUE, with the value in JSON") from None
    fr.TrainConfig.from_json(options).check()
    return options


def train_and_score(way: Way, folder: str, seed: int, arguments: Arguments) -> list[float]:
    """Returns the test accuracy on the data in a folder after each epoch; one number if the way does not train."""
    if way == "as it is":
        return [fr.evaluate(arguments.pretrained, folder, split="test").accuracy]
    if way == "adapted":
        fr.adapt(arguments.pretrained, fr.open_dataset(folder).train.images, f"{folder}/{way}")
        return [fr.evaluate(f"{folder}/{way}", folder, split="test").accuracy]
    options: dict[str, Any] = {"model": arguments.model, "data": folder, "seed": seed, "epochs": arguments.epochs}
    options |= {"batch_size": arguments.batch_size, "workdir": f"{folder}/{way}", "report": False}
    if way == "fine-tuned":
        options |= finetuning_options(arguments)
    run = fr.fit(fr.TrainConfig(**options), quiet=True)
    return [row["test_accuracy"] for row in run.history]


def main(arguments: Arguments) -> None:
    finetuning_options(arguments)  # reports a wrong --options before anything is trained
    if not arguments.rooms and arguments.strength != Arguments.strength:
        raise UserError(f"--strength {arguments.strength} applies to rooms only; give --rooms")
    if "adapted" in arguments.ways and min(arguments.counts) < MIN_PHOTOS:
        raise UserError(f"--counts {min(arguments.counts)} is too few to adapt; give {MIN_PHOTOS} or more")
    all_tasks = list(tasks(arguments))  # reports a wrong DATA or --counts before anything is trained
    if not RunDir(arguments.pretrained).exists():
        config = fr.TrainConfig(
            workdir=arguments.pretrained, epochs=arguments.pretraining_epochs, model=arguments.model
        )
        run = fr.fit(config)
        print(f"drawn hand signs: test accuracy {run.test_accuracy:.3f}")
    rows = []
    for task, train, test in all_tasks:
        with tempfile.TemporaryDirectory() as folder:
            for split, part in (("train", train), ("test", test)):
                write_hdf5(Path(folder) / f"{split}.h5", split, part)
            for way in arguments.ways:
                history = train_and_score(way, folder, task["seed"], arguments)
                rows.append(task | {"way": way, "accuracy": history[-1], "history": history, "images": len(test)})
                print(f"{task['pictures']}, seed {task['seed']}, {way}: test accuracy {history[-1]:.3f}", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    Console(width=100).print(as_table(rows))


def as_table(rows: list[dict[str, Any]]) -> Table:
    table = Table("photos", "way", "test accuracy by seed", "mean", "95% interval", box=box.SIMPLE)
    for pictures, way in dict.fromkeys((row["pictures"], row["way"]) for row in rows):
        selected = [row for row in rows if (row["pictures"], row["way"]) == (pictures, way)]
        images = sum(row["images"] for row in selected)
        correct = round(sum(row["accuracy"] * row["images"] for row in selected))
        low, high = wilson_interval(correct, images)
        accuracies = [row["accuracy"] for row in selected]
        by_seed = ", ".join(f"{accuracy:.3f}" for accuracy in accuracies)
        table.add_row(pictures, way, by_seed, f"{np.mean(accuracies):.3f}", f"{low:.3f}–{high:.3f}")
    return table


if __name__ == "__main__":
    begin(main, Arguments)
