"""Which form of a convolution is fastest, shape by shape: `python benchmarks/conv_lowering.py`.

Times every form (`flaxresnet/models/conv_forms.py`, `winograd.py`) that fits a shape, for the values and for the two
gradients, in turns, and marks the one that `conv_choice.py` takes. A new machine, or a new XLA, may want another rule.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from command import begin
from rich import box
from rich.console import Console
from rich.table import Table

from flaxresnet.memory import keep_freed_memory
from flaxresnet.models.conv_choice import FORWARD, INPUT_GRADIENT, KERNEL_GRADIENT, choose
from flaxresnet.models.conv_forms import Window

WIDTH = 100  # columns of the table
WHAT = ("values", "by input", "by kernel")  # the result, and its gradients


@dataclass(frozen=True)
class Arguments:
    """Times the forms of the convolutions of a ResNet, for the values and both gradients.

    Example: python benchmarks/conv_lowering.py --image-sizes 64 224 --batch-sizes 32
    """

    image_sizes: tuple[int, ...] = (64,)
    """Height and width in pixels of the network's input."""

    batch_sizes: tuple[int, ...] = (32,)
    """Images."""

    calls: int = 7
    """Calls timed of each form."""

    pointwise: bool = False
    """Time 1×1 convolutions as well."""

    json: Path | None = None
    """Write the figures to this file."""


@dataclass(frozen=True)
class Layer:
    """A convolution of the tutorials' network."""

    name: str
    side: int
    channels: int
    kernel: int
    features: int
    window: Window

    @property
    def result_side(self) -> int:
        return (self.side + sum(self.window.pads[0]) - self.kernel) // self.window.strides[0] + 1


def layers(image_size: int, pointwise: bool) -> list[Layer]:
    """The stem and one 3×3 convolution (and one 1×1) of each stage."""

    def square(stride: int, pad: int) -> Window:
        return Window((stride, stride), ((pad, pad), (pad, pad)))

    found = [Layer("conv1", image_size, 3, 7, 64, square(2, 3))]
    side = (found[0].result_side - 3) // 2 + 1
    for stage in (2, 3, 4, 5):
        side, inner = (side if stage == 2 else -(-side // 2)), 64 * 2 ** (stage - 2)
        found.append(Layer(f"{stage}b 3×3", side, inner, 3, inner, square(1, 1)))
        if pointwise:
            found.append(Layer(f"{stage}b 1×1", side, 4 * inner, 1, inner, square(1, 0)))
    return found


def fits(form: str, layer: Layer) -> bool:
    steps_of_one, size = layer.window.strides == (1, 1), layer.kernel
    known = {"pointwise": size == 1, "winograd": size == 3 and steps_of_one}
    return known.get(form, size > 1 or form == "native")


def cases(layer: Layer, batch: int) -> dict[str, dict[str, Callable[[], Any]]]:
    """For the values and each gradient, every form that fits, compiled."""
    rng = np.random.default_rng(0)

    def random(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape, np.float32))

    x = random(batch, layer.side, layer.side, layer.channels)
    kernel = random(layer.kernel, layer.kernel, layer.channels, layer.features)
    g = random(batch, layer.result_side, layer.result_side, layer.features)
    forms = {
        "values": {name: lambda x, k, g, f=form: f(x, k, layer.window) for name, form in FORWARD.items()},
        "by input": {name: lambda x, k, g, f=form: f(x, k, g, layer.window) for name, form in INPUT_GRADIENT.items()},
        "by kernel": {name: lambda x, k, g, f=form: f(x, k, g, layer.window) for name, form in KERNEL_GRADIENT.items()},
    }
    if layer.name == "conv1":
        del forms["by input"]  # nobody asks for the gradient by the pictures

    def program(form: Callable[..., Any]) -> Callable[[], Any]:
        compiled = jax.jit(form).lower(x, kernel, g).compile()
        return lambda: jax.block_until_ready(compiled(x, kernel, g))

    return {what: {n: program(f) for n, f in by.items() if fits(n, layer)} for what, by in forms.items()}


def milliseconds(programs: dict[str, Callable[[], Any]], calls: int) -> dict[str, float]:
    """Median of each program's calls, made in turns; the first is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(calls + 1):
        for name, call in programs.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(times[1:]) for name, times in seconds.items()}


def main(arguments: Arguments) -> None:
    keep_freed_memory()  # as training and the commands do
    console, rows = Console(width=WIDTH), []
    for size in arguments.image_sizes:
        for batch in arguments.batch_sizes:
            for layer in layers(size, arguments.pointwise):
                images = (batch, layer.side, layer.side, layer.channels)
                kernel = (layer.kernel, layer.kernel, layer.channels, layer.features)
                chosen = dict(zip(WHAT, choose(images, kernel, layer.window), strict=True))
                for what, programs in cases(layer, batch).items():
                    times = milliseconds(programs, arguments.calls)
                    row = {"layer": layer.name, "image": size, "batch": batch, "side": layer.side, "what": what}
                    rows.append(row | {"chosen": chosen[what], "milliseconds": times})
    console.print(as_table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def as_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        "layer", "of", box=box.SIMPLE, title="milliseconds; * is what conv_choice.py takes", title_justify="left"
    )
    names = [name for name in KERNEL_GRADIENT if any(name in row["milliseconds"] for row in rows)]
    for name in ("input", "batch", *names):
        table.add_column(name, justify="right")
    for row in rows:
        times = row["milliseconds"]
        cells = [f"{times[n]:.1f}{'*' if n == row['chosen'] else ' '}" if n in times else "" for n in names]
        table.add_row(row["layer"], row["what"], f"{row['side']}×{row['side']}", str(row["batch"]), *cells)
    return table


if __name__ == "__main__":
    begin(main, Arguments)
