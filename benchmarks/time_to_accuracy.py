"""Seconds from a process's start to a test accuracy: `python benchmarks/time_to_accuracy.py DATA`.

Ours against the Keras tutorials' own way (`keras_tutorial.py`), in turns, seed by seed, each in a process of its own
that is stopped once it has got there. Start-up, compilation (into an empty cache) and the test after every epoch count.
"""

import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from bench_cli import begin
from rich import box
from rich.console import Console
from rich.table import Table

from flaxresnet.cli.parser import positional
from flaxresnet.runtime.errors import UserError

HERE = Path(__file__).parent
EPOCHS = {"fast": 6, "tutorial": 20, "robust": 20}
ACCURACY = re.compile(r"test .*?accuracy (\d\.\d+)")


@dataclass(frozen=True)
class Arguments:
    """Times training until a test accuracy is reached, ours against the Keras tutorials' code.

    Example: python benchmarks/time_to_accuracy.py datasets/ --seeds 0 1 2
    """

    data: Path = positional("DATA")
    """Folder with train_signs.h5 and test_signs.h5."""

    target: float = 0.98
    """Test accuracy to reach."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """A run of each contestant for every seed."""

    recipes: tuple[Literal[*EPOCHS], ...] = ("fast",)  # type: ignore[valid-type]
    """Our recipes."""

    keras_epochs: int = 20
    """After which the Keras tutorials' code has failed."""

    keras_limit: float = math.inf
    """Stop the Keras tutorials' code when it has taken this many times as long as ours: enough to know a ratio."""

    keras: bool = True
    """Run the Keras tutorials' code as well."""

    json: Path | None = None
    """Write the figures to this file."""


def ours(recipe: str, seed: int, arguments: Arguments, scratch: str) -> list[str]:
    program = [sys.executable, str(HERE.parent / "train.py"), "--data", str(arguments.data), "--recipe", recipe]
    # The length shapes the learning rate's course, so it is the recipe's own.
    return [*program, "--epochs", str(EPOCHS[recipe]), "--seed", str(seed), "--workdir", f"{scratch}/run"]


def keras_tutorial(seed: int, arguments: Arguments) -> list[str]:
    paths = (str(arguments.data / f"{split}_signs.h5") for split in ("train", "test"))
    return [sys.executable, str(HERE / "keras_tutorial.py"), *paths, str(arguments.keras_epochs), str(seed)]


def run(command: list[str], target: float, environment: dict[str, str], limit: float = math.inf) -> dict[str, Any]:
    """Runs until a line reports the accuracy, or for `limit` seconds; the seconds and epochs it took."""
    start, accuracies, reached = time.perf_counter(), [], False
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    inherited = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    with subprocess.Popen(command, env=inherited | environment, text=True, **pipes) as process:
        stop = threading.Timer(min(limit, threading.TIMEOUT_MAX), process.kill)
        stop.daemon = True
        stop.start()
        for line in process.stdout:
            if line.startswith("epoch") and (found := ACCURACY.search(line)):
                accuracies.append(round(float(found[1]), 3))  # ours tells no more
                if reached := accuracies[-1] >= target:
                    break
        seconds = time.perf_counter() - start
        stop.cancel()
        if reached:
            process.kill()
    if not accuracies and seconds < limit:
        raise SystemExit(f"no epoch of `{' '.join(command)}` ended; run it to see why")
    if not reached and seconds < limit and process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(f"`{' '.join(command)}` ended with status {process.returncode}; run it to see why")
    return {"seconds": seconds, "epochs": len(accuracies), "reached": reached, "accuracies": accuracies}


def main(arguments: Arguments) -> None:
    console, rows = Console(width=100), []
    for split in ("train", "test"):
        if not (path := arguments.data / f"{split}_signs.h5").exists():
            raise UserError(f"{path} is not there; `flaxresnet make-data {arguments.data}` draws some")
    if arguments.keras and not find_spec("keras"):
        console.print("Keras tutorial: not timed, keras is not installed")
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as scratch:
            contestants = {
                f"flaxresnet, {recipe}": (
                    ours(recipe, seed, arguments, f"{scratch}/{recipe}"),
                    {"XDG_CACHE_HOME": f"{scratch}/cache-{recipe}"},
                )
                for recipe in arguments.recipes
            }
            if arguments.keras and find_spec("keras"):
                backend = "tensorflow" if find_spec("tensorflow") else "jax"
                contestants[f"Keras tutorial, {backend}"] = (
                    keras_tutorial(seed, arguments),
                    {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
                )
            first = math.inf
            for name, (command, environment) in contestants.items():
                limit = arguments.keras_limit * first if name.startswith("Keras") else math.inf
                rows.append({"who": name, "seed": seed} | run(command, arguments.target, environment, limit))
                first = min(first, rows[-1]["seconds"])
                console.print(f"{name}, seed {seed}: {said(rows[-1])}")
    console.print(as_table(rows, arguments.target))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def said(row: dict[str, Any]) -> str:
    best = f", not reached: {max(row['accuracies'], default=0):.3f} at best"
    return f"{row['seconds']:.0f} s, {row['epochs']} epochs{'' if row['reached'] else best}"


def as_table(rows: list[dict[str, Any]], target: float) -> Table:
    table = Table("by", "runs", box=box.SIMPLE, title=f"until {target:.0%} test accuracy", title_justify="left")
    table.add_column("median s", justify="right")
    for who in dict.fromkeys(row["who"] for row in rows):
        runs = [row for row in rows if row["who"] == who]
        median, all_reached = statistics.median(row["seconds"] for row in runs), all(row["reached"] for row in runs)
        table.add_row(who, "; ".join(map(said, runs)), f"{'' if all_reached else '> '}{median:.0f}")
    return table


if __name__ == "__main__":
    begin(main, Arguments)
