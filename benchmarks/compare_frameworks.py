"""How long do a training and an inference step take in flaxresnet, PyTorch, Keras and plain Flax?

    pip install '.[peers]' tensorflow-cpu
    python benchmarks/compare_frameworks.py

All train the same ResNet-50 with the same batch and Adam. Each program of each framework runs in a process of its own
(`framework_worker.py`), so training does not affect inference. The processes are interleaved, a few steps each, round
after round, so that other load on the machine affects all of them alike. The script names frameworks that are not
installed.

There is one table for each program: median seconds of a step, the 10th and 90th percentile, the time of flaxresnet
divided by the framework's ("ours / it", below 1 if flaxresnet is faster), the peak memory of the process and the part
of it that maps files such as libraries, and the seconds of the first call, which builds and compiles the program.
"""

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from bench_cli import begin
from framework_worker import FRAMEWORKS, OURS
from rich import box
from rich.console import Console
from rich.table import Table

WIDTH = 100  # columns of the table
PAUSE = 0.3  # seconds after a turn, in which the threads of the last framework go to sleep


@dataclass(frozen=True)
class Arguments:
    """Times training and inference steps of the tutorials' ResNet-50 in flaxresnet and other frameworks.

    Example: python benchmarks/compare_frameworks.py --peers flaxresnet PyTorch --rounds 3
    """

    batch_size: int = 32
    """Images in a training step."""

    infer_batch_sizes: tuple[int, ...] = (32, 1)
    """Images in an inference step."""

    image_size: int = 64
    """Height and width in pixels."""

    rounds: int = 5
    """Turns of each framework."""

    steps: int = 3
    """Training steps in a turn."""

    infer_steps: int = 10
    """Inference steps in a turn."""

    peers: tuple[Literal[*FRAMEWORKS], ...] = tuple(FRAMEWORKS)  # type: ignore[valid-type]
    """Frameworks to time beside flaxresnet."""

    json: Path | None = None
    """Write the figures to this file."""


@dataclass
class FrameworkProcess:
    """A framework's worker process, and the figures that it has reported, keyed by program such as "train 32".

    Attributes:
      name: key of `framework_worker.FRAMEWORKS`.
      process: the worker.
      errors: its standard error.
      seconds: times of all steps.
      first: seconds of the first call.
      peak: peak memory in MiB.
      files: the part of that memory that maps files.
      failure: last line of its standard error if it has ended, otherwise "".
    """

    name: str
    process: subprocess.Popen
    errors: IO[str]
    seconds: dict[str, list[float]] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)
    peak: dict[str, float] = field(default_factory=dict)
    files: dict[str, float] = field(default_factory=dict)
    failure: str = ""

    def take_turn(self, kind: str, batch_size: int, steps: int) -> None:
        """Runs steps of the program `kind`, "train" or "infer", and records the reported figures or the failure."""
        if self.failure:
            return
        with suppress(BrokenPipeError):  # the worker has ended, and has no reply
            print(kind, batch_size, steps, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            lines = self.errors.read().strip().splitlines()
            self.failure = lines[-1] if lines else "no reason given"
            return
        reply = json.loads(line)
        key = f"{kind} {batch_size}"
        self.seconds.setdefault(key, []).extend(reply["seconds"])
        self.first.setdefault(key, reply.get("first", 0.0))
        self.peak[key] = reply["peak_mebibytes"]
        self.files[key] = reply["files_mebibytes"]
        time.sleep(PAUSE)


def start(name: str, image_size: int) -> FrameworkProcess:
    """Starts the worker process of a framework."""
    command = [sys.executable, str(Path(__file__).with_name("framework_worker.py")), name, str(image_size)]
    errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115, open while the process lives
    process = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
    return FrameworkProcess(name, process, errors)


def rows_of(frameworks: list[FrameworkProcess], key: str) -> list[dict[str, Any]]:
    """Returns one row of figures for each framework; the first framework is flaxresnet."""
    ours = statistics.median(frameworks[0].seconds[key]) if key in frameworks[0].seconds else math.nan
    rows = []
    for framework in frameworks:
        if framework.failure:
            rows.append({"program": key, "framework": framework.name, "failure": framework.failure})
            continue
        low, median, high = np.quantile(framework.seconds[key], (0.1, 0.5, 0.9)).tolist()
        rows.append(
            {
                "program": key,
                "framework": framework.name,
                "median_seconds": median,
                "tenth_seconds": low,
                "ninetieth_seconds": high,
                "ours_against_it": ours / median,
                "peak_mebibytes": framework.peak[key],
                "files_mebibytes": framework.files[key],
                "first_seconds": framework.first[key],
            }
        )
    return rows


def as_table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table("framework", box=box.SIMPLE, title=title, title_justify="left")
    for name in ("median s", "10–90%", "ours / it", "peak MiB", "of it files", "first s"):
        table.add_column(name, justify="right")
    for row in rows:
        if "failure" in row:
            table.add_row(row["framework"], "failed")
            continue
        table.add_row(
            row["framework"],
            f"{row['median_seconds']:.4f}",
            f"{row['tenth_seconds']:.4f}–{row['ninetieth_seconds']:.4f}",
            f"{row['ours_against_it']:.2f}",
            f"{row['peak_mebibytes']:.0f}",
            f"{row['files_mebibytes']:.0f}",
            f"{row['first_seconds']:.1f}",
        )
    return table


def main(arguments: Arguments) -> None:
    console = Console(width=WIDTH)
    names = []
    for name in dict.fromkeys((OURS, *arguments.peers)):  # flaxresnet first, even if it is not among the peers
        missing = [package for package in FRAMEWORKS[name].packages if find_spec(package) is None]
        if missing:
            console.print(f"{name}: not timed, {' and '.join(missing)} not installed")
        else:
            names.append(name)
    programs = [("train", arguments.batch_size, arguments.steps)]
    programs += [("infer", size, arguments.infer_steps) for size in arguments.infer_batch_sizes]
    rows: list[dict[str, Any]] = []
    for kind, batch_size, steps in programs:
        frameworks = [start(name, arguments.image_size) for name in names]
        for number in range(arguments.rounds + 1):
            for framework in frameworks:
                framework.take_turn(kind, batch_size, steps if number else 0)  # the first turn compiles
        program_rows = rows_of(frameworks, f"{kind} {batch_size}")
        rows += program_rows
        title = f"{kind}, batch {batch_size}, {arguments.image_size}×{arguments.image_size}"
        console.print(as_table(title, program_rows))
        for framework in frameworks:
            with suppress(BrokenPipeError):
                framework.process.stdin.close()
            framework.process.wait()
            if framework.failure:
                console.print(f"{framework.name} failed: {framework.failure}", markup=False)
    if arguments.json:
        arguments.json.write_text(json.dumps({"numpy": np.__version__, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    begin(main, Arguments)
