"""How long one training and one inference step take: `python benchmarks/step_time.py`.

The network is the tutorials' ResNet-50 in float32 with Adam. Ours and the same network with `flax.linen.Conv`
throughout are timed in turns in one process, so that whatever else the machine does falls on both alike; the share of
the peak is of a matrix product's rate measured in the same run.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from flaxresnet.config import TrainConfig
from flaxresnet.data.loader import Batch
from flaxresnet.data.preprocess import Preprocessing
from flaxresnet.models.blocks import conv_with_glorot
from flaxresnet.models.resnet import STAGE_SIZES, ResNet
from flaxresnet.training.metrics import Metrics
from flaxresnet.training.optimizer import make_optimizer
from flaxresnet.training.state import TrainState
from flaxresnet.training.step import make_train_step

PEAK_SIDE = 2048  # of the square matrices whose product measures the machine's peak
WIDTH = 100  # columns of the table, wherever it is shown
PLAIN_CONV = partial(nn.Conv, kernel_init=nn.initializers.glorot_uniform())


@dataclass(frozen=True)
class Arguments:
    """Times a training step and an inference step, ours beside plain flax.linen.Conv.

    Example: python benchmarks/step_time.py --batch-sizes 8 32 --image-sizes 64
    """

    batch_sizes: tuple[int, ...] = (32,)
    """Images a step."""

    image_sizes: tuple[int, ...] = (64,)
    """Height and width in pixels."""

    model: str = "resnet50"
    """Depth of the network."""

    steps: int = 10
    """Steps timed of each kind."""

    plain: bool = True
    """Time plain flax.linen.Conv as well."""

    json: Path | None = None
    """Write the figures to this file."""


@dataclass
class Timed:
    """One program: what it is, and the seconds of each of its calls."""

    what: str
    conv: str
    batch_size: int
    image_size: int
    gigaflops: float
    compile_seconds: float
    call: Callable[[], Any] = field(repr=False)
    seconds: list[float] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        figures = {k: v for k, v in asdict(self).items() if k not in ("call", "seconds")}
        low, median, high = np.quantile(self.seconds, (0.1, 0.5, 0.9)).tolist()
        return figures | {
            "median_seconds": median,
            "tenth_seconds": low,
            "ninetieth_seconds": high,
            "images_per_second": self.batch_size / median,
            "gigaflops_per_second": self.gigaflops / median,
        }


def forward_gigaflops(model: ResNet, images: jax.Array) -> float:
    """Multiplications and additions of all convolutions and the dense layer of one forward pass, in 10⁹."""
    total = 0

    def count(next_method: Any, args: Any, kwargs: Any, context: Any) -> Any:
        nonlocal total
        out = next_method(*args, **kwargs)
        if isinstance(context.module, (nn.Conv, nn.Dense)) and context.method_name == "__call__":
            kernel = context.module.variables["params"]["kernel"]
            total += 2 * out.size * (kernel.size // kernel.shape[-1])
        return out

    with nn.intercept_methods(count):
        jax.eval_shape(model.init, jax.random.key(0), images)
    return total / 1e9


def compiled(function: Any, *arguments: Any, **options: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    program = jax.jit(function, **options).lower(*arguments).compile()
    return program, time.perf_counter() - start


def programs(arguments: Arguments, name: str, conv: Any, batch_size: int, size: int) -> list[Timed]:
    """The training and the inference step of one network at one size."""
    model = ResNet(num_classes=6, stage_sizes=STAGE_SIZES[arguments.model], conv=conv)
    optimizer, preprocessing = make_optimizer(lambda _: 1e-3), Preprocessing(size, size)
    create, _ = compiled(lambda: TrainState.create(model, optimizer, jax.random.key(0), (size, size)))
    state = create()
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (batch_size, size, size, 3)), jnp.uint8)
    batch = Batch(images, jnp.arange(batch_size) % 6, jnp.ones(batch_size))
    variables = {
        "params": jax.tree.map(jnp.copy, state.params),
        "batch_stats": jax.tree.map(jnp.copy, state.batch_stats),
    }

    step = make_train_step(model, optimizer, preprocessing, TrainConfig(recipe="tutorial"), lambda _: 0.0)
    train, train_compile = compiled(step, state, Metrics.zero(), batch, donate_argnums=0)
    infer, infer_compile = compiled(lambda v, x: model.apply(v, preprocessing.scaled(x)), variables, images)
    held = {"state": state, "metrics": Metrics.zero()}

    def one_step() -> Any:
        held["state"], held["metrics"] = train(held["state"], held["metrics"], batch)
        return held

    work = forward_gigaflops(model, preprocessing.scaled(images))
    return [
        Timed("train", name, batch_size, size, 3 * work, train_compile, one_step),
        Timed("infer", name, batch_size, size, work, infer_compile, lambda: infer(variables, images)),
    ]


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def peak_gigaflops(calls: int = 5) -> float:
    """The machine's rate in a float32 matrix product, 10⁹ operations a second."""
    square = jnp.ones((PEAK_SIDE, PEAK_SIDE))
    product, _ = compiled(jnp.dot, square, square)
    seconds = [timed(lambda: product(square, square)) for _ in range(calls + 1)][1:]
    return 2 * PEAK_SIDE**3 / statistics.median(seconds) / 1e9


def main(arguments: Arguments) -> None:
    rows: list[dict[str, Any]] = []
    console = Console(width=WIDTH)
    device = jax.devices()[0].device_kind
    peak = peak_gigaflops()
    console.print(f"{device}, jax {jax.__version__}, {arguments.model}, float32; matrix product {peak:.0f} GFLOP/s")
    kinds = {"ours": conv_with_glorot} | ({"nn.Conv": PLAIN_CONV} if arguments.plain else {})
    for size in arguments.image_sizes:
        for batch_size in arguments.batch_sizes:
            cases = [case for name, conv in kinds.items() for case in programs(arguments, name, conv, batch_size, size)]
            for case in cases:
                case.call()
            for _ in range(arguments.steps):
                for case in cases:
                    case.seconds.append(timed(case.call))
            rows += [case.row() | {"share_of_peak": case.row()["gigaflops_per_second"] / peak} for case in cases]
    console.print(as_table(rows))
    if arguments.json:
        report = {"device": device, "jax": jax.__version__, "peak_gigaflops_per_second": peak, "rows": rows}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def as_table(rows: list[dict[str, Any]]) -> Table:
    table = Table("step", "by", box=box.SIMPLE)
    for name in ("batch", "size", "median s", "10–90%", "images/s", "of peak", "compile s"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row["what"],
            row["conv"],
            str(row["batch_size"]),
            str(row["image_size"]),
            f"{row['median_seconds']:.3f}",
            f"{row['tenth_seconds']:.3f}–{row['ninetieth_seconds']:.3f}",
            f"{row['images_per_second']:.0f}",
            f"{row['share_of_peak']:.0%}",
            f"{row['compile_seconds']:.0f}",
        )
    return table


if __name__ == "__main__":
    main(tyro.cli(Arguments))
