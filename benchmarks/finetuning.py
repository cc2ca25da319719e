"""Does fine-tuning beat training from scratch on few pictures? `python benchmarks/finetuning.py DATA`.

A network is first trained on drawn hand signs. Then, for each seed and number of training pictures, the same pictures
(as many of each class) train a network from those weights with the recipe `finetune`, and one from scratch with the
recipe `robust`, for as many epochs. Test accuracy is on all test pictures; the interval is over them, for all seeds
together.

`--rooms 0 1 2 --counts 24` asks instead whether a network that knows the classes can be brought to know a room: the
test pictures of DATA as each room shows them (`apply_room`), some of each class to learn and the others as a test.
There it may also be adapted to them without their labels.
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
# What all pictures of a room have in common; behind each is a wall with clutter, whatever the strength.
ROOM = ("background", "scale", "colour temperature", "gamma", "light gradient")


@dataclass(frozen=True)
class Arguments:
    """Compares test accuracies after fine-tuning and after training from scratch.

    Example: python benchmarks/finetuning.py datasets/ --counts 60 180 --seeds 0 1 2
    """

    data: str = positional("DATA")
    """As for train.py."""

    pretrained: str = "runs/drawn"
    """Run to start from; where it is not there, one is trained on drawn hand signs."""

    pretraining_epochs: int = 20
    """Epochs of that run."""

    counts: tuple[int, ...] = (60, 180)
    """Training pictures."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Choices of the pictures, and starts of training."""

    rooms: tuple[int, ...] = ()
    """Rooms, by their numbers, in which the test pictures are in place of DATA as it is."""

    strength: Literal["mild", "middle", "strong"] = "middle"
    """How much a room's light and distance differ."""

    ways: tuple[Way, ...] = ("fine-tuned", "from scratch")
    """What is compared; "as it is" is the network before fine-tuning, which has to know the classes. "adapted" is that
    with batch norm's statistics of the pictures, whose labels it does not see (`flaxresnet adapt`)."""

    options: tuple[str, ...] = ()
    """More options of fine-tuning, as NAME=VALUE in JSON: learning_rate=1e-3."""

    epochs: int = 30
    """Of fine-tuning, and of training from scratch."""

    batch_size: int = 20
    """Images in a step."""

    model: Model = "resnet50"
    """Size of the network."""

    json: Path | None = None
    """Write the figures to this file."""


def stratified_sample(data: fr.Dataset, count: int, seed: int) -> tuple[fr.Dataset, fr.Dataset]:
    """As many pictures of each class, drawn from a seed, and all others."""
    order = np.random.default_rng(seed).permutation(len(data))
    classes = len(data.class_names)
    chosen = np.sort([i for c in range(classes) for i in order[data.labels[order] == c][: count // classes]])
    rest = np.setdiff1d(np.arange(len(data)), chosen)
    if not min(len(chosen), len(rest)):
        raise UserError(f"--counts {count} of {len(data)} pictures leaves none to learn, or none to test")
    first, second = (fr.Dataset(data.images[i], data.labels[i], data.class_names) for i in (chosen, rest))
    return first, second


def apply_room(data: fr.Dataset, room: int, strength: str) -> fr.Dataset:
    """All pictures before the same wall, under the same lamp, from the same distance; which ones the number says."""
    images = []
    for image in data.images[:]:
        random = np.random.default_rng(room)
        for name in ROOM:
            image = CORRUPTIONS[name].changed(image, "strong" if name == "background" else strength, random)
        images.append(image)
    return fr.Dataset(np.stack(images), data.labels, data.class_names)


def tasks(arguments: Arguments) -> Iterator[tuple[dict[str, Any], fr.Dataset, fr.Dataset]]:
    """What is asked, the pictures to learn and those to test."""
    train, test = check_trainable(fr.open_dataset(arguments.data))
    for count in arguments.counts:
        for seed in arguments.seeds:
            for room in arguments.rooms:
                asked = {"pictures": f"{count} of room {room}", "seed": seed}
                yield asked, *stratified_sample(apply_room(test, room, arguments.strength), count, seed)
            if not arguments.rooms:
                yield {"pictures": str(count), "seed": seed}, stratified_sample(train, count, seed)[0], test


def finetuned_with(arguments: Arguments) -> dict[str, Any]:
    """The options of fine-tuning; raises UserError where what is given is none."""
    given = arguments.options
    try:
        more = {name: json.loads(value) for name, value in (option.split("=", 1) for option in given)}
    except ValueError:
        raise UserError(f"--options {' '.join(given)!r}: give NAME=VALUE, the value as in JSON") from None
    options = {"init": arguments.pretrained, "recipe": "finetune"} | more
    fr.TrainConfig.from_json(options).check()
    return options


def train_and_score(way: Way, folder: str, seed: int, arguments: Arguments) -> list[float]:
    """Test accuracy on the data in a folder after each epoch of training in this way, or without training."""
    if way == "as it is":
        return [fr.evaluate(arguments.pretrained, folder, split="test").accuracy]
    if way == "adapted":
        fr.adapt(arguments.pretrained, fr.open_dataset(folder).train.images, f"{folder}/{way}")
        return [fr.evaluate(f"{folder}/{way}", folder, split="test").accuracy]
    options: dict[str, Any] = {"model": arguments.model, "data": folder, "seed": seed, "epochs": arguments.epochs}
    options |= {"batch_size": arguments.batch_size, "workdir": f"{folder}/{way}", "report": False}
    run = fr.fit(fr.TrainConfig(**options | (finetuned_with(arguments) if way == "fine-tuned" else {})), quiet=True)
    return [row["test_accuracy"] for row in run.history]


def main(arguments: Arguments) -> None:
    finetuned_with(arguments)  # a mistake there shows before anything is trained
    if not arguments.rooms and arguments.strength != Arguments.strength:
        raise UserError(f"--strength {arguments.strength} is of rooms; give --rooms")
    if "adapted" in arguments.ways and min(arguments.counts) < MIN_PHOTOS:
        raise UserError(f"--counts {min(arguments.counts)} are too few to adapt to; give {MIN_PHOTOS} or more")
    asked_for = list(tasks(arguments))
    if not RunDir(arguments.pretrained).exists():
        options: dict[str, Any] = {"epochs": arguments.pretraining_epochs, "model": arguments.model}
        run = fr.fit(fr.TrainConfig(workdir=arguments.pretrained, **options))
        print(f"drawn hand signs: test accuracy {run.test_accuracy:.3f}")
    rows = []
    for asked, train, test in asked_for:
        with tempfile.TemporaryDirectory() as folder:
            for split, part in (("train", train), ("test", test)):
                write_hdf5(Path(folder) / f"{split}.h5", split, part)
            for way in arguments.ways:
                history = train_and_score(way, folder, asked["seed"], arguments)
                rows.append(asked | {"way": way, "accuracy": history[-1], "history": history, "images": len(test)})
                what = ", ".join(f"{name} {value}" for name, value in asked.items())
                print(f"{what}, {way}: test accuracy {history[-1]:.3f}", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    Console(width=100).print(as_table(rows))


def as_table(rows: list[dict[str, Any]]) -> Table:
    table = Table("pictures", "way", "test accuracy by seed", "mean", "95% interval", box=box.SIMPLE)
    for pictures, way in dict.fromkeys((row["pictures"], row["way"]) for row in rows):
        found = [row for row in rows if (row["pictures"], row["way"]) == (pictures, way)]
        images = sum(row["images"] for row in found)
        low, high = wilson_interval(round(sum(row["accuracy"] * row["images"] for row in found)), images)
        figures = ", ".join(f"{row['accuracy']:.3f}" for row in found)
        mean = np.mean([row["accuracy"] for row in found])
        table.add_row(pictures, way, figures, f"{mean:.3f}", f"{low:.3f}–{high:.3f}")
    return table


if __name__ == "__main__":
    begin(main, Arguments)
