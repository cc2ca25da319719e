"""How many seconds does training take to reach a test accuracy, in flaxresnet and by the Keras tutorials' code?

    python benchmarks/time_to_accuracy.py DATA

For each seed, the script starts one process for each of our recipes and one for `keras_tutorial.py`, one after the
other, and stops each when it reaches the target. Start-up, compilation into an empty cache and the test after every
epoch count. The table has one row for each contestant: the seconds and epochs of each run, with the best accuracy of a
run that missed the target, and the median of the seconds, marked ">" if a run missed the target.
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
    """Times training until it reaches a test accuracy, beside the Keras tutorials' code.

    Example: python benchmarks/time_to_accuracy.py datasets/ --seeds 0 1 2
    """

    data: Path = positional("DATA")
    """Folder with train_signs.h5 and test_signs.h5."""

    target: float = 0.98
    """Test accuracy to reach."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Random seeds; each contestant runs once for every seed."""

    recipes: tuple[Literal[*EPOCHS], ...] = ("fast",)  # type: ignore[valid-type]
    """Recipes of flaxresnet."""

    keras_epochs: int = 20
    """Epochs of the Keras tutorials' code."""

    keras_limit: float = math.inf
    """Stop the Keras tutorials' code after this multiple of our fastest time, which bounds the ratio."""

    keras: bool = True
    """Run the Keras tutorials' code as well."""

    json: Path | None = None
    """Write the figures to this file."""


def train_command(recipe: str, seed: int, arguments: Arguments, scratch: str) -> list[str]:
    """Returns the command that trains with flaxresnet."""
    program = [sys.executable, str(HERE.parent / "train.py"), "--data", str(arguments.data), "--recipe", recipe]
    # The number of epochs shapes the learning-rate schedule, so it is the recipe's.
    return [*program, "--epochs", str(EPOCHS[recipe]), "--seed", str(seed), "--workdir", f"{scratch}/run"]


def keras_command(seed: int, arguments: Arguments) -> list[str]:
    """Returns the command that trains with the Keras tutorials' code."""
    paths = (str(arguments.data / f"{split}_signs.h5") for split in ("train", "test"))
    return [sys.executable, str(HERE / "keras_tutorial.py"), *paths, str(arguments.keras_epochs), str(seed)]


def run(command: list[str], target: float, environment: dict[str, str], limit: float = math.inf) -> dict[str, Any]:
    """Runs a command until a line of its output reports the target accuracy.

    Args:
      command: prints "epoch … test … accuracy 0.9876" after each epoch.
      target: test accuracy, 0 to 1.
      environment: variables that are added to the environment.
      limit: seconds after which the command is killed.

    Returns:
      The seconds, the number of epochs, whether the target was reached, and the accuracy after each epoch.

    Raises:
      SystemExit: the command failed.
    """
    accuracies: list[float] = []
    reached = False
    inherited = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    start = time.perf_counter()
    with subprocess.Popen(command, env=inherited | environment, text=True, **pipes) as process:
        stop = threading.Timer(min(limit, threading.TIMEOUT_MAX), process.kill)
        stop.daemon = True
        stop.start()
        for line in process.stdout:
            match = ACCURACY.search(line) if line.startswith("epoch") else None
            if match:
                accuracies.append(round(float(match[1]), 3))  # flaxresnet prints three decimals
                reached = accuracies[-1] >= target
            if reached:
                break
        seconds = time.perf_counter() - start
        stop.cancel()
        if reached:
            process.kill()
    if not accuracies and seconds < limit:
        raise SystemExit(f"`{' '.join(command)}` finished no epoch; run it to see the error")
    if not reached and seconds < limit and process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(f"`{' '.join(command)}` ended with status {process.returncode}; run it to see the error")
    return {"seconds": seconds, "epochs": len(accuracies), "reached": reached, "accuracies": accuracies}


def main(arguments: Arguments) -> None:
    console = Console(width=100)
    for split in ("train", "test"):
        path = arguments.data / f"{split}_signs.h5"
        if not path.exists():
            raise UserError(
                f"{path} does not exist; `flaxresnet make-data {arguments.data}` writes drawn hand signs there"
            )
    if arguments.keras and not find_spec("keras"):
        console.print("Keras tutorial: not timed, keras is not installed")
    backend = "tensorflow" if find_spec("tensorflow") else "jax"
    rows: list[dict[str, Any]] = []

    def add_row(name: str, seed: int, result: dict[str, Any]) -> None:
        rows.append({"who": name, "seed": seed} | result)
        console.print(f"{name}, seed {seed}: {describe(result)}")

    for seed in arguments.seeds:
        fastest = math.inf
        with tempfile.TemporaryDirectory() as scratch:
            for recipe in arguments.recipes:
                command = train_command(recipe, seed, arguments, f"{scratch}/{recipe}")
                result = run(command, arguments.target, {"XDG_CACHE_HOME": f"{scratch}/cache-{recipe}"})
                fastest = min(fastest, result["seconds"])
                add_row(f"flaxresnet, {recipe}", seed, result)
        if arguments.keras and find_spec("keras"):
            environment = {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
            command = keras_command(seed, arguments)
            result = run(command, arguments.target, environment, arguments.keras_limit * fastest)
            add_row(f"Keras tutorial, {backend}", seed, result)
    console.print(as_table(rows, arguments.target))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def describe(row: dict[str, Any]) -> str:
    """Formats the seconds and epochs of a run, with its best accuracy if it missed the target."""
    text = f"{row['seconds']:.0f} s, {row['epochs']} epochs"
    if not row["reached"]:
        text += f", not reached: {max(row['accuracies'], default=0):.3f} at best"
    return text


def as_table(rows: list[dict[str, Any]], target: float) -> Table:
    table = Table("by", "runs", box=box.SIMPLE, title=f"until {target:.0%} test accuracy", title_justify="left")
    table.add_column("median s", justify="right")
    for who in dict.fromkeys(row["who"] for row in rows):
        runs = [row for row in rows if row["who"] == who]
        median = f"{statistics.median(row['seconds'] for row in runs):.0f}"
        if not all(row["reached"] for row in runs):
            median = f"> {median}"
        table.add_row(who, "; ".join(map(describe, runs)), median)
    return table


if __name__ == "__main__":
    begin(main, Arguments)
