"""What `scaling.py` measures on one machine: reading pictures, and runs of several processes over loopback."""

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
PHOTO = (375, 500)  # height and width, as most of ImageNet's
SIDE = 224  # that they are cropped and brought to
MIN_CROP = 0.08  # recipe imagenet
READ_BATCH = 32
RUN_BATCH, RUN_SIDE = 32, 64  # of the runs of many processes
TEST_PICTURES = 8  # a class
DETAIL, FALL = 1.0, 0.25  # of clouds; with these a JPEG of a photo's size takes about 100 kB, as ImageNet's do
EXCHANGED = 2**23  # numbers of the all-reduce that measures loopback


def draw_pictures(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """JPEGs in the folders of two classes: clouds with detail of every size, and no noise."""
    rng, made = np.random.default_rng(0), folder / f"pictures-{size[0]}"
    parts = [("train", count // 2), ("test", TEST_PICTURES)]
    for path, number in ((made / part / name, n) for part, n in parts for name in ("one", "two")):
        path.mkdir(parents=True, exist_ok=True)
        for index in range(number):
            Image.fromarray(_clouds(rng, size)).save(path / f"{index:04}.jpg", quality=90)
    return made


def _clouds(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """(height, width, 3) uint8."""
    total, cells = np.full((*size, 3), 128.0), 2
    while cells <= 2 * min(size):
        grid = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += (
            (np.asarray(grid.resize(size[::-1], Image.Resampling.BICUBIC), np.float32) - 128) * DETAIL / cells**FALL
        )
        cells *= 2
    return total.clip(0, 255).astype(np.uint8)


def measure_input(folder: Path, arguments: Any) -> list[dict[str, Any]]:
    """Images a second that come out of `StreamSource`, cropped at random, by the number of worker processes."""
    pictures = draw_pictures(folder, arguments.pictures, PHOTO)
    train = open_dataset(pictures, ReadOptions(image_size=(SIDE, SIDE), input="stream")).train
    kilobytes = statistics.mean(path.stat().st_size for path in pictures.glob("train/*/*.jpg")) / 1e3
    split, rows = SingleDeviceSharding(jax.devices()[0]), []
    for workers in arguments.input_workers:
        source, rates = StreamSource(train, READ_BATCH, split, workers, MIN_CROP), []
        steps = max(1, arguments.pictures // READ_BATCH)
        with closing(source.train(0, 0)) as batches:
            for _ in islice(batches, 4 * max(1, workers)):  # workers begin, and buffers fill
                pass
            for _ in range(arguments.rounds):
                start = time.perf_counter()
                for batch in islice(batches, steps):
                    jax.block_until_ready(batch.images)
                rates.append(steps * READ_BATCH / (time.perf_counter() - start))
        busy = min(workers or cores(), cores())
        rows.append(
            {
                "workers": workers,
                "images_per_second": statistics.median(rates),
                "lowest": min(rates),
                "highest": max(rates),
                "per_core": statistics.median(rates) / busy,
                "kilobytes_a_picture": kilobytes,
            }
        )
    return rows


def measure_processes(folder: Path, arguments: Any, network: Any) -> list[dict[str, Any]]:
    """Seconds a step of train.py with the same batch over so many processes, and the model's prediction.

    Process i is bound to core i modulo the number of cores, so that one process has one core. Beyond the cores nothing
    is left to gain, and the bandwidth of loopback, which is copying by the cores, is shared.
    """
    pictures = draw_pictures(folder, arguments.pictures, (RUN_SIDE, RUN_SIDE))
    large, small = exchange_seconds(folder)
    bandwidth, hop = BYTES * EXCHANGED / (large - small), small / 2  # of two processes each sends the whole once
    found = {count: run_seconds(folder, pictures, arguments, count) for count in arguments.processes}
    if 1 not in found:
        raise UserError("--processes must have 1 among them, which the prediction begins with")
    alone, rows = statistics.median(found[1]), []
    for count, seconds in found.items():
        together = min(count, cores())
        shared = bandwidth * min(1, cores() / count)
        gradients = ring_bytes(BYTES * network.parameters, count) / shared + 2 * (count - 1) * hop
        norms = NORM_EXCHANGES * network.batch_norms * small_exchange(count, hop)
        predicted = alone / together + gradients + norms
        measured = statistics.median(seconds)
        rows.append(
            {
                "processes": count,
                "measured_s": measured,
                "lowest": min(seconds),
                "highest": max(seconds),
                "predicted_s": predicted,
                "of_which_compute": alone / together,
                "all_reduce": gradients,
                "batch_norm": norms,
                "measured_by_predicted": measured / predicted,
            }
        )
    print(f"loopback, two processes: {bandwidth / 1e9:.2f} GB/s, {1e6 * small:.0f} µs for one number")
    return rows


def run_seconds(folder: Path, pictures: Path, arguments: Any, count: int) -> list[float]:
    """Seconds a step in each epoch after the first of a run of so many processes."""
    workdir = folder / f"run-{count}"
    flags = ["--data", pictures, "--workdir", workdir, "--model", "resnet14", "--width", arguments.width]
    flags += ["--variant", "torchvision", "--image-size", RUN_SIDE, RUN_SIDE, "--batch-size", RUN_BATCH]
    flags += ["--recipe", "fast", "--input", "stream", "--workers", 0, "--epochs", arguments.rounds + 1]
    flags += ["--precise-bn-images", 0, "--no-report"]
    address = ["--coordinator-address", free_address(), "--num-processes", count]
    together = [[*address, "--process-id", number] if count > 1 else [] for number in range(count)]
    start_together([["train.py", *flags, *mine] for mine in together], folder)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [RUN_BATCH / row["images_per_second"] for row in rows[1:]]


def exchange_seconds(folder: Path) -> tuple[float, float]:
    """Seconds of an all-reduce between two processes: of `EXCHANGED` float32 numbers, and of one."""
    program = ["benchmarks/allreduce_worker.py", free_address(), 2]
    printed = start_together([[*program, number, EXCHANGED] for number in range(2)], folder)
    large, small = json.loads(printed.splitlines()[-1])
    return large, small


def start_together(commands: list[list[Any]], folder: Path) -> str:
    """Runs Python programs at once, each bound to a core, as long as they take; what the first one printed."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    begun, logs = [], [folder / f"{number}.log" for number in range(len(commands))]
    available = sorted(os.sched_getaffinity(0))
    try:
        for number, command in enumerate(commands):
            bound = ["taskset", "-c", str(available[number % len(available)]), sys.executable, *map(str, command)]
            with logs[number].open("w") as log:
                begun.append(subprocess.Popen(bound, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT))
        statuses = [process.wait() for process in begun]
        if any(statuses):
            raise SystemExit("\n".join(log.read_text()[-2000:] for log in logs))
    finally:
        for process in begun:
            process.kill()
    return logs[0].read_text()


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def cores() -> int:
    return len(os.sched_getaffinity(0))
