"""Where the milliseconds of a training step go: `python benchmarks/step_profile.py`.

Traces a few steps of `step_time.py` and adds up what XLA's operations took, by kind: by the operation itself, and by
the part of the network that asked for it, whose name the compiled program keeps. Below, the floor: the arithmetic of
the step at the rate of a large matrix product, measured in the same run.
"""

import re
import statistics
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from bench_cli import begin
from rich import box
from rich.console import Console
from rich.table import Table
from step_time import STEPS, WIDTH, forward_gigaflops, network, peak_gigaflops, timed, training

from flaxresnet.config.recipes import Model
from flaxresnet.runtime.malloc_tuning import disable_malloc_trim

INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%(\S+) = (?:\(.*?\)|\S+) ([\w-]+)\(.*?op_name="([^"]*)"', re.MULTILINE)
CONTAINERS = ("call", "while", "conditional")  # whose events hold those of others
# Kinds by an operation's code and by who asked for it, a path that ends in what it computes; the first that fits.
KINDS = {
    "matrix products": r"^dot |/dot_general",
    "XLA's own convolution": r"/conv_general_dilated",
    "copies and transposes": r"^(copy|transpose) |/transpose$",
    "patches and tiles, Winograd's transforms": r"/jit\(_(values|gradients)\)/",
    "batch norm": r"/bn\w*/",
    "pooling": r"pool|reduce_window",
    "ReLU and additions of the blocks": r"\(ResNet\)+/",
    "Adam, statistics, metrics": r"",
}


@dataclass(frozen=True)
class Arguments:
    """Shares the time of a training step out among the kinds of its operations.

    Example: python benchmarks/step_profile.py --steps 10
    """

    batch_size: int = 32
    """Images a step."""

    image_size: int = 64
    """Height and width in pixels."""

    model: Model = "resnet50"
    """Depth of the network."""

    steps: int = 5
    """Steps in the trace, and as many timed before it."""


def kind_of(operation: str) -> str:
    return next(kind for kind, pattern in KINDS.items() if re.search(pattern, operation))


def seconds_by_kind(trace: Path, text: str) -> Counter[str]:
    """The seconds of all events of a trace that are operations of the program with this text, over all threads."""
    operations = {name: f"{code} {path}" for name, code, path in INSTRUCTION.findall(text) if code not in CONTAINERS}
    seconds = Counter[str]()
    (file,) = trace.rglob("*.xplane.pb")
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            for event in line.events:
                name = event.name if event.name in operations else dict(event.stats).get("hlo_op")
                if name in operations:
                    seconds[kind_of(operations[name])] += event.duration_ns / 1e9
    if not seconds:
        raise SystemExit("the trace has no operation of the step; this device's profiler names them otherwise")
    return seconds


def main(arguments: Arguments) -> None:
    disable_malloc_trim()  # as training and the commands do
    size, batch_size = arguments.image_size, arguments.batch_size
    program = training(batch_size, size, "ours", model=arguments.model)
    for _ in range(2):
        program.call()
    step = statistics.median(timed(program.call) for _ in range(arguments.steps))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(arguments.steps):
                program.call()
        seconds = seconds_by_kind(Path(folder), program.program.as_text())
    table = Table("operations", box=box.SIMPLE)
    for name in ("share", "ms of the step"):
        table.add_column(name, justify="right")
    for kind in KINDS:
        share = seconds[kind] / seconds.total()
        table.add_row(kind, f"{share:.1%}", f"{1e3 * share * step:.0f}")
    console, peak = Console(width=WIDTH), peak_gigaflops()
    work = STEPS["train"][1] * forward_gigaflops(
        network(arguments.model, "ours", "float32"), jnp.zeros((batch_size, size, size, 3))
    )
    done, both = (program.program.cost_analysis() or {}).get("flops", 0) / 1e9, seconds.total() / arguments.steps
    console.print(f"{jax.devices()[0].device_kind}, {arguments.model}, batch {batch_size}, {size}×{size}: {step:.3f} s")
    console.print(table)
    console.print(
        f"Shares are of the {both:.3f} s that the operations of a step took by themselves, over all threads.\n"
        f"A large matrix product runs at {peak:.0f} GFLOP/s. Products of the step, as convolutions are defined: "
        f"{work:.0f} GFLOP, {work / peak:.3f} s;\n"
        f"all operations of the program, as it was compiled: {done:.0f} GFLOP, {done / peak:.3f} s."
    )


if __name__ == "__main__":
    begin(main, Arguments)
