"""How long one training and one inference step take: `python benchmarks/step_time.py`.

The network is the tutorials' ResNet-50 in float32 with Adam. Ours and the same network with `flax.linen`'s convolutions
and batch norm are timed in turns in one process, so that whatever else the machine does falls on both alike; the share
of the peak is of a matrix product's rate measured in the same run.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from bench_cli import begin
from jax.sharding import SingleDeviceSharding
from jax.stages import Compiled, Lowered
from rich import box
from rich.console import Console
from rich.table import Table

from flaxresnet.config.recipes import Model
from flaxresnet.config.train_config import TrainConfig
from flaxresnet.data.dataset import Dataset
from flaxresnet.data.loader import Batch, DeviceSource
from flaxresnet.data.preprocess import Preprocessing
from flaxresnet.models.bn_folding import fold_batch_norm
from flaxresnet.models.resnet import ResNet, resnet
from flaxresnet.runtime.malloc_tuning import disable_malloc_trim, malloc_trim
from flaxresnet.training.compiled_steps import compile_low_memory
from flaxresnet.training.metrics import Metrics
from flaxresnet.training.optimizer import make_optimizer
from flaxresnet.training.step import make_train_step
from flaxresnet.training.train_state import TrainState

SET = 1024  # images of the data set of `--fed`
PEAK_SIDE = 2048  # of the square matrices whose product measures the machine's peak
WIDTH = 100  # columns of the table, wherever it is shown
LAYERS: dict[str, dict[str, Any]] = {
    "ours": {},
    "nn.Conv": {"conv": partial(nn.Conv, kernel_init=nn.initializers.glorot_uniform()), "norm": nn.BatchNorm},
}


@dataclass(frozen=True)
class Arguments:
    """Times a training step and an inference step, ours beside plain flax.linen.Conv.

    Example: python benchmarks/step_time.py --batch-sizes 8 32 --image-sizes 64
    """

    batch_sizes: tuple[int, ...] = (32,)
    """Images a step."""

    image_sizes: tuple[int, ...] = (64,)
    """Height and width in pixels."""

    model: Model = "resnet50"
    """Depth of the network."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the layers."""

    steps: int = 10
    """Steps timed of each kind."""

    fed: bool = False
    """Time training steps of ours on images of a data set as well, which is what input costs."""

    augmented: bool = False
    """Time training steps of ours with the augmentation of the recipe `robust` as well, which is what that costs."""

    plain: bool = True
    """Time plain flax.linen.Conv as well."""

    json: Path | None = None
    """Write the figures to this file."""


@dataclass
class TimedStep:
    """One program: what it is, and the seconds of each of its calls."""

    what: str
    conv: str
    batch_size: int
    image_size: int
    gigaflops: float
    compile_seconds: float
    mebibytes: float
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


@dataclass
class Program:
    """A compiled step: called without arguments, it returns when the step is done."""

    call: Callable[[], Any]
    compile_seconds: float
    mebibytes: float  # arguments, results and scratch memory together, as XLA counts them
    program: Compiled


def compiled(
    function: Any, *arguments: Any, by: Callable[[Lowered], Compiled] = Lowered.compile, **options: Any
) -> tuple[Compiled, float, float]:
    """The function compiled for these arguments, the seconds that took, and the memory that a call needs in MiB."""
    start = time.perf_counter()
    program = by(jax.jit(function, **options).lower(*arguments))
    seconds, memory = time.perf_counter() - start, program.memory_analysis()
    malloc_trim()  # what the question took XLA, which no training asks
    sizes = memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes
    return program, seconds, (sum(sizes) - memory.alias_size_in_bytes) / 2**20


def network(model: str, conv: str, precision: str) -> ResNet:
    return resnet(model, num_classes=6, dtype=jnp.dtype(precision), **LAYERS[conv])


def initial_state(model: ResNet, optimizer: Any, size: int) -> TrainState:
    create = jax.jit(lambda: TrainState.create(model, optimizer, jax.random.key(0), (size, size)))
    return compile_low_memory(create.lower(), once=True)()


def random_images(batch_size: int, size: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (batch_size, size, size, 3)), jnp.uint8)


def images_of_a_set(batch_size: int, size: int) -> Iterator[Batch]:
    """Batches as training takes them from a data set on the device: others at each step, gathered there."""
    images = np.random.default_rng(0).integers(0, 256, (SET, size, size, 3), np.uint8)
    dataset = Dataset(images, np.arange(SET, dtype=np.int32) % 6, tuple("012345"))
    place = SingleDeviceSharding(jax.devices()[0])
    return DeviceSource(dataset, batch_size, place, place).train(seed=0, first=0)


def same_images(batch_size: int, size: int) -> Iterator[Batch]:
    return repeat(Batch(random_images(batch_size, size), jnp.arange(batch_size) % 6, jnp.ones(batch_size)))


def training(
    batch_size: int,
    size: int,
    conv: str,
    precision: str = "float32",
    model: str = "resnet50",
    batches: Callable[[int, int], Iterator[Batch]] = same_images,
    recipe: Literal["tutorial", "robust"] = "tutorial",
) -> Program:
    """A training step of the tutorials' recipe, or with what another does to images, that are on the device already."""
    module, optimizer = network(model, conv, precision), make_optimizer(lambda _: 1e-3)
    config = TrainConfig(recipe=recipe)
    step = make_train_step(
        module, optimizer, Preprocessing(size, size), config, lambda _: config.resolved_recipe.aug_strength
    )
    fed = batches(batch_size, size)
    held = [initial_state(module, optimizer, size), Metrics.zero()]
    by = compile_low_memory if conv == "ours" else Lowered.compile  # as `fit` does, and as one's own code does
    train, *costs = compiled(step, *held, next(fed), by=by, donate_argnums=0)

    def call() -> None:
        held[:] = train(*held, next(fed))
        jax.block_until_ready(held[1])  # all that a program gives is ready at once; waiting for each array takes time

    return Program(call, *costs, train)


def inference(batch_size: int, size: int, conv: str, precision: str = "float32", model: str = "resnet50") -> Program:
    """Logits of images that are on the device already; ours with batch norm folded, as `Classifier` does it."""
    module, preprocessing = network(model, conv, precision), Preprocessing(size, size)
    state = initial_state(module, make_optimizer(lambda _: 1e-3), size)
    variables: Any = {"params": state.params, "batch_stats": state.batch_stats}
    if conv == "ours":
        module, variables = fold_batch_norm(module, variables)
    images = random_images(batch_size, size)
    infer, *costs = compiled(lambda v, x: module.apply(v, preprocessing.preprocess_uint8(x)), variables, images)
    return Program(lambda: jax.block_until_ready(infer(variables, images)), *costs, infer)


# How a step is made, and its arithmetic against the forward pass's: the backward pass does twice as much.
STEPS = {
    "train": (training, 3),
    "train, fed": (partial(training, batches=images_of_a_set), 3),
    "train, augmented": (partial(training, recipe="robust"), 3),
    "infer": (inference, 1),
}


def programs(arguments: Arguments, conv: str, batch_size: int, size: int) -> list[TimedStep]:
    """The steps of one network at one size."""
    module = network(arguments.model, conv, arguments.precision)
    work = forward_gigaflops(module, jnp.zeros((batch_size, size, size, 3)))
    if_asked = {"train, fed": arguments.fed, "train, augmented": arguments.augmented}
    cases = []
    for what, (build, passes) in STEPS.items():
        if what in if_asked and not (if_asked[what] and conv == "ours"):
            continue
        program = build(batch_size, size, conv, arguments.precision, arguments.model)
        costs = program.compile_seconds, program.mebibytes
        cases.append(TimedStep(what, conv, batch_size, size, passes * work, *costs, program.call))
    return cases


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak_gigaflops(precision: str = "float32", calls: int = 5) -> float:
    """The machine's rate in a matrix product, 10⁹ operations a second."""
    side = PEAK_SIDE * (1 if jax.default_backend() == "cpu" else 4)  # or an accelerator would wait for its program
    square = jnp.ones((side, side), precision)
    product, *_ = compiled(jnp.dot, square, square)
    seconds = [timed(lambda: jax.block_until_ready(product(square, square))) for _ in range(calls + 1)][1:]
    return 2 * side**3 / statistics.median(seconds) / 1e9


def main(arguments: Arguments) -> None:
    disable_malloc_trim()  # as training and the commands do
    rows: list[dict[str, Any]] = []
    console = Console(width=WIDTH)
    device = jax.devices()[0].device_kind
    peak = peak_gigaflops(arguments.precision)
    console.print(
        f"{device}, jax {jax.__version__}, {arguments.model}, {arguments.precision}; matrix product {peak:.0f} GFLOP/s"
    )
    kinds = list(LAYERS) if arguments.plain else ["ours"]
    for size in arguments.image_sizes:
        for batch_size in arguments.batch_sizes:
            cases = [case for conv in kinds for case in programs(arguments, conv, batch_size, size)]
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
    for name in ("batch", "size", "median s", "10–90%", "images/s", "of peak", "MiB", "compile s"):
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
            f"{row['mebibytes']:.0f}",
            f"{row['compile_seconds']:.0f}",
        )
    return table


if __name__ == "__main__":
    begin(main, Arguments)
