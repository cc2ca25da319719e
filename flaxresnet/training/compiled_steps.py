"""The compiled functions of a training run: the step as soon as can be, those of an epoch's end while it trains."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jax.stages import Compiled, Lowered

from flaxresnet.augment.pipeline import make_inputs
from flaxresnet.data.loader import Batch
from flaxresnet.models.precise_bn import measure_batch_stats
from flaxresnet.models.resnet import stage_of
from flaxresnet.runs.metadata import RunMetadata
from flaxresnet.runtime.malloc_tuning import malloc_trim
from flaxresnet.training.executable_cache import jax_cache_hits, open_executable_cache, state_shapes
from flaxresnet.training.metrics import Metrics
from flaxresnet.training.step import EvalStep, TrainStep, make_eval_step, make_train_step
from flaxresnet.training.train_state import TrainState

Options = dict[str, str | bool]

# For CPUs: operations in an order that keeps few results alive, and parameters updated in place where that can be.
# Half the scratch memory of a training step, at the same speed (`benchmarks/RESULTS.md`).
LOW_MEMORY_FLAGS: Options = {
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    "xla_cpu_copy_insertion_use_region_analysis": True,
}
# For CPUs and what runs once: thorough compilation of all the random draws would take longer than the draws themselves.
# Level 1 compiles 2 s longer than 0 and draws the same bits in 0.2 s instead of 1.5, at every start.
FAST_COMPILE_FLAGS: Options = {"xla_backend_optimization_level": "1"}


def compile_low_memory(lowered: Lowered, once: bool = False) -> Compiled:
    """`lowered.compile()` that takes less memory, then and at every call; `once` says that there is one call."""
    options = (
        (LOW_MEMORY_FLAGS | FAST_COMPILE_FLAGS if once else LOW_MEMORY_FLAGS) if jax.default_backend() == "cpu" else {}
    )
    try:
        compiled = lowered.compile(options)
    except jax.errors.JaxRuntimeError:  # such as by an XLA that does not know these options
        compiled = lowered.compile()
    malloc_trim()
    return compiled


def with_sharding(shapes: Any, sharding: NamedSharding, zero1: bool = False) -> Any:
    """Shapes of a pytree's arrays with where they lie: whole on every device, or divided over all of them.

    Divided is each array along the first axis whose length is a multiple of the number of devices, as in ZeRO, stage 1
    (Rajbhandari et al. 2020, arXiv:1910.02054); one that has none stays whole.
    """
    devices = sharding.mesh.size

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        axes = [axis for axis, length in enumerate(leaf.shape) if length and length % devices == 0]
        spec = PartitionSpec(*[None] * axes[0], "data") if zero1 and axes else PartitionSpec()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(sharding.mesh, spec))

    return jax.tree.map(place, shapes)


class CompiledSteps:
    """Compiles a run's functions in a thread, in the order in which they are needed; a context manager.

    Attributes:
      shapes: the state's, a `TrainState` of `jax.ShapeDtypeStruct` that say where it lies.
    """

    def __init__(
        self,
        info: RunMetadata,
        optimizer: optax.GradientTransformation,
        augmentation: optax.Schedule,
        batch: Batch,
        sample: jax.Array | None,
        sharding: NamedSharding,
        fresh: bool,
        has_steps_left: bool = True,
        zero1: bool = False,
        keep: bool = False,
    ) -> None:
        """Begins with what the first step needs; the first state is drawn as soon as can be, too.

        Args:
          info: the run.
          optimizer, augmentation: as for `make_train_step`.
          batch: the shapes of a batch, placed as all batches will be.
          sample: images to measure batch norm's statistics on, or None.
          sharding: of everything that the functions return.
          fresh: whether a first state is needed.
          has_steps_left: whether a step is likely to be taken; where not, it is compiled when it is asked for.
          zero1: whether the optimiser's state is divided over the devices instead.
          keep: whether programs may be those of an earlier start, found without tracing (`open_executable_cache`).
        """
        self._model, self._preprocessing, self._batch, self._sample = info.model(), info.preprocessing, batch, sample
        # Crops are taken here in any case: the sample's images are whole where training's are cropped when decoded.
        self._inputs = make_inputs(info.preprocessing, info.config, augmentation, self._model.num_classes)
        self._jit = partial(jax.jit, out_shardings=sharding)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compiler")
        self._drawing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="drawing")
        self._rest: tuple[Future[Compiled], Future[Compiled] | None] | None = None
        self._kept = open_executable_cache(info, keep, batch, sample)

        key, (_, height, width, _) = jax.random.key(info.config.seed), batch.images.shape
        first = partial(
            TrainState.create, self._model, optimizer, key, (height, width), info.config.resolved_recipe.ema > 0
        )
        kept_step = self._kept.load("train_step")
        shapes = state_shapes(kept_step) if kept_step else jax.eval_shape(first)
        metrics = jax.eval_shape(Metrics.zero)
        self.shapes = with_sharding(shapes, sharding)
        if zero1:
            self.shapes = self.shapes.replace(opt_state=with_sharding(shapes.opt_state, sharding, zero1=True))
        self._metrics = with_sharding(metrics, sharding)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, (self.shapes, self._metrics))
        # Both are traced here, one after the other, for Python traces one thing at a time; the first one is compiled
        # and run while the second one, which takes longest, is traced.
        create = jax.jit(first, out_shardings=shardings[0])
        self._first: Future[TrainState] | None = None
        if fresh:
            self._first = self._drawing.submit(self._init_state, self._cached_or_lowered("create", create.lower))
        cropped = bool(info.data["streamed"])
        step = make_train_step(self._model, optimizer, self._preprocessing, info.config, augmentation, cropped)
        jitted = jax.jit(step, out_shardings=shardings, donate_argnums=0)
        self._step: Future[Compiled] | None = None
        self._lowered_step = lambda: kept_step or jitted.lower(self.shapes, self._metrics, batch)
        if has_steps_left:
            self._begin_step()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for thread in (self._drawing, self._thread):
            thread.shutdown(cancel_futures=True)

    def _begin_step(self) -> Future[Compiled]:
        if self._step is None:
            self._step = self._thread.submit(self._compiled, "train_step", self._lowered_step())
        return self._step

    def compile_eval_async(self) -> tuple[Future[Compiled], Future[Compiled] | None]:
        """Begins, once, with what an epoch's end needs: when the first step is done, which it would only delay."""
        if self._rest is None:
            variables = {"params": self.shapes.params, "batch_stats": self.shapes.batch_stats}
            evaluate = self._jit(make_eval_step(self._model, self._preprocessing))
            measure = self._jit(self._measured)
            evaluated = self._start("evaluate", partial(evaluate.lower, variables, self._metrics, self._batch))
            measured = partial(measure.lower, self._sample, variables, self.shapes.step)
            self._rest = evaluated, None if self._sample is None else self._start("measure", measured)
        return self._rest

    @property
    def all_compiled(self) -> bool:
        """Whether all that an epoch needs is compiled, so that steps have the machine to themselves."""
        return self._rest is not None and all(rest is None or rest.done() for rest in self._rest)

    def create(self) -> TrainState:
        """The state before the first step."""
        if self._first is None:
            raise ValueError("there is no first state: a run that goes on has its own, and it is given once")
        first, self._first = self._first, None  # a step uses it up
        return first.result()

    @property
    def train_step(self) -> TrainStep:
        """(state, metrics, batch) → (state, metrics); the state passed in is used up."""
        return self._begin_step().result()

    @property
    def eval_step(self) -> EvalStep:
        """({"params", "batch_stats"}, metrics, batch) → metrics."""
        return self.compile_eval_async()[0].result()

    @property
    def measure(self) -> Callable[[Any, jax.Array], Any] | None:
        """({"params", "batch_stats"}, step) → batch norm's statistics on the sample; None where there is no sample."""
        measure = self.compile_eval_async()[1]
        return None if measure is None else partial(measure.result(), self._sample)

    def _measured(self, images: jax.Array, variables: Any, step: jax.Array) -> Any:
        """The statistics that training has: of images as they would be augmented in the next steps.

        Weights have learned to work with these, and other people's photos are more like those images than like the
        training images themselves (`benchmarks/RESULTS.md`).
        """
        running, frozen = variables["batch_stats"], self._model.frozen

        def prepare(part: tuple[jax.Array, jax.Array]) -> jax.Array:
            step, images = part
            no = jnp.zeros(len(images), jnp.int32)
            return self._inputs(step, Batch(images, labels=no, mask=no))[0]

        batches = step + jnp.arange(len(images)), images
        measured = measure_batch_stats(self._model, variables["params"], batches, running, prepare)
        return measured | {layer: stats for layer, stats in running.items() if stage_of(layer) in frozen}

    def _start(self, name: str, lower: Callable[[], Lowered]) -> Future[Compiled]:
        return self._thread.submit(lambda: self._compiled(name, self._cached_or_lowered(name, lower)))

    def _init_state(self, program: Compiled | Lowered) -> TrainState:
        return jax.block_until_ready(self._compiled("create", program, once=True)())

    def _cached_or_lowered(self, name: str, lower: Callable[[], Lowered]) -> Compiled | Lowered:
        return self._kept.load(name) or lower()

    def _compiled(self, name: str, program: Compiled | Lowered, once: bool = False) -> Compiled:
        """The program as it was kept, or compiled, and then kept where it can be."""
        if isinstance(program, Compiled):
            return program
        before = jax_cache_hits()
        compiled = compile_low_memory(program, once)
        if jax_cache_hits() == before:
            self._kept.store(name, compiled)
        return compiled
