"""What does each part of the recipe `robust` add? `python benchmarks/ablation.py DATA OTHER`.

A network is trained on DATA once with the recipe as it is and once for each of its parts without that part, or with
another that it has not; all of them for each seed. Then: test accuracy, the mean over nineteen changes of the test
images at the middle and at the strong strength (`robustness.py`), and accuracy on all training images of OTHER, of the
same classes but from elsewhere. To choose by these figures, take DATA that `robustness.py --hold-out` wrote.
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
from robustness import answered, measured, summary

import flaxresnet as fr
from flaxresnet.classifier import Classifier
from flaxresnet.cli.parser import positional
from flaxresnet.runtime.errors import UserError

# What differs from the recipe: options of training, or ranges of a module in flaxresnet/augment.
ABLATIONS: dict[str, dict[str, Any]] = {
    "the recipe": {},
    "without rotation": {"geometric.ROTATION": 0.0},
    "without scale and proportions": {"geometric.LOG_SCALE": 0.0, "geometric.LOG_ASPECT": 0.0},
    "without shear and tilt": {"geometric.SHEAR": 0.0, "geometric.TILT": 0.0},
    "without shift": {"geometric.SHIFT": 0.0},
    "without the flip": {"hflip": False},
    "without contrast, brightness, mid-tones": {
        "color_jitter.LOG_CONTRAST": 0.0,
        "color_jitter.BRIGHTNESS": 0.0,
        "color_jitter.LOG_MIDTONES": 0.0,
    },
    "without colour and grey": {
        "color_jitter.LOG_COLOUR": 0.0,
        "color_jitter.SATURATION": 0.0,
        "color_jitter.GREY": 0.0,
    },
    "without light from one side": {"color_jitter.UNEVEN": 0.0},
    "without blur and noise": {"blur_noise.BLUR": 0.0, "blur_noise.NOISE": 0.0},
    "without other background_prob": {"background_prob": 0.0},
    "without the rise of the strength": {"aug_warmup_epochs": 0.0},
    "without label smoothing": {"label_smoothing": 0.0},
    "without any of the augmentation": {"aug_strength": 0.0, "background_prob": 0.0},
    "with strength 1": {"aug_strength": 1.0},
    "with strength 2": {"aug_strength": 2.0},
    "with backgrounds 0.4": {"background_prob": 0.4},
    "with a part covered (erase 0.25)": {"random_erasing": 0.25},
    "with mixup 0.2": {"mixup": 0.2},
    "with CutMix 1.0": {"cutmix": 1.0},
    "with averaged weights (ema 0.98)": {"ema": 0.98},
}
BEGUN = "begun with --init"
STRENGTHS = ("middle", "strong")
FIGURES = ("clean", "changed", "strongly", "other")


@dataclass(frozen=True)
class Arguments:
    """Compares accuracies of the recipe robust with and without its parts.

    Example: python benchmarks/ablation.py held/ drawn/ --seeds 0 1 2
    """

    data: str = positional("DATA")
    """Trained on, and tested with its test images; as for train.py."""

    other: str = positional("OTHER")
    """Data of the same classes whose training images are a test of another kind."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Starts of training."""

    ways: tuple[str, ...] = tuple(ABLATIONS)
    """Some of the ways; the recipe itself is what the others are compared with."""

    model: str = "resnet14"
    """Size of the network."""

    width: int = 24
    """Channels of its first stage."""

    epochs: int = 40
    """Of training."""

    init: str | None = None
    """What one more way, "begun with --init", begins with: a run, or a file of weights."""

    json: Path | None = None
    """Write the figures to this file, after each training."""


@contextmanager
def with_ranges(ranges: dict[str, float]) -> Iterator[None]:
    """Ranges of the augmentation, by module and name, for the programs that are made within."""
    places = {name: (import_module(f"flaxresnet.augment.{name.split('.')[0]}"), name.split(".")[1]) for name in ranges}
    before = {name: getattr(*place) for name, place in places.items()}
    jax.clear_caches()  # what was traced with other values
    try:
        for name, place in places.items():
            setattr(*place, ranges[name])
        yield
    finally:
        for name, place in places.items():
            setattr(*place, before[name])
        jax.clear_caches()


def trained_and_measured(arguments: Arguments, way: str, seed: int) -> dict[str, Any]:
    """Accuracies of one training: clean, changed and strongly so (means over kinds), other, the kind that is worst."""
    differing = {"init": arguments.init} if way == BEGUN else ABLATIONS[way]
    ranges = {name: value for name, value in differing.items() if "." in name}
    options = {name: value for name, value in differing.items() if "." not in name}
    options |= {"model": arguments.model, "width": arguments.width}
    options |= {"data": arguments.data, "epochs": arguments.epochs, "seed": seed, "recipe": "robust", "report": False}
    with tempfile.TemporaryDirectory() as workdir, with_ranges(ranges):
        fr.fit(fr.TrainConfig(workdir=workdir, **options), quiet=True)
        classifier = Classifier.load(workdir)
        test = fr.open_dataset(arguments.data).test
        rows = measured(answered(classifier.logits, test.images[:], STRENGTHS), test.labels)
        other = fr.evaluate(workdir, arguments.other, split="train").accuracy
    found = summary(rows, STRENGTHS)
    changed, strongly = (found[strength]["mean"] for strength in STRENGTHS)
    figures = {"clean": found["clean"], "changed": changed, "strongly": strongly, "other": other}
    figures["worst"] = found["middle"]["worst shift"]
    return {"way": way, "seed": seed, **figures, "rows": rows}


def as_table(rows: list[dict[str, Any]]) -> Table:
    """Means over the seeds, and their differences from the recipe, seed by seed, with the mean's standard error."""
    table = Table("", *FIGURES, "difference: changed", "strongly", "other", box=box.SIMPLE)
    by_way: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        by_way.setdefault(row["way"], {})[row["seed"]] = row
    recipe = by_way.get("the recipe", {})
    for way, by_seed in by_way.items():
        means = [f"{np.mean([row[name] for row in by_seed.values()]):.3f}" for name in FIGURES]
        table.add_row(way, *means, *(difference(by_seed, recipe, name) for name in FIGURES[1:]))
    return table


def difference(mine: dict[int, dict[str, Any]], theirs: dict[int, dict[str, Any]], name: str) -> str:
    apart = np.array([mine[seed][name] - theirs[seed][name] for seed in mine if seed in theirs])
    if not apart.any():
        return ""
    error = f" ± {apart.std(ddof=1) / np.sqrt(len(apart)):.3f}" if len(apart) > 1 else ""
    return f"{apart.mean():+.3f}{error}"


def main(arguments: Arguments) -> None:
    begun = [BEGUN] * (arguments.init is not None)
    known, ways = [*ABLATIONS, *begun], dict.fromkeys([*arguments.ways, *begun])
    if unknown := [way for way in arguments.ways if way not in known]:
        raise UserError(f"--ways {unknown[0]!r} is not one of {', '.join(map(repr, known))}")
    rows = []
    for seed in arguments.seeds:
        for way in ways:
            rows.append(row := trained_and_measured(arguments, way, seed))
            print(f"seed {seed}, {way}: " + ", ".join(f"{name} {row[name]:.3f}" for name in FIGURES), flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    Console(width=120).print(as_table(rows))


if __name__ == "__main__":
    begin(main, Arguments)
