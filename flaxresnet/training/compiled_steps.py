"""The compiled functions of a training run.

The training step is compiled first. A thread compiles the functions for an epoch's end during the first training steps.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jax.stages import Compiled, Lowered

from flaxresnet.augment.pipeline import make_inputs
from flaxresnet.data.loader import Batch
from flaxresnet.models.precise_bn import measure_batch_stats
from flaxresnet.models.resnet import stage_of
from flaxresnet.runs.metadata import RunMetadata
from flaxresnet.runtime.malloc_tuning import malloc_trim
from flaxresnet.training.executable_cache import ExecutableCache, jax_cache_hits, state_shapes
from flaxresnet.training.input_pipeline import InputPipeline
from flaxresnet.training.metrics import Metrics, all_finite
from flaxresnet.training.optimizer import make_optimizer
from flaxresnet.training.param_groups import learning_rate_groups
from flaxresnet.training.schedule import augmentation_schedule, make_schedule
from flaxresnet.training.step import EvalStep, TrainStep, make_eval_step, make_train_step
from flaxresnet.training.train_state import TrainState

CompilerOptions = dict[str, str | bool]

# For CPUs: schedules operations so that few results are alive at once, and updates parameters in place if possible.
# This halves the scratch memory of a training step at the same speed (`benchmarks/RESULTS.md`).
LOW_MEMORY_FLAGS: CompilerOptions = {
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    "xla_cpu_copy_insertion_use_region_analysis": True,
}
# For CPUs and programs that run once: full optimization of the random initialization takes longer than it saves.
# Level 1 compiles 2 s longer than level 0 and draws the same bits in 0.2 s instead of 1.5 s.
FAST_COMPILE_FLAGS: CompilerOptions = {"xla_backend_optimization_level": "1"}


def compile_low_memory(lowered: Lowered, runs_once: bool = False) -> Compiled:
    """Compiles a program, on CPUs with the options above, and returns freed memory to the system.

    `runs_once` selects the fast compilation of `FAST_COMPILE_FLAGS`.
    """
    options: CompilerOptions = {}
    if jax.default_backend() == "cpu":
        options = LOW_MEMORY_FLAGS | FAST_COMPILE_FLAGS if runs_once else LOW_MEMORY_FLAGS
    try:
        compiled = lowered.compile(options)
    except jax.errors.JaxRuntimeError:  # for example, if this version of XLA lacks these options
        compiled = lowered.compile()
    malloc_trim()
    return compiled


def with_sharding(shapes: Any, sharding: NamedSharding, zero1: bool = False) -> Any:
    """Returns a pytree of `jax.ShapeDtypeStruct` with shardings.

    Args:
      shapes: a pytree of leaves with `shape` and `dtype`.
      sharding: its mesh has one axis, "data", over all devices.
      zero1: False replicates each array. True divides it along the first axis whose length is a multiple of the number
        of devices, as in ZeRO, stage 1 (Rajbhandari et al. 2020, arXiv:1910.02054), or replicates it if there is none.
    """
    devices = sharding.mesh.size

    def add_sharding(leaf: Any) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec()
        axes = [axis for axis, length in enumerate(leaf.shape) if length and length % devices == 0]
        if zero1 and axes:
            spec = PartitionSpec(*[None] * axes[0], "data")
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(sharding.mesh, spec))

    return jax.tree.map(add_sharding, shapes)


class CompiledSteps:
    """Compiles the functions of a run in background threads, in the order in which the run needs them.

    As a context manager, it stops the threads at its end.

    Attributes:
      shapes: the `TrainState` of `jax.ShapeDtypeStruct`, with shardings.
      schedule: the learning rate as a function of the steps done.
      zero_metrics: metrics over zero images, on the devices.
      all_finite: returns whether a pytree holds finite numbers only; see `metrics.all_finite`.
      resuming: whether the run continues from a checkpoint.
      has_steps_left: whether the run has training steps left.
    """

    def __init__(
        self,
        metadata: RunMetadata,
        pipeline: InputPipeline,
        cache: ExecutableCache,
        resuming: bool = False,
        has_steps_left: bool = True,
    ) -> None:
        """Starts compiling the functions for the first step, and computing the initial state unless the run resumes.

        Args:
          metadata: the run.
          pipeline: gives the shapes and shardings of the batches and the images for precise batch norm.
          cache: stores compiled programs between runs.
          resuming: whether the run continues from a checkpoint, which needs no initial state.
          has_steps_left: whether to compile the training step now. If not, its first use compiles it.
        """
        config = metadata.config
        recipe = config.resolved_recipe
        steps_per_epoch = pipeline.train.steps_per_epoch
        sharding = pipeline.replicated
        augmentation = augmentation_schedule(config, steps_per_epoch)
        self.schedule = make_schedule(config, steps_per_epoch)
        optimizer = make_optimizer(recipe, self.schedule, learning_rate_groups(config, steps_per_epoch))
        self.resuming = resuming
        self.has_steps_left = has_steps_left
        self.zero_metrics = jax.device_put(Metrics.zero(), sharding)
        self.all_finite = jax.jit(all_finite, out_shardings=sharding)

        self._model = metadata.model()
        self._preprocessing = metadata.preprocessing
        self._batch = pipeline.batch_shapes
        self._bn_batches = pipeline.bn_batches
        # The images for precise batch norm are uncropped, even if the training images are cropped when decoded.
        self._inputs = make_inputs(metadata.preprocessing, config, augmentation, self._model.num_classes)
        self._jit = partial(jax.jit, out_shardings=sharding)
        self._compiler = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compiler")
        self._initializer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="initializer")
        self._eval_programs: tuple[Future[Compiled], Future[Compiled] | None] | None = None
        self._cache = cache

        _, height, width, _ = self._batch.images.shape
        key = jax.random.key(config.seed)
        create = partial(TrainState.create, self._model, optimizer, key, (height, width), recipe.ema > 0)
        cached_step = cache.load("train_step")
        shapes = state_shapes(cached_step) if cached_step else jax.eval_shape(create)
        self.shapes = with_sharding(shapes, sharding)
        if config.shard_optimizer:
            self.shapes = self.shapes.replace(opt_state=with_sharding(shapes.opt_state, sharding, zero1=True))
        self._metrics = with_sharding(jax.eval_shape(Metrics.zero), sharding)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, (self.shapes, self._metrics))
        # Python traces one function at a time. The initialization is compiled and run in its thread while the training
        # step, which takes longest, is traced here.
        self._initial_state: Future[TrainState] | None = None
        if not resuming:
            program = self._cached_or_lowered("create", jax.jit(create, out_shardings=shardings[0]).lower)
            self._initial_state = self._initializer.submit(self._init_state, program)
        cropped = bool(metadata.data["streamed"])
        step = make_train_step(self._model, optimizer, self._preprocessing, config, augmentation, cropped)
        jitted = jax.jit(step, out_shardings=shardings, donate_argnums=0)
        self._train_step: Future[Compiled] | None = None
        self._lower_train_step = lambda: cached_step or jitted.lower(self.shapes, self._metrics, self._batch)
        if has_steps_left:
            self._compile_train_step()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for thread in (self._initializer, self._compiler):
            thread.shutdown(cancel_futures=True)

    def _compile_train_step(self) -> Future[Compiled]:
        if self._train_step is None:
            self._train_step = self._compiler.submit(self._compiled, "train_step", self._lower_train_step())
        return self._train_step

    def compile_eval_async(self) -> tuple[Future[Compiled], Future[Compiled] | None]:
        """Starts compiling the functions for an epoch's end; later calls return the same futures.

        Call it after the first step, so that tracing does not delay that step.
        """
        if self._eval_programs is None:
            variables = {"params": self.shapes.params, "batch_stats": self.shapes.batch_stats}
            evaluate = self._jit(make_eval_step(self._model, self._preprocessing))
            eval_program = self._submit("evaluate", partial(evaluate.lower, variables, self._metrics, self._batch))
            bn_program = None
            if self._bn_batches is not None:
                measure = self._jit(self._measure_batch_stats)
                lower = partial(measure.lower, self._bn_batches, variables, self.shapes.step)
                bn_program = self._submit("measure", lower)
            self._eval_programs = eval_program, bn_program
        return self._eval_programs

    @property
    def all_compiled(self) -> bool:
        """Whether all functions of an epoch are compiled, so that no compilation slows down the steps."""
        if self._eval_programs is None:
            return False
        return all(program is None or program.done() for program in self._eval_programs)

    def create(self) -> TrainState:
        """Returns the state before the first step. Raises ValueError if called twice, or if the run resumes."""
        if self._initial_state is None:
            raise ValueError("there is no initial state: the run resumes, or its first step has consumed the state")
        initial = self._initial_state
        self._initial_state = None  # the first step donates its buffers
        return initial.result()

    @property
    def train_step(self) -> TrainStep:
        """(state, metrics, batch) → (state, metrics). Donates the state. Waits for compilation."""
        return self._compile_train_step().result()

    @property
    def eval_step(self) -> EvalStep:
        """({"params", "batch_stats"}, metrics, batch) → metrics. Waits for compilation."""
        return self.compile_eval_async()[0].result()

    @property
    def measure(self) -> Callable[[Any, jax.Array], Any] | None:
        """({"params", "batch_stats"}, step) → precise statistics of batch norm; None if the run measures none."""
        program = self.compile_eval_async()[1]
        return None if program is None else partial(program.result(), self._bn_batches)

    def _measure_batch_stats(self, images: jax.Array, variables: Any, step: jax.Array) -> Any:
        """Returns batch norm's statistics on training images, augmented as in the next steps.

        The weights were trained with statistics of augmented images, and photos from other sources resemble augmented
        images more than they resemble the training images (`benchmarks/RESULTS.md`).
        """
        running = variables["batch_stats"]

        def prepare(part: tuple[jax.Array, jax.Array]) -> jax.Array:
            step, images = part
            zeros = jnp.zeros(len(images), jnp.int32)
            return self._inputs(step, Batch(images, labels=zeros, mask=zeros))[0]

        batches = step + jnp.arange(len(images)), images
        measured = measure_batch_stats(self._model, variables["params"], batches, running, prepare)
        frozen = {layer: stats for layer, stats in running.items() if stage_of(layer) in self._model.frozen}
        return measured | frozen

    def _submit(self, name: str, lower: Callable[[], Lowered]) -> Future[Compiled]:
        return self._compiler.submit(lambda: self._compiled(name, self._cached_or_lowered(name, lower)))

    def _init_state(self, program: Compiled | Lowered) -> TrainState:
        return jax.block_until_ready(self._compiled("create", program, runs_once=True)())

    def _cached_or_lowered(self, name: str, lower: Callable[[], Lowered]) -> Compiled | Lowered:
        return self._cache.load(name) or lower()

    def _compiled(self, name: str, program: Compiled | Lowered, runs_once: bool = False) -> Compiled:
        """Returns a cached program, or compiles one and stores it in the cache."""
        if isinstance(program, Compiled):
            return program
        hits_before = jax_cache_hits()
        compiled = compile_low_memory(program, runs_once)
        if jax_cache_hits() == hits_before:  # see `jax_cache_hits`
            self._cache.store(name, compiled)
        return compiled
