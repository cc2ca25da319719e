"""Which operations take the time of a training step?

    python benchmarks/step_profile.py

The script traces a few steps of `step_time.py` and sums the times of XLA's operations by kind. The kind depends on the
operation and on the part of the network that it belongs to, whose name the compiled program records. The table has each
kind's share of these times, and that share of the step in milliseconds. The lines below the table have the lower bound:
the step's arithmetic at the rate of a large matrix product, measured in the same run.
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
CONTAINERS = ("call", "while", "conditional")  # their events contain those of other operations
# Patterns of an operation's code and its path in the network, "dot jit(train_step)/…/dot_general"; the first match
# counts.
KINDS = {
    "matrix products": r"^dot |/dot_general",
    "XLA's own convolution": r"/conv_general_dilated",
    "copies and transposes": r"^(copy|transpose) |/transpose$",
    "im2col and tiles, Winograd's transforms": r"/jit\(_(values|gradients)\)/",
    "batch norm": r"/bn\w*/",
    "pooling": r"pool|reduce_window",
    "ReLU and additions of the blocks": r"\(ResNet\)+/",
    "Adam, statistics, metrics": r"",
}


@dataclass(frozen=True)
class Arguments:
    """Divides the time of a training step among the kinds of its operations.

    Example: python benchmarks/step_profile.py --steps 10
    """

    batch_size: int = 32
    """Images in a step."""

    image_size: int = 64
    """Height and width in pixels."""

    model: Model = "resnet50"
    """Depth of the network."""

    steps: int = 5
    """Steps in the trace, and as many timed before it."""


def kind_of(operation: str) -> str:
    return next(kind for kind, pattern in KINDS.items() if re.search(pattern, operation))


def seconds_by_kind(trace: Path, text: str) -> Counter[str]:
    """Sums the seconds of a trace's events by kind, over all threads.

    Args:
      trace: folder that `jax.profiler.trace` wrote.
      text: of the compiled program whose operations count.
    """
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
        raise SystemExit("the trace has no operation of the step; this device's profiler uses other names")
    return seconds


def main(arguments: Arguments) -> None:
    disable_malloc_trim()  # as training and the commands do
    size = arguments.image_size
    batch_size = arguments.batch_size
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
    peak = peak_gigaflops()
    images = jnp.zeros((batch_size, size, size, 3))
    defined = STEPS["train"][1] * forward_gigaflops(network(arguments.model, "ours", "float32"), images)
    compiled = (program.program.cost_analysis() or {}).get("flops", 0) / 1e9
    all_threads = seconds.total() / arguments.steps
    console = Console(width=WIDTH)
    console.print(f"{jax.devices()[0].device_kind}, {arguments.model}, batch {batch_size}, {size}×{size}: {step:.3f} s")
    console.print(table)
    console.print(
        f"Shares are of {all_threads:.3f} s, the sum of the operations of a step over all threads.\n"
        f"A large matrix product runs at {peak:.0f} GFLOP/s. At that rate the convolutions of the step, as they are "
        f"defined, take {defined / peak:.3f} s ({defined:.0f} GFLOP);\n"
        f"all operations of the compiled program take {compiled / peak:.3f} s ({compiled:.0f} GFLOP)."
    )


if __name__ == "__main__":
    begin(main, Arguments)
