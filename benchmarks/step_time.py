"""How long do one training step and one inference step take?

    python benchmarks/step_time.py

The network is the tutorials' ResNet-50 in float32 with Adam. The script times it with the layers of flaxresnet ("ours")
and with `flax.linen`'s convolutions and batch norm ("nn.Conv"), interleaved in one process, so that other load on the
machine affects both alike. The table has one row for each program and size: median seconds with the 10th and 90th
percentile, images a second, the arithmetic rate relative to a large matrix product's in the same run ("of peak"), the
memory of a call in MiB as XLA counts it, and the seconds of compilation.
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
from flaxresnet.training.param_groups import learning_rate_groups
from flaxresnet.training.step import make_train_step
from flaxresnet.training.train_state import TrainState

DATASET_IMAGES = 1024  # of `--fed`
PEAK_SIDE = 2048  # of the square matrices whose product measures the machine's peak
WIDTH = 100  # columns of the table
LAYERS: dict[str, dict[str, Any]] = {
    "ours": {},
    "nn.Conv": {"conv": partial(nn.Conv, kernel_init=nn.initializers.glorot_uniform()), "norm": nn.BatchNorm},
}


@dataclass(frozen=True)
class Arguments:
    """Times a training step and an inference step of flaxresnet beside plain flax.linen.Conv.

    Example: python benchmarks/step_time.py --batch-sizes 8 32 --image-sizes 64
    """

    batch_sizes: tuple[int, ...] = (32,)
    """Images in a step."""

    image_sizes: tuple[int, ...] = (64,)
    """Height and width in pixels."""

    model: Model = "resnet50"
    """Depth of the network."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the layers."""

    steps: int = 10
    """Timed steps of each program."""

    fed: bool = False
    """Also time training steps of flaxresnet that take batches of a data set; the difference is the cost of input."""

    augmented: bool = False
    """Also time training steps of flaxresnet with the augmentation of the recipe `robust`."""

    plain: bool = True
    """Time plain flax.linen.Conv as well."""

    json: Path | None = None
    """Write the figures to this file."""


@dataclass
class TimedStep:
    """A compiled step with its times.

    Attributes:
      what: key of `STEPS`.
      conv: key of `LAYERS`.
      batch_size: images in a step.
      image_size: height and width in pixels.
      gigaflops: arithmetic of a step in 10⁹ operations, as its layers are defined.
      compile_seconds: time of compilation.
      mebibytes: memory of a call.
      call: runs one step.
      seconds: times of the calls.
    """

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
        """Returns the fields without `call` and `seconds`, and figures that summarize `seconds`."""
        figures = asdict(self)
        del figures["call"], figures["seconds"]
        low, median, high = np.quantile(self.seconds, (0.1, 0.5, 0.9)).tolist()
        return figures | {
            "median_seconds": median,
            "tenth_seconds": low,
            "ninetieth_seconds": high,
            "images_per_second": self.batch_size / median,
            "gigaflops_per_second": self.gigaflops / median,
        }


def forward_gigaflops(model: ResNet, images: jax.Array) -> float:
    """Returns the multiplications and additions of all convolutions and dense layers of one forward pass, in 10⁹."""
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
    """A compiled step.

    Attributes:
      call: runs one step and returns when it is done.
      compile_seconds: time of compilation.
      mebibytes: arguments, results and scratch memory together, as XLA counts them.
      program: the compiled function.
    """

    call: Callable[[], Any]
    compile_seconds: float
    mebibytes: float
    program: Compiled


def compiled(
    function: Any, *arguments: Any, by: Callable[[Lowered], Compiled] = Lowered.compile, **options: Any
) -> tuple[Compiled, float, float]:
    """Compiles a function.

    Args:
      function: to pass to `jax.jit`.
      *arguments: arrays or pytrees that give the shapes.
      by: compiles the lowered function.
      **options: of `jax.jit`.

    Returns:
      The program, the seconds of tracing and compilation, and the memory that a call needs, in MiB.
    """
    start = time.perf_counter()
    program = by(jax.jit(function, **options).lower(*arguments))
    seconds = time.perf_counter() - start
    memory = program.memory_analysis()
    malloc_trim()  # returns the memory of memory_analysis, which training does not call
    sizes = memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes
    return program, seconds, (sum(sizes) - memory.alias_size_in_bytes) / 2**20


def network(model: str, conv: str, precision: str) -> ResNet:
    """Returns the tutorials' network of six classes with the layers `LAYERS[conv]`."""
    return resnet(model, num_classes=6, dtype=jnp.dtype(precision), **LAYERS[conv])


def adam() -> Any:
    """Returns the tutorials' optimizer, Adam with a learning rate of 0.001."""
    config = TrainConfig(recipe="tutorial")
    return make_optimizer(config.resolved_recipe, lambda _: 1e-3, learning_rate_groups(config, steps_per_epoch=1))


def initial_state(model: ResNet, optimizer: Any, size: int) -> TrainState:
    create = jax.jit(lambda: TrainState.create(model, optimizer, jax.random.key(0), (size, size)))
    return compile_low_memory(create.lower(), runs_once=True)()


def random_images(batch_size: int, size: int) -> jax.Array:
    """Returns (batch_size, size, size, 3) uint8."""
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (batch_size, size, size, 3)), jnp.uint8)


def dataset_batches(batch_size: int, size: int) -> Iterator[Batch]:
    """Yields shuffled batches of a data set on the device, as training gathers them there."""
    images = np.random.default_rng(0).integers(0, 256, (DATASET_IMAGES, size, size, 3), np.uint8)
    dataset = Dataset(images, np.arange(DATASET_IMAGES, dtype=np.int32) % 6, tuple("012345"))
    sharding = SingleDeviceSharding(jax.devices()[0])
    return DeviceSource(dataset, batch_size, sharding, sharding).train(seed=0, first=0)


def constant_batches(batch_size: int, size: int) -> Iterator[Batch]:
    """Yields one batch again and again."""
    return repeat(Batch(random_images(batch_size, size), jnp.arange(batch_size) % 6, jnp.ones(batch_size)))


def training(
    batch_size: int,
    size: int,
    conv: str,
    precision: str = "float32",
    model: str = "resnet50",
    batches: Callable[[int, int], Iterator[Batch]] = constant_batches,
    recipe: Literal["tutorial", "robust"] = "tutorial",
) -> Program:
    """Compiles a training step.

    Args:
      batch_size: images in a step.
      size: height and width in pixels.
      conv: key of `LAYERS`.
      precision: "float32" or "bfloat16".
      model: network.
      batches: returns batches for a batch size and an image size.
      recipe: whose augmentation the step has; the optimizer is Adam with a learning rate of 0.001 for either.
    """
    module = network(model, conv, precision)
    optimizer = adam()
    config = TrainConfig(recipe=recipe)
    step = make_train_step(
        module, optimizer, Preprocessing(size, size), config, lambda _: config.resolved_recipe.aug_strength
    )
    feed = batches(batch_size, size)
    state = [initial_state(module, optimizer, size), Metrics.zero()]
    by = compile_low_memory if conv == "ours" else Lowered.compile  # `fit` compiles so; plain Flax does not
    train, *costs = compiled(step, *state, next(feed), by=by, donate_argnums=0)

    def call() -> None:
        state[:] = train(*state, next(feed))
        jax.block_until_ready(state[1])  # all outputs are ready at once; waiting for each array takes time

    return Program(call, *costs, train)


def inference(batch_size: int, size: int, conv: str, precision: str = "float32", model: str = "resnet50") -> Program:
    """Compiles the logits of images on the device; flaxresnet's network has folded batch norm, as in `Classifier`."""
    module = network(model, conv, precision)
    preprocessing = Preprocessing(size, size)
    state = initial_state(module, adam(), size)
    variables: Any = {"params": state.params, "batch_stats": state.batch_stats}
    if conv == "ours":
        module, variables = fold_batch_norm(module, variables)
    images = random_images(batch_size, size)
    infer, *costs = compiled(lambda v, x: module.apply(v, preprocessing.preprocess_uint8(x)), variables, images)
    return Program(lambda: jax.block_until_ready(infer(variables, images)), *costs, infer)


# The function that compiles a step, and the step's arithmetic relative to the forward pass; backward takes twice as
# much.
STEPS = {
    "train": (training, 3),
    "train, fed": (partial(training, batches=dataset_batches), 3),
    "train, augmented": (partial(training, recipe="robust"), 3),
    "infer": (inference, 1),
}


def programs(arguments: Arguments, conv: str, batch_size: int, size: int) -> list[TimedStep]:
    """Compiles the requested steps with the layers `LAYERS[conv]` at one size."""
    module = network(arguments.model, conv, arguments.precision)
    forward = forward_gigaflops(module, jnp.zeros((batch_size, size, size, 3)))
    names = ["train"]
    if conv == "ours" and arguments.fed:
        names.append("train, fed")
    if conv == "ours" and arguments.augmented:
        names.append("train, augmented")
    steps = []
    for name in [*names, "infer"]:
        build, passes = STEPS[name]
        program = build(batch_size, size, conv, arguments.precision, arguments.model)
        step = TimedStep(
            what=name,
            conv=conv,
            batch_size=batch_size,
            image_size=size,
            gigaflops=passes * forward,
            compile_seconds=program.compile_seconds,
            mebibytes=program.mebibytes,
            call=program.call,
        )
        steps.append(step)
    return steps


def timed(call: Callable[[], Any]) -> float:
    """Returns the seconds of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak_gigaflops(precision: str = "float32", calls: int = 5) -> float:
    """Measures the rate of a large matrix product, in 10⁹ operations a second."""
    side = PEAK_SIDE
    if jax.default_backend() != "cpu":
        side *= 4  # so that an accelerator's time is not mostly the launch
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
    layers = list(LAYERS) if arguments.plain else ["ours"]
    for size in arguments.image_sizes:
        for batch_size in arguments.batch_sizes:
            steps = []
            for conv in layers:
                steps += programs(arguments, conv, batch_size, size)
            for step in steps:
                step.call()
            for _ in range(arguments.steps):
                for step in steps:
                    step.seconds.append(timed(step.call))
            for step in steps:
                row = step.row()
                rows.append(row | {"share_of_peak": row["gigaflops_per_second"] / peak})
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
