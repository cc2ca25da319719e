"""How many seconds pass from `python train.py` to the first training step?

    python benchmarks/startup_time.py --data DATA

A cold start has an empty cache of compiled programs; a warm one has the cache that the cold start filled. Each start is
a separate process, which exits after its first step. The table has one row for each kind of start, with the seconds
from the start of the process until the packages are imported, the data is read, the programs are compiled and the first
step is done: median (lowest–highest).
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_cli import begin
from rich import box
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
STAGES = ("imported", "data read", "compiled", "first step done")
CHILD = "FLAXRESNET_STARTED"  # environment variable with the time of the start; it makes this script a timed child


@dataclass(frozen=True)
class Arguments:
    """Times cold and warm starts of train.py, up to the first step.

    Example: python benchmarks/startup_time.py --repeats 3
    """

    data: str | None = None
    """Data to train on, as for `flaxresnet train --data`. Left out: drawn hand signs."""

    repeats: int = 3
    """Starts of each kind."""

    json: Path | None = None
    """Write the figures to this file."""


def start(data: str | None, cache: str, workdir: str) -> dict[str, float]:
    """Runs one start; returns the seconds to each stage."""
    command = [sys.executable, __file__, "--workdir", workdir, *(["--data", data] if data else [])]
    inherited = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment = inherited | {"XDG_CACHE_HOME": cache, "PYTHONPATH": str(ROOT), CHILD: repr(time.time())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    marks = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if len(marks) < len(STAGES):
        raise SystemExit(f"the start failed: {done.stdout[-500:]}{done.stderr[-2000:]}")
    return {mark["stage"]: mark["seconds"] for mark in marks}


def child(started: float) -> None:
    """Calls `fit` as train.py does, prints a mark at each stage, and exits after the first step.

    Args:
      started: `time.time()` of the start.
    """

    def mark(stage: str) -> None:
        print(json.dumps({"stage": stage, "seconds": time.time() - started}), flush=True)

    import jax

    from flaxresnet import fitting
    from flaxresnet.cli import parser
    from flaxresnet.config.train_config import TrainConfig
    from flaxresnet.runtime.malloc_tuning import disable_malloc_trim
    from flaxresnet.training import trainer

    mark("imported")
    check = fitting.check_splits
    train_epoch = trainer.train_epoch

    def checked(*arguments: Any) -> Any:
        mark("data read")
        return check(*arguments)

    def first_epoch(session: trainer.Session, *arguments: Any) -> Any:
        compiled = session.steps.train_step  # waits for compilation
        mark("compiled")

        def step(*arguments: Any) -> Any:
            jax.block_until_ready(compiled(*arguments))
            mark("first step done")
            os._exit(0)

        type(session.steps).train_step = property(lambda _: step)
        return train_epoch(session, *arguments)

    fitting.check_splits = checked
    trainer.train_epoch = first_epoch
    disable_malloc_trim()
    fitting.fit(parser.parse(TrainConfig, sys.argv[1:], prog="python train.py"), quiet=True, cache_executables=True)


def main(arguments: Arguments) -> None:
    starts: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(arguments.repeats):
            cache = f"{folder}/cache{repeat}"
            for kind, seconds in starts.items():
                seconds.append(start(arguments.data, cache, f"{folder}/{kind}{repeat}"))
    table = Table("start", *STAGES, box=box.SIMPLE, title="seconds since the start: median (lowest–highest)")
    for kind, runs in starts.items():
        table.add_row(kind, *(_spread([run[stage] for run in runs]) for stage in STAGES))
    Console(width=100).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(starts, indent=2) + "\n")


def _spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.1f} ({min(seconds):.1f}–{max(seconds):.1f})"


if __name__ == "__main__":
    if CHILD in os.environ:
        child(float(os.environ[CHILD]))
    else:
        begin(main, Arguments)
