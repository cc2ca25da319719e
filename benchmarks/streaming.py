"""Training from pictures on disk: peak memory for few and for many of them, and what reading costs a step."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench_cli import begin
from PIL import Image
from rich.console import Console
from rich.table import Table

TRAIN = Path(__file__).parents[1] / "train.py"
CLASSES = 10
SIDE = 128  # pixels of a picture; the network sees 64
EVERY = 0.2  # seconds between two looks at the memory


@dataclass(frozen=True)
class Arguments:
    """Trains on generated JPEGs, streamed: memory by the number of pictures, and steps beside those from memory.

    Example: python benchmarks/streaming.py --pictures 2000 20000
    """

    pictures: tuple[int, ...] = (2000, 20000)
    """Training pictures of the runs whose memory is compared."""

    memory_model: str = "resnet14"
    """Network of those runs, of an epoch each; every picture is seen."""

    workers: int | None = None
    """Worker processes. Left out: as train.py has it."""

    rounds: int = 3
    """Pairs of runs, from disk and from memory, that are timed."""

    timed_pictures: int = 320
    """Training pictures of those runs, of four epochs of a ResNet-50; the first is not counted."""

    json: Path | None = None
    """Write the figures to this file."""


def draw(folder: Path, count: int) -> Path:
    """A folder of so many training JPEGs, and 20 for testing: a patch of the class's colour on noise."""
    rng = np.random.default_rng(0)
    for split, number in (("train", count), ("test", 20)):
        for i in range(number):
            label = i % CLASSES
            small = rng.integers(0, 160, (8, 8, 3))
            small[2:6, 2:6] = [25 * label, 255 - 25 * label, 128]
            path = folder / split / f"class{label}" / f"{i:06}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(small.astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path)
    return folder


def train(data: Path, workdir: Path, *flags: str) -> dict[int, int]:
    """Runs `train.py`: the highest memory that each of its processes had, in bytes, the training process first."""
    command = [sys.executable, str(TRAIN), "--data", str(data), "--workdir", str(workdir), "--recipe", "fast"]
    process = subprocess.Popen([*command, "--no-report", *flags], stdout=subprocess.DEVNULL)
    highest: dict[int, int] = {}
    while process.poll() is None:
        highest |= {pid: peak for pid in process_tree(process.pid) if (peak := peak_memory(pid))}
        time.sleep(EVERY)
    if process.returncode:
        sys.exit(f"train.py ended with status {process.returncode}")
    return highest


def process_tree(pid: int) -> list[int]:
    """A process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        return [pid, *map(int, children.read_text().split())]
    except OSError:
        return [pid]


def peak_memory(pid: int) -> int:
    """The highest resident memory of a process so far, in bytes; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def seconds_per_step(workdir: Path) -> list[float]:
    """Of each epoch but the first, in which programs are compiled and workers start."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = rows[0]["step"]
    return [row["seconds"] / steps for row in rows[1:]]


def main(arguments: Arguments) -> None:
    workers = [] if arguments.workers is None else ["--workers", str(arguments.workers)]
    found = {"memory": {}, "steps": {"stream": [], "memory": []}}
    with tempfile.TemporaryDirectory() as name:
        root, console = Path(name), Console()
        table = Table("pictures", "MiB, training process", "MiB, workers", "MiB, together", "images/s", box=None)
        for count in arguments.pictures:
            data, workdir = draw(root / f"{count}", count), root / f"run{count}"
            flags = ["--model", arguments.memory_model, "--epochs", "1", "--input", "stream", *workers]
            first, *others = train(data, workdir, *flags).values()
            row = json.loads((workdir / "metrics.jsonl").read_text())
            table.add_row(
                f"{count:,}", *(f"{n / 2**20:,.0f}" for n in (first, sum(others), first + sum(others))),
                f"{row['images_per_second']:.0f}",
            )  # fmt: skip
            found["memory"][count] = {"training": first, "workers": others}
        console.print(table)
        together = [each["training"] + sum(each["workers"]) for each in found["memory"].values()]
        console.print(f"growth from the first to the last: {together[-1] / together[0] - 1:+.1%}\n")

        data = draw(root / "timed", arguments.timed_pictures)
        for number in range(arguments.rounds):
            for kind, more in (("stream", workers), ("memory", [])):
                workdir = root / f"{kind}{number}"
                train(data, workdir, "--epochs", "4", "--input", kind, *more)
                found["steps"][kind] += seconds_per_step(workdir)
        medians = {kind: statistics.median(steps) for kind, steps in found["steps"].items()}
        for kind, steps in found["steps"].items():
            console.print(f"step, {kind}: median {medians[kind]:.3f} s, {min(steps):.3f} to {max(steps):.3f}")
        console.print(f"with reading against without: {medians['stream'] / medians['memory']:.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    begin(main, Arguments)
