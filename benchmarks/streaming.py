"""How much memory and time does training take if it streams images from disk?

    python benchmarks/streaming.py

The script trains on generated JPEGs. The table has one row for each number of images in `--pictures`: the peak resident
memory of the training process, of its workers, and together, and the images a second. The line below it has the growth
of memory from the first row to the last; it should be near 0. The last lines have the seconds of a training step with
images streamed from disk and from memory: the median, the lowest and the highest, and the ratio of the medians.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench_cli import begin
from PIL import Image
from rich.console import Console
from rich.table import Table

TRAIN = Path(__file__).parents[1] / "train.py"
CLASSES = 10
SIDE = 128  # height and width of a JPEG in pixels; the network gets 64
INTERVAL = 0.2  # seconds between two readings of the memory


@dataclass(frozen=True)
class Arguments:
    """Measures the memory of training on streamed JPEGs, and the time of a step beside images in memory.

    Example: python benchmarks/streaming.py --pictures 2000 20000
    """

    pictures: tuple[int, ...] = (2000, 20000)
    """Numbers of training images of the runs whose memory is measured, for one epoch each."""

    memory_model: str = "resnet14"
    """Network of those runs."""

    workers: int | None = None
    """Worker processes. Left out: the default of `flaxresnet train`."""

    rounds: int = 3
    """Timed pairs of runs, from disk and from memory."""

    timed_pictures: int = 320
    """Training images of those runs, which train a ResNet-50 for four epochs; the first epoch does not count."""

    json: Path | None = None
    """Write the figures to this file."""


def draw(folder: Path, count: int) -> Path:
    """Writes `count` training JPEGs and 20 test JPEGs, a patch of the class's color on noise; returns the folder."""
    rng = np.random.default_rng(0)
    for split, number in (("train", count), ("test", 20)):
        for index in range(number):
            label = index % CLASSES
            small = rng.integers(0, 160, (8, 8, 3))
            small[2:6, 2:6] = [25 * label, 255 - 25 * label, 128]
            path = folder / split / f"class{label}" / f"{index:06}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(small.astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path)
    return folder


def train(data: Path, workdir: Path, *flags: str) -> dict[int, int]:
    """Runs `train.py`; returns the peak memory of each of its processes in bytes by id, the training process first."""
    command = [sys.executable, str(TRAIN), "--data", str(data), "--workdir", str(workdir), "--recipe", "fast"]
    process = subprocess.Popen([*command, "--no-report", *flags], stdout=subprocess.DEVNULL)
    peaks: dict[int, int] = {}
    while process.poll() is None:
        for pid in process_tree(process.pid):
            peak = peak_memory(pid)
            if peak:
                peaks[pid] = peak
        time.sleep(INTERVAL)
    if process.returncode:
        sys.exit(f"train.py ended with status {process.returncode}")
    return peaks


def process_tree(pid: int) -> list[int]:
    """Returns the ids of a process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        return [pid, *map(int, children.read_text().split())]
    except OSError:
        return [pid]


def peak_memory(pid: int) -> int:
    """Returns the peak resident memory of a process in bytes; 0 if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        if line.startswith("VmHWM"):
            return 1024 * int(line.split()[1])
    return 0


def seconds_per_step(workdir: Path) -> list[float]:
    """Returns the seconds of a step in each epoch but the first, which compiles programs and starts workers."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = rows[0]["step"]
    return [row["seconds"] / steps for row in rows[1:]]


def measure_memory(folder: Path, arguments: Arguments, console: Console) -> dict[int, Any]:
    """Prints the table of memory by the number of images; returns the bytes of each run."""
    table = Table("images", "MiB, training process", "MiB, workers", "MiB, together", "images/s", box=None)
    results: dict[int, Any] = {}
    totals = []
    for count in arguments.pictures:
        workdir = folder / f"run{count}"
        flags = ["--model", arguments.memory_model, "--epochs", "1", "--input", "stream", *worker_flags(arguments)]
        training, *workers = train(draw(folder / f"{count}", count), workdir, *flags).values()
        results[count] = {"training": training, "workers": workers}
        totals.append(training + sum(workers))
        row = json.loads((workdir / "metrics.jsonl").read_text())
        mebibytes = [f"{nbytes / 2**20:,.0f}" for nbytes in (training, sum(workers), totals[-1])]
        table.add_row(f"{count:,}", *mebibytes, f"{row['images_per_second']:.0f}")
    console.print(table)
    console.print(f"growth from the first to the last: {totals[-1] / totals[0] - 1:+.1%}\n")
    return results


def measure_steps(folder: Path, arguments: Arguments, console: Console) -> dict[str, list[float]]:
    """Prints the time of a step with images from disk and from memory, interleaved; returns the seconds by epoch."""
    data = draw(folder / "timed", arguments.timed_pictures)
    seconds: dict[str, list[float]] = {"stream": [], "memory": []}
    for number in range(arguments.rounds):
        for kind, times in seconds.items():
            workdir = folder / f"{kind}{number}"
            flags = worker_flags(arguments) if kind == "stream" else []
            train(data, workdir, "--epochs", "4", "--input", kind, *flags)
            times += seconds_per_step(workdir)
    medians = {kind: statistics.median(times) for kind, times in seconds.items()}
    for kind, times in seconds.items():
        console.print(f"step, {kind}: median {medians[kind]:.3f} s, {min(times):.3f} to {max(times):.3f}")
    console.print(f"ratio of stream to memory: {medians['stream'] / medians['memory']:.3f}")
    return seconds


def worker_flags(arguments: Arguments) -> list[str]:
    return [] if arguments.workers is None else ["--workers", str(arguments.workers)]


def main(arguments: Arguments) -> None:
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        memory = measure_memory(Path(folder), arguments, console)
        steps = measure_steps(Path(folder), arguments, console)
    if arguments.json:
        arguments.json.write_text(json.dumps({"memory": memory, "steps": steps}, indent=2) + "\n")


if __name__ == "__main__":
    begin(main, Arguments)
