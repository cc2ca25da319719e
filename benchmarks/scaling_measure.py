"""Measurements of `scaling.py` on one machine: reading images, and runs of several processes over loopback."""

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from allreduce_model import BYTES, NORM_EXCHANGES, ring_bytes, small_exchange
from jax.sharding import SingleDeviceSharding
from PIL import Image

from flaxresnet.data.open import open_dataset
from flaxresnet.data.read_options import ReadOptions
from flaxresnet.data.streaming import StreamSource
from flaxresnet.runtime.errors import UserError

ROOT = Path(__file__).parent.parent
PHOTO = (375, 500)  # height and width of most ImageNet photos
SIDE = 224  # height and width after cropping
MIN_CROP = 0.08  # smallest area of a crop in the recipe imagenet
READ_BATCH = 32
RUN_BATCH = 32  # images in a step of the runs of several processes
RUN_SIDE = 64
TEST_IMAGES = 8  # of each class
SPECTRUM_DECAY = 0.25  # with it, a JPEG of a photo's size takes about 100 kB, as in ImageNet
ALLREDUCE_FLOATS = 2**23  # of the all-reduce that measures loopback


def write_jpegs(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """Writes `count` training JPEGs of two classes, and test JPEGs; returns their folder."""
    rng = np.random.default_rng(0)
    root = folder / f"pictures-{size[0]}"
    for split, number in (("train", count // 2), ("test", TEST_IMAGES)):
        for class_name in ("one", "two"):
            path = root / split / class_name
            path.mkdir(parents=True, exist_ok=True)
            for index in range(number):
                Image.fromarray(_clouds(rng, size)).save(path / f"{index:04}.jpg", quality=90)
    return root


def _clouds(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Draws smooth noise with detail at all scales, (height, width, 3) uint8."""
    total = np.full((*size, 3), 128.0)
    cells = 2
    while cells <= 2 * min(size):
        grid = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        octave = np.asarray(grid.resize(size[::-1], Image.Resampling.BICUBIC), np.float32)
        total += (octave - 128) / cells**SPECTRUM_DECAY
        cells *= 2
    return total.clip(0, 255).astype(np.uint8)


def measure_input(folder: Path, arguments: Any) -> list[dict[str, Any]]:
    """Measures the images a second of `StreamSource` with random crops, by the number of worker processes."""
    pictures = write_jpegs(folder, arguments.pictures, PHOTO)
    train = open_dataset(pictures, ReadOptions(image_size=(SIDE, SIDE), input="stream")).train
    kilobytes = statistics.mean(path.stat().st_size for path in pictures.glob("train/*/*.jpg")) / 1e3
    sharding = SingleDeviceSharding(jax.devices()[0])
    steps = max(1, arguments.pictures // READ_BATCH)
    rows = []
    for workers in arguments.input_workers:
        source = StreamSource(train, READ_BATCH, sharding, workers, MIN_CROP)
        rates = []
        with closing(source.train(0, 0)) as batches:
            for _ in islice(batches, 4 * max(1, workers)):  # starts workers and fills buffers
                pass
            for _ in range(arguments.rounds):
                start = time.perf_counter()
                for batch in islice(batches, steps):
                    jax.block_until_ready(batch.images)
                rates.append(steps * READ_BATCH / (time.perf_counter() - start))
        busy_cores = min(workers or available_cores(), available_cores())
        rows.append(
            {
                "workers": workers,
                "images_per_second": statistics.median(rates),
                "lowest": min(rates),
                "highest": max(rates),
                "per_core": statistics.median(rates) / busy_cores,
                "kilobytes_a_picture": kilobytes,
            }
        )
    return rows


def measure_processes(folder: Path, arguments: Any, network: Any) -> list[dict[str, Any]]:
    """Measures the seconds of a step of train.py with one batch over several processes, beside the prediction.

    Process i is bound to core i modulo the number of cores, so one process has one core. More processes than cores do
    not reduce the predicted compute, and share the bandwidth of loopback, because cores copy its data.

    Args:
      folder: for images, runs and logs.
      arguments: of `scaling.py`.
      network: size of the trained network, a `scaling.Network`.

    Raises:
      UserError: 1 is not among the numbers of processes.
    """
    if 1 not in arguments.processes:
        raise UserError(f"--processes {' '.join(map(str, arguments.processes))} lacks 1, which the prediction needs")
    pictures = write_jpegs(folder, arguments.pictures, (RUN_SIDE, RUN_SIDE))
    large, small = exchange_seconds(folder)
    bandwidth = BYTES * ALLREDUCE_FLOATS / (large - small)  # each of two processes sends all bytes once
    hop = small / 2
    seconds_by_count = {count: run_seconds(folder, pictures, arguments, count) for count in arguments.processes}
    alone = statistics.median(seconds_by_count[1])
    cores = available_cores()
    rows = []
    for count, seconds in seconds_by_count.items():
        compute = alone / min(count, cores)
        shared_bandwidth = bandwidth * min(1, cores / count)
        gradients = ring_bytes(BYTES * network.parameters, count) / shared_bandwidth + 2 * (count - 1) * hop
        norms = NORM_EXCHANGES * network.batch_norms * small_exchange(count, hop)
        predicted = compute + gradients + norms
        measured = statistics.median(seconds)
        rows.append(
            {
                "processes": count,
                "measured_s": measured,
                "lowest": min(seconds),
                "highest": max(seconds),
                "predicted_s": predicted,
                "of_which_compute": compute,
                "all_reduce": gradients,
                "batch_norm": norms,
                "measured_by_predicted": measured / predicted,
            }
        )
    print(f"loopback, two processes: {bandwidth / 1e9:.2f} GB/s, {1e6 * small:.0f} µs for one number")
    return rows


def run_seconds(folder: Path, pictures: Path, arguments: Any, count: int) -> list[float]:
    """Trains with `count` processes; returns the seconds of a step in each epoch after the first."""
    workdir = folder / f"run-{count}"
    flags = ["--data", pictures, "--workdir", workdir, "--model", "resnet14", "--width", arguments.width]
    flags += ["--variant", "torchvision", "--image-size", RUN_SIDE, RUN_SIDE, "--batch-size", RUN_BATCH]
    flags += ["--recipe", "fast", "--input", "stream", "--workers", 0, "--epochs", arguments.rounds + 1]
    flags += ["--precise-bn-images", 0, "--no-report"]
    if count > 1:
        flags += ["--coordinator-address", free_address(), "--num-processes", count]
        start_together([["train.py", *flags, "--process-id", number] for number in range(count)], folder)
    else:
        start_together([["train.py", *flags]], folder)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [RUN_BATCH / row["images_per_second"] for row in rows[1:]]


def exchange_seconds(folder: Path) -> tuple[float, float]:
    """Returns the seconds of an all-reduce between two processes: of `ALLREDUCE_FLOATS` numbers, and of one."""
    program = ["benchmarks/allreduce_worker.py", free_address(), 2]
    output = start_together([[*program, number, ALLREDUCE_FLOATS] for number in range(2)], folder)
    large, small = json.loads(output.splitlines()[-1])
    return large, small


def start_together(commands: list[list[Any]], folder: Path) -> str:
    """Runs Python programs in parallel, each bound to a core, until all end.

    Args:
      commands: arguments of Python for each program.
      folder: for the logs and the compilation cache.

    Returns:
      The output of the first program.

    Raises:
      SystemExit: a program failed; the message has the end of every log.
    """
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    processes: list[subprocess.Popen] = []
    logs = [folder / f"{number}.log" for number in range(len(commands))]
    cores = sorted(os.sched_getaffinity(0))
    try:
        for number, command in enumerate(commands):
            bound = ["taskset", "-c", str(cores[number % len(cores)]), sys.executable, *map(str, command)]
            with logs[number].open("w") as log:
                process = subprocess.Popen(bound, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
            processes.append(process)
        statuses = [process.wait() for process in processes]
        if any(statuses):
            raise SystemExit("\n".join(log.read_text()[-2000:] for log in logs))
    finally:
        for process in processes:
            process.kill()
    return logs[0].read_text()


def free_address() -> str:
    """Returns "localhost:PORT" with a free port."""
    with socket.socket() as unused:
        unused.bind(("localhost", 0))
        return f"localhost:{unused.getsockname()[1]}"


def available_cores() -> int:
    return len(os.sched_getaffinity(0))
