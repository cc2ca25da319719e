"""Seconds from `python train.py` to the first training step: `python benchmarks/startup_time.py`.

Cold is with an empty cache of compiled programs, warm with the one that the cold start filled. Each start is a process
of its own, which stops after its first step; the times are from the moment at which it was asked for.
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
CHILD = "FLAXRESNET_STARTED"  # the environment variable that tells a child when it was asked for


@dataclass(frozen=True)
class Arguments:
    """Times cold and warm starts of train.py, up to the first step.

    Example: python benchmarks/startup_time.py --repeats 3
    """

    data: str | None = None
    """As for train.py. Left out: drawn hand signs."""

    repeats: int = 3
    """Starts of each kind."""

    json: Path | None = None
    """Write the figures to this file."""


def start(data: str | None, cache: str, workdir: str) -> dict[str, float]:
    """Seconds to each stage of one start."""
    command = [sys.executable, __file__, "--workdir", workdir, *(["--data", data] if data else [])]
    inherited = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment = inherited | {"XDG_CACHE_HOME": cache, "PYTHONPATH": str(ROOT), CHILD: repr(time.time())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    marks = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if len(marks) < len(STAGES):
        raise SystemExit(f"the start failed: {done.stdout[-500:]}{done.stderr[-2000:]}")
    return {mark["stage"]: mark["seconds"] for mark in marks}


def child(asked: float) -> None:
    """What a start is: `fit` as train.py calls it, with a mark at each stage, until the first step is done."""

    def mark(stage: str) -> None:
        print(json.dumps({"stage": stage, "seconds": time.time() - asked}), flush=True)

    import jax

    from flaxresnet import fitting
    from flaxresnet.cli import parser
    from flaxresnet.config.train_config import TrainConfig
    from flaxresnet.runtime.malloc_tuning import disable_malloc_trim
    from flaxresnet.training import trainer

    mark("imported")
    check, train = fitting.check_splits, trainer.Trainer._train

    def checked(*arguments: Any) -> Any:
        mark("data read")
        return check(*arguments)

    def first_step(trainer: trainer.Trainer, *arguments: Any) -> Any:
        mark("compiled")
        compiled = trainer.programs.train_step

        def step(*arguments: Any) -> Any:
            jax.block_until_ready(compiled(*arguments))
            mark("first step done")
            os._exit(0)

        type(trainer.programs).train_step = property(lambda _: step)
        return train(trainer, *arguments)

    fitting.check_splits, trainer.Trainer._train = checked, first_step
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
