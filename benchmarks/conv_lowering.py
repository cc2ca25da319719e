"""Which form of a convolution is fastest, shape by shape: `python benchmarks/conv_lowering.py`.

Times every algorithm (`flaxresnet/models/cpu/`) that fits a shape, in turns, for the values and both gradients or for
inference, and marks the one that `conv_heuristics.py` chooses. A new machine or a new XLA may want another rule.
"""

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bench_cli import begin
from rich import box
from rich.console import Console
from rich.table import Table

from flaxresnet.models.conv import use_ohwi_layout
from flaxresnet.models.cpu.conv_algorithms import ROWS, ConvParams, ohwi_gemm
from flaxresnet.models.cpu.conv_heuristics import FORWARD, INPUT_GRADIENT, KERNEL_GRADIENT, choose, choose_for_inference
from flaxresnet.runtime.malloc_tuning import disable_malloc_trim

WIDTH = 110  # columns of the table
FIRST = ", features first"  # how the kernel lies
VALUES, BY_INPUT, BY_KERNEL, ANSWER = "values", "by input", "by kernel", "answer"  # the last: values in inference
CACHE = 128 * 2**20  # bytes of kernels that take turns in inference: as in a network, none is still in a cache
MAX_TURNS = 128  # kernels; the small ones stay in a cache beside whatever else a network has


@dataclass(frozen=True)
class Arguments:
    """Times the forms of the convolutions of a ResNet, for the values and both gradients, or in inference.

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

    strided: bool = False
    """Time the 3×3 convolutions in steps of 2 as well, with which stages of basic blocks begin."""

    inference: bool = False
    """Time answers instead: values alone, by kernels that were not read a moment ago, also by such that lie features
    first, as `FoldedConv` has large ones."""

    json: Path | None = None
    """Write the figures to this file."""


@dataclass(frozen=True)
class Layer:
    """A square convolution."""

    name: str
    side: int
    channels: int
    kernel: int
    features: int
    window: ConvParams

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the kernel."""
        return self.kernel, self.kernel, self.channels, self.features

    @property
    def result_side(self) -> int:
        return (self.side + sum(self.window.pads[0]) - self.kernel) // self.window.strides[0] + 1


def layers(image_size: int, pointwise: bool, strided: bool) -> list[Layer]:
    """The stem and one 3×3 convolution of each stage of the tutorials' network; one 1×1, and basic blocks' 3×3/2."""

    def square(stride: int, pad: int) -> ConvParams:
        return ConvParams((stride, stride), ((pad, pad), (pad, pad)))

    found = [Layer("conv1 7×7/2", image_size, 3, 7, 64, square(2, 3))]
    side = (found[0].result_side - 3) // 2 + 1
    for stage in (2, 3, 4, 5):
        before, inner = side, 64 * 2 ** (stage - 2)
        if stage > 2:
            side = -(-side // 2)
            if strided:
                found.append(Layer(f"{stage}a 3×3/2", before, inner // 2, 3, inner, square(2, 1)))
        found.append(Layer(f"{stage}b 3×3", side, inner, 3, inner, square(1, 1)))
        if pointwise:
            found.append(Layer(f"{stage}b 1×1", side, 4 * inner, 1, inner, square(1, 0)))
    return found


def fits(form: str, layer: Layer) -> bool:
    steps_of_one, size = layer.window.strides == (1, 1), layer.kernel
    known = {"conv1x1_gemm": size == 1, "winograd": size == 3 and steps_of_one}
    return known.get(form, size > 1 or form == "native")


def random(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))


def training_cases(layer: Layer, batch: int) -> dict[str, dict[str, Callable[[], Any]]]:
    """For the values and each gradient, every form that fits, compiled."""
    x, kernel = random(batch, layer.side, layer.side, layer.channels), random(*layer.shape)
    g = random(batch, layer.result_side, layer.result_side, layer.features)
    forms = {
        VALUES: {name: lambda x, k, g, f=form: f(x, k, layer.window) for name, form in FORWARD.items()},
        BY_INPUT: {name: lambda x, k, g, f=form: f(x, k, g, layer.window) for name, form in INPUT_GRADIENT.items()},
        BY_KERNEL: {name: lambda x, k, g, f=form: f(x, k, g, layer.window) for name, form in KERNEL_GRADIENT.items()},
    }
    if layer.channels == 3:
        del forms[BY_INPUT]  # nobody asks for the gradient by the pictures

    def program(form: Callable[..., Any]) -> Callable[[], Any]:
        compiled = jax.jit(form).lower(x, kernel, g).compile()
        return lambda: jax.block_until_ready(compiled(x, kernel, g))

    return {what: {n: program(f) for n, f in by.items() if fits(n, layer)} for what, by in forms.items()}


def inference_cases(layer: Layer, batch: int) -> dict[str, dict[str, Callable[[], Any]]]:
    """Every form that fits, and those of kernels that lie features first; the kernels take turns."""
    x, kernel = random(batch, layer.side, layer.side, layer.channels), random(*layer.shape)
    turned, turns = jnp.moveaxis(kernel, -1, 0), -(-CACHE // kernel.nbytes)
    forms = {name: (lambda x, k, f=form: f(x, k, layer.window), kernel) for name, form in FORWARD.items()}
    forms |= {f"{name}{FIRST}": (lambda x, k, n=name: ohwi_gemm(n, x, k, layer.window), turned) for name in ROWS}
    copies: dict[tuple[int, ...], list[jax.Array]] = {}

    def program(form: Callable[..., Any], kernel: jax.Array) -> Callable[[], Any]:
        compiled = jax.jit(form).lower(x, kernel).compile()
        if kernel.shape not in copies:
            copies[kernel.shape] = [jnp.array(kernel) for _ in range(min(turns, MAX_TURNS))]
        other = itertools.cycle(copies[kernel.shape])
        return lambda: jax.block_until_ready(compiled(x, next(other)))

    return {ANSWER: {name: program(*form) for name, form in forms.items() if fits(name.removesuffix(FIRST), layer)}}


def heuristic_choice(layer: Layer, batch: int) -> dict[str, str]:
    """The form that the networks take, for each of what is asked."""
    case = (batch, layer.side, layer.side, layer.channels), layer.shape, layer.window
    answer = choose_for_inference(*case).forward
    if use_ohwi_layout(layer.shape):
        answer = "im2col" if answer == "per_offset_gemm" else answer
        answer += FIRST if answer in ROWS else ""
    return dict(zip((VALUES, BY_INPUT, BY_KERNEL), choose(*case), strict=True)) | {ANSWER: answer}


def seconds_in_turns(programs: dict[str, Callable[[], Any]], calls: int) -> dict[str, list[float]]:
    """Seconds of each program's calls, made in turns; the first is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(calls + 1):
        for name, call in programs.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: times[1:] for name, times in seconds.items()}


def main(arguments: Arguments) -> None:
    disable_malloc_trim()  # as training and the commands do
    console, rows = Console(width=WIDTH), []
    cases = inference_cases if arguments.inference else training_cases
    for size in arguments.image_sizes:
        for batch in arguments.batch_sizes:
            for layer in layers(size, arguments.pointwise, arguments.strided):
                for what, programs in cases(layer, batch).items():
                    times = seconds_in_turns(programs, arguments.calls)
                    row = {"layer": layer.name, "image": size, "batch": batch, "side": layer.side, "what": what}
                    rows.append(row | {"chosen": heuristic_choice(layer, batch)[what]} | figures(times))
    console.print(as_table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def figures(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """By form: median, and the calls' tenth and ninetieth percentile, in milliseconds."""
    parts = {"tenth": 0.1, "milliseconds": 0.5, "ninetieth": 0.9}
    return {
        part: {name: 1e3 * float(np.quantile(seconds, share)) for name, seconds in times.items()}
        for part, share in parts.items()
    }


def as_table(rows: list[dict[str, Any]]) -> Table:
    title = "milliseconds, medians; * is what is taken; ± is the widest half of a 10–90% range, of its median"
    table = Table("layer", "of", box=box.SIMPLE, title=title, title_justify="left")
    known = dict.fromkeys((*KERNEL_GRADIENT, *(f"{name}{FIRST}" for name in ROWS)))
    names = [name for name in known if any(name in row["milliseconds"] for row in rows)]
    for name in ("input", "batch", *(name.replace(" ", "\n") for name in names), "±"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        times = row["milliseconds"]
        cells = [cell(times[name], name == row["chosen"]) if name in times else "" for name in names]
        spread = max((row["ninetieth"][name] - row["tenth"][name]) / 2 / times[name] for name in times)
        size = f"{row['side']}×{row['side']}"
        table.add_row(row["layer"], row["what"], size, str(row["batch"]), *cells, f"{spread:.0%}")
    return table


def cell(milliseconds: float, is_chosen: bool) -> str:
    return f"{milliseconds:.{2 if milliseconds < 1 else 1}f}{'*' if is_chosen else ' '}"


if __name__ == "__main__":
    begin(main, Arguments)
