"""The same network, batch and optimiser in other frameworks: `python benchmarks/compare_frameworks.py`.

Each program of each framework runs in a process of its own (`framework_worker.py`): what training leaves behind is no
matter of inference. They take turns, a few steps each, round after round, so that
whatever else the machine does falls on all alike; only one of them works at a time. Frameworks that are not installed
are named as such. `pip install '.[peers]'` brings PyTorch and Keras; TensorFlow takes `pip install tensorflow-cpu`.
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
from framework_worker import OURS, PEERS
from rich import box
from rich.console import Console
from rich.table import Table

WIDTH = 100  # columns of the table
REST = 0.3  # seconds after a turn, in which the threads of the last framework go to sleep


@dataclass(frozen=True)
class Arguments:
    """Times training and inference steps of the tutorials' ResNet-50, ours beside other frameworks.

    Example: python benchmarks/compare_frameworks.py --peers flaxresnet PyTorch --rounds 3
    """

    batch_size: int = 32
    """Images a training step."""

    infer_batch_sizes: tuple[int, ...] = (32, 1)
    """Images an inference step."""

    image_size: int = 64
    """Height and width in pixels."""

    rounds: int = 5
    """Turns of each framework."""

    steps: int = 3
    """Training steps in a turn."""

    infer_steps: int = 10
    """Inference steps in a turn."""

    peers: tuple[Literal[*PEERS], ...] = tuple(PEERS)  # type: ignore[valid-type]
    """Frameworks to time beside ours."""

    json: Path | None = None
    """Write the figures to this file."""


@dataclass
class FrameworkProcess:
    """A framework's process and the times that it has reported, by program."""

    name: str
    process: subprocess.Popen
    complaints: IO[str]
    seconds: dict[str, list[float]] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)
    peak: dict[str, float] = field(default_factory=dict)
    files: dict[str, float] = field(default_factory=dict)
    failure: str = ""

    def take_turn(self, kind: str, batch_size: int, steps: int) -> None:
        key = f"{kind} {batch_size}"
        if self.failure:
            return
        with suppress(BrokenPipeError):  # it has ended, and has no answer then
            print(kind, batch_size, steps, file=self.process.stdin, flush=True)
        if not (line := self.process.stdout.readline()):
            self.complaints.seek(0)
            self.failure = (self.complaints.read().strip().splitlines() or ["no reason given"])[-1]
            return
        answer = json.loads(line)
        self.seconds.setdefault(key, []).extend(answer["seconds"])
        self.first.setdefault(key, answer.get("first", 0.0))
        self.peak[key], self.files[key] = answer["peak_mebibytes"], answer["files_mebibytes"]
        time.sleep(REST)


def start(name: str, image_size: int) -> FrameworkProcess:
    command = [sys.executable, str(Path(__file__).with_name("framework_worker.py")), name, str(image_size)]
    complaints = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115, open while the process lives
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": complaints}
    return FrameworkProcess(name, subprocess.Popen(command, text=True, **pipes), complaints)


def rows_of(peers: list[FrameworkProcess], key: str) -> list[dict[str, Any]]:
    ours = statistics.median(peers[0].seconds[key]) if key in peers[0].seconds else math.nan
    rows = []
    for peer in peers:
        if peer.failure:
            rows.append({"program": key, "framework": peer.name, "failure": peer.failure})
            continue
        low, median, high = np.quantile(peer.seconds[key], (0.1, 0.5, 0.9)).tolist()
        rows.append(
            {
                "program": key,
                "framework": peer.name,
                "median_seconds": median,
                "tenth_seconds": low,
                "ninetieth_seconds": high,
                "ours_against_it": ours / median,
                "peak_mebibytes": peer.peak[key],
                "files_mebibytes": peer.files[key],
                "first_seconds": peer.first[key],
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
    for name in dict.fromkeys((OURS, *arguments.peers)):  # ours first, whichever others were asked for
        if missing := [package for package in PEERS[name].needs if find_spec(package) is None]:
            console.print(f"{name}: not timed, {' and '.join(missing)} not installed")
        else:
            names.append(name)
    turns = [("train", arguments.batch_size, arguments.steps)]
    turns += [("infer", size, arguments.infer_steps) for size in arguments.infer_batch_sizes]
    rows: list[dict[str, Any]] = []
    for kind, batch_size, steps in turns:
        peers = [start(name, arguments.image_size) for name in names]
        for number in range(arguments.rounds + 1):  # the first, which compiles, counts no times
            for peer in peers:
                peer.take_turn(kind, batch_size, steps if number else 0)
        rows += (new := rows_of(peers, f"{kind} {batch_size}"))
        console.print(as_table(f"{kind}, batch {batch_size}, {arguments.image_size}×{arguments.image_size}", new))
        for peer in peers:
            with suppress(BrokenPipeError):
                peer.process.stdin.close()
            peer.process.wait()
            if peer.failure:
                console.print(f"{peer.name} failed: {peer.failure}", markup=False)
    if arguments.json:
        arguments.json.write_text(json.dumps({"numpy": np.__version__, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    begin(main, Arguments)
