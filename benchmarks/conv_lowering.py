"""Which convolution algorithm is fastest on a CPU, shape by shape?

    python benchmarks/conv_lowering.py

The script times every algorithm of `flaxresnet/models/cpu/` that fits a layer, interleaved, for the forward pass and
both gradients, or for inference. The table has one row for each layer and pass, with the median milliseconds of each
algorithm. An asterisk marks the choice of `conv_heuristics.py`; another machine or a newer XLA may need another rule.
The last column is the widest half of a 10–90% range, as a percentage of its median.
"""

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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

WIDTH = 140  # columns of the table
OHWI = ", OHWI"  # suffix of algorithms that take the kernel in OHWI layout
OUTPUT = "output"
BY_INPUT = "by input"
BY_KERNEL = "by kernel"
INFERENCE = "inference"
CACHE = 128 * 2**20  # bytes of kernels that take turns in inference, so that none is in a cache, as in a network
MAX_COPIES = 128  # of a kernel; small ones stay in a cache in a network, too


@dataclass(frozen=True)
class Arguments:
    """Times the algorithms for the convolutions of a ResNet, for the forward pass and both gradients, or in inference.

    Example: python benchmarks/conv_lowering.py --image-sizes 64 224 --batch-sizes 32
    """

    image_sizes: tuple[int, ...] = (64,)
    """Height and width in pixels of the network's input."""

    batch_sizes: tuple[int, ...] = (32,)
    """Images in a batch."""

    calls: int = 7
    """Timed calls of each algorithm."""

    pointwise: bool = False
    """Time 1×1 convolutions as well."""

    strided: bool = False
    """Time the 3×3 convolutions with stride 2 as well, which begin the stages of basic blocks."""

    inference: bool = False
    """Time inference instead: the forward pass with kernels that are in no cache, also in the OHWI layout that
    `FoldedConv` uses for large ones."""

    json: Path | None = None
    """Write the figures to this file."""


@dataclass(frozen=True)
class Layer:
    """A convolution with a square kernel.

    Attributes:
      name: stage, block and kernel, such as "2b 3×3".
      side: height and width of the input.
      channels: of the input.
      kernel: height and width of the kernel.
      features: channels of the output.
      params: strides and padding.
    """

    name: str
    side: int
    channels: int
    kernel: int
    features: int
    params: ConvParams

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the kernel, HWIO."""
        return self.kernel, self.kernel, self.channels, self.features

    @property
    def output_side(self) -> int:
        """Height and width of the output."""
        return (self.side + sum(self.params.pads[0]) - self.kernel) // self.params.strides[0] + 1


def layers(image_size: int, pointwise: bool, strided: bool) -> list[Layer]:
    """Returns the stem and one 3×3 convolution of each stage of the tutorials' network.

    Args:
      image_size: height and width of the network's input.
      pointwise: add one 1×1 convolution of each stage.
      strided: add the 3×3 convolution with stride 2 of each stage of basic blocks.
    """

    def square(stride: int, pad: int) -> ConvParams:
        return ConvParams((stride, stride), ((pad, pad), (pad, pad)))

    stem = Layer("conv1 7×7/2", image_size, 3, 7, 64, square(2, 3))
    result = [stem]
    side = (stem.output_side - 3) // 2 + 1  # after pooling
    for stage in (2, 3, 4, 5):
        inner = 64 * 2 ** (stage - 2)
        if stage > 2:
            if strided:
                result.append(Layer(f"{stage}a 3×3/2", side, inner // 2, 3, inner, square(2, 1)))
            side = -(-side // 2)
        result.append(Layer(f"{stage}b 3×3", side, inner, 3, inner, square(1, 1)))
        if pointwise:
            result.append(Layer(f"{stage}b 1×1", side, 4 * inner, 1, inner, square(1, 0)))
    return result


def fits(algorithm: str, layer: Layer) -> bool:
    """Returns whether an algorithm supports a layer, and is worth timing there."""
    if algorithm == "conv1x1_gemm":
        return layer.kernel == 1
    if algorithm == "winograd":
        return layer.kernel == 3 and layer.params.strides == (1, 1)
    return algorithm == "native" or layer.kernel > 1


def random(*shape: int) -> jax.Array:
    """Returns standard normal float32 numbers."""
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))


def training_cases(layer: Layer, batch: int) -> dict[str, dict[str, Callable[[], Any]]]:
    """Returns compiled calls by pass (output, gradient by input, by kernel) and by algorithm that fits the layer."""
    x = random(batch, layer.side, layer.side, layer.channels)
    kernel = random(*layer.shape)
    g = random(batch, layer.output_side, layer.output_side, layer.features)

    def program(function: Callable[..., Any], *arrays: jax.Array) -> Callable[[], Any]:
        compiled = jax.jit(lambda *arrays: function(*arrays, layer.params)).lower(*arrays).compile()
        return lambda: jax.block_until_ready(compiled(*arrays))

    cases = {OUTPUT: {name: program(f, x, kernel) for name, f in FORWARD.items() if fits(name, layer)}}
    if layer.channels != 3:  # training needs no gradient by the images
        cases[BY_INPUT] = {name: program(f, x, kernel, g) for name, f in INPUT_GRADIENT.items() if fits(name, layer)}
    cases[BY_KERNEL] = {name: program(f, x, kernel, g) for name, f in KERNEL_GRADIENT.items() if fits(name, layer)}
    return cases


def inference_cases(layer: Layer, batch: int) -> dict[str, dict[str, Callable[[], Any]]]:
    """Returns compiled forward passes by algorithm that fits the layer; each call takes the next copy of the kernel."""
    x = random(batch, layer.side, layer.side, layer.channels)
    kernel = random(*layer.shape)
    ohwi_kernel = jnp.moveaxis(kernel, -1, 0)
    count = min(-(-CACHE // kernel.nbytes), MAX_COPIES)
    copies = [jnp.array(kernel) for _ in range(count)]
    ohwi_copies = [jnp.array(ohwi_kernel) for _ in range(count)]

    def program(function: Callable[..., Any], kernels: list[jax.Array]) -> Callable[[], Any]:
        compiled = jax.jit(lambda x, kernel: function(x, kernel, layer.params)).lower(x, kernels[0]).compile()
        turns = itertools.cycle(kernels)
        return lambda: jax.block_until_ready(compiled(x, next(turns)))

    programs = {name: program(function, copies) for name, function in FORWARD.items() if fits(name, layer)}
    for name in ROWS:
        if fits(name, layer):
            programs[f"{name}{OHWI}"] = program(partial(ohwi_gemm, name), ohwi_copies)
    return {INFERENCE: programs}


def heuristic_choice(layer: Layer, batch: int) -> dict[str, str]:
    """Returns the algorithm that the networks use, by pass."""
    case = (batch, layer.side, layer.side, layer.channels), layer.shape, layer.params
    inference = choose_for_inference(*case).forward
    if use_ohwi_layout(layer.shape):
        if inference == "per_offset_gemm":
            inference = "im2col"
        if inference in ROWS:
            inference += OHWI
    return dict(zip((OUTPUT, BY_INPUT, BY_KERNEL), choose(*case), strict=True)) | {INFERENCE: inference}


def seconds_in_turns(programs: dict[str, Callable[[], Any]], calls: int) -> dict[str, list[float]]:
    """Returns the seconds of each program's calls, interleaved; the first call of each is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(calls + 1):
        for name, call in programs.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: times[1:] for name, times in seconds.items()}


def main(arguments: Arguments) -> None:
    disable_malloc_trim()  # as training and the commands do
    rows = []
    cases = inference_cases if arguments.inference else training_cases
    for size in arguments.image_sizes:
        for batch in arguments.batch_sizes:
            for layer in layers(size, arguments.pointwise, arguments.strided):
                chosen = heuristic_choice(layer, batch)
                for what, programs in cases(layer, batch).items():
                    times = seconds_in_turns(programs, arguments.calls)
                    row = {"layer": layer.name, "image": size, "batch": batch, "side": layer.side, "what": what}
                    rows.append(row | {"chosen": chosen[what]} | figures(times))
    Console(width=WIDTH).print(as_table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def figures(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Returns the 10th percentile, the median and the 90th percentile in milliseconds, each by algorithm."""

    def quantiles(fraction: float) -> dict[str, float]:
        return {name: 1e3 * float(np.quantile(seconds, fraction)) for name, seconds in times.items()}

    return {"tenth": quantiles(0.1), "milliseconds": quantiles(0.5), "ninetieth": quantiles(0.9)}


def as_table(rows: list[dict[str, Any]]) -> Table:
    title = "milliseconds, medians; * marks the choice; ± is the widest half of a 10–90% range, relative to its median"
    table = Table("layer", "of", box=box.SIMPLE, title=title, title_justify="left")
    timed = {name for row in rows for name in row["milliseconds"]}
    names = [name for name in (*KERNEL_GRADIENT, *(f"{name}{OHWI}" for name in ROWS)) if name in timed]
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
    """Formats a time with two decimals below 1 ms, otherwise with one, and an asterisk if it is the choice."""
    decimals = 2 if milliseconds < 1 else 1
    mark = "*" if is_chosen else " "
    return f"{milliseconds:.{decimals}f}{mark}"


if __name__ == "__main__":
    begin(main, Arguments)
