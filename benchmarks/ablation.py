"""How much accuracy does each part of the recipe `robust` add?

    python benchmarks/ablation.py DATA OTHER

For each seed, the script trains a network on DATA with the recipe, and one network for each ablation: the recipe
without one of its parts, or with a part that it does not have. The table has one row for each ablation, with means over
the seeds: accuracy on the test images ("clean"), mean accuracy over the nineteen corruptions of `robustness.py` at the
middle strength ("changed") and at the strong one ("strongly"), and accuracy on the training images of OTHER, data with
the same classes from another source ("other"). The last columns are the differences from the recipe, with the standard
error of their mean over the seeds.

To choose a recipe by this table, pass data that `robustness.py --hold-out` wrote as DATA.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import numpy as np
from bench_cli import begin
from rich import box
from rich.console import Console
from rich.table import Table
from robustness import accuracy_rows, corruption_logits, summary

import flaxresnet as fr
from flaxresnet.classifier import Classifier
from flaxresnet.cli.parser import positional
from flaxresnet.runtime.errors import UserError

RECIPE = "the recipe"
# The difference of each ablation from the recipe: fields of TrainConfig, or constants of a module in
# flaxresnet/augment.
ABLATIONS: dict[str, dict[str, Any]] = {
    RECIPE: {},
    "without rotation": {"geometric.ROTATION": 0.0},
    "without scale and aspect ratio": {"geometric.LOG_SCALE": 0.0, "geometric.LOG_ASPECT": 0.0},
    "without shear and tilt": {"geometric.SHEAR": 0.0, "geometric.TILT": 0.0},
    "without shift": {"geometric.SHIFT": 0.0},
    "without flip": {"hflip": False},
    "without contrast, brightness and gamma": {
        "color_jitter.LOG_CONTRAST": 0.0,
        "color_jitter.BRIGHTNESS": 0.0,
        "color_jitter.LOG_MIDTONES": 0.0,
    },
    "without color and gray": {
        "color_jitter.LOG_CHANNEL_GAIN": 0.0,
        "color_jitter.SATURATION": 0.0,
        "color_jitter.GRAYSCALE": 0.0,
    },
    "without uneven light": {"color_jitter.SHADOW": 0.0},
    "without blur and noise": {"blur_noise.BLUR": 0.0, "blur_noise.NOISE": 0.0},
    "without background replacement": {"background_prob": 0.0},
    "without augmentation warmup": {"aug_warmup_epochs": 0.0},
    "without label smoothing": {"label_smoothing": 0.0},
    "without augmentation": {"aug_strength": 0.0, "background_prob": 0.0},
    "with strength 1": {"aug_strength": 1.0},
    "with strength 2": {"aug_strength": 2.0},
    "with background replacement 0.4": {"background_prob": 0.4},
    "with random erasing 0.25": {"random_erasing": 0.25},
    "with mixup 0.2": {"mixup": 0.2},
    "with CutMix 1.0": {"cutmix": 1.0},
    "with EMA 0.98": {"ema": 0.98},
}
INIT = "with --init"
STRENGTHS = ("middle", "strong")
FIGURES = ("clean", "changed", "strongly", "other")


@dataclass(frozen=True)
class Arguments:
    """Measures the accuracy of the recipe robust with and without its parts.

    Example: python benchmarks/ablation.py held/ drawn/ --seeds 0 1 2
    """

    data: str = positional("DATA")
    """Data to train on and to test on, as for `flaxresnet train --data`."""

    other: str = positional("OTHER")
    """Data of the same classes from another source; its training images are a second test."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Random seeds of training."""

    ways: tuple[str, ...] = tuple(ABLATIONS)
    """Ablations to run; differences are printed only if "the recipe" is among them."""

    model: str = "resnet14"
    """Network to train."""

    width: int = 24
    """Channels of its first stage."""

    epochs: int = 40
    """Epochs of each training."""

    init: str | None = None
    """Run or weight file; adds the ablation "with --init", the recipe with these pretrained weights."""

    json: Path | None = None
    """Write the figures to this file after each training."""


@contextmanager
def patched_constants(values: dict[str, float]) -> Iterator[None]:
    """Sets constants of the augmentation, "module.NAME", for functions that JAX traces within the context."""
    modules = {name: import_module(f"flaxresnet.augment.{name.split('.')[0]}") for name in values}
    original = {name: getattr(module, name.split(".")[1]) for name, module in modules.items()}
    jax.clear_caches()  # functions traced with other values
    try:
        for name, module in modules.items():
            setattr(module, name.split(".")[1], values[name])
        yield
    finally:
        for name, module in modules.items():
            setattr(module, name.split(".")[1], original[name])
        jax.clear_caches()


def train_and_measure(arguments: Arguments, way: str, seed: int) -> dict[str, Any]:
    """Trains one network; returns its `FIGURES`, the worst corruption at the middle strength, and a row for each."""
    changes = {"init": arguments.init} if way == INIT else ABLATIONS[way]
    constants = {name: value for name, value in changes.items() if "." in name}
    options = {name: value for name, value in changes.items() if "." not in name}
    with tempfile.TemporaryDirectory() as workdir, patched_constants(constants):
        config = fr.TrainConfig(
            data=arguments.data,
            workdir=workdir,
            epochs=arguments.epochs,
            seed=seed,
            recipe="robust",
            model=arguments.model,
            width=arguments.width,
            report=False,
            **options,
        )
        fr.fit(config, quiet=True)
        classifier = Classifier.load(workdir)
        test = fr.open_dataset(arguments.data).test
        rows = accuracy_rows(corruption_logits(classifier.logits, test.images[:], STRENGTHS), test.labels)
        other = fr.evaluate(workdir, arguments.other, split="train").accuracy
    result = summary(rows, STRENGTHS)
    return {
        "way": way,
        "seed": seed,
        "clean": result["clean"],
        "changed": result["middle"]["mean"],
        "strongly": result["strong"]["mean"],
        "other": other,
        "worst": result["middle"]["worst shift"],
        "rows": rows,
    }


def as_table(rows: list[dict[str, Any]]) -> Table:
    """Returns one row for each ablation, as the module docstring describes."""
    table = Table("", *FIGURES, "difference: changed", "strongly", "other", box=box.SIMPLE)
    by_way: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        by_way.setdefault(row["way"], {})[row["seed"]] = row
    recipe = by_way.get(RECIPE, {})
    for way, by_seed in by_way.items():
        means = [f"{np.mean([row[name] for row in by_seed.values()]):.3f}" for name in FIGURES]
        differences = [difference(by_seed, recipe, name) for name in FIGURES[1:]]
        table.add_row(way, *means, *differences)
    return table


def difference(rows: dict[int, dict[str, Any]], reference: dict[int, dict[str, Any]], name: str) -> str:
    """Formats the mean over common seeds of a figure minus its reference, with the standard error; "" if all are 0."""
    values = np.array([rows[seed][name] - reference[seed][name] for seed in rows if seed in reference])
    if not values.any():
        return ""
    error = f" ± {values.std(ddof=1) / np.sqrt(len(values)):.3f}" if len(values) > 1 else ""
    return f"{values.mean():+.3f}{error}"


def main(arguments: Arguments) -> None:
    ways = list(dict.fromkeys(arguments.ways))
    known = list(ABLATIONS)
    if arguments.init is not None:
        known.append(INIT)
        ways.append(INIT)
    unknown = [way for way in ways if way not in known]
    if unknown:
        raise UserError(f"--ways {unknown[0]!r} is not one of {', '.join(map(repr, known))}")
    rows = []
    for seed in arguments.seeds:
        for way in ways:
            row = train_and_measure(arguments, way, seed)
            rows.append(row)
            print(f"seed {seed}, {way}: " + ", ".join(f"{name} {row[name]:.3f}" for name in FIGURES), flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    Console(width=120).print(as_table(rows))


if __name__ == "__main__":
    begin(main, Arguments)
