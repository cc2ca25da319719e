"""`fit`: trains a network from its options and its data, and writes the report."""

import shlex
import time
from collections.abc import Callable
from pathlib import Path

import jax

from flaxresnet.config.train_config import TrainConfig
from flaxresnet.data.dataset import Dataset, Splits
from flaxresnet.data.open import open_dataset
from flaxresnet.data.read_options import ReadOptions
from flaxresnet.data.sanity_checks import data_warnings
from flaxresnet.data.worker_import import exit_if_imported_by_worker
from flaxresnet.reliability.calibration_file import FILE as CALIBRATION_FILE
from flaxresnet.runs.checkpoint_store import CheckpointStore
from flaxresnet.runs.lock import WorkdirLock
from flaxresnet.runs.metadata import RunMetadata, check_network
from flaxresnet.runs.run_dir import RunDir
from flaxresnet.runtime import distributed
from flaxresnet.runtime.compilation_cache import use_compilation_cache
from flaxresnet.runtime.devices import warn_of_fallback
from flaxresnet.runtime.errors import UserError
from flaxresnet.runtime.malloc_tuning import disable_malloc_trim
from flaxresnet.runtime.x64 import x64_disabled
from flaxresnet.training.compiled_steps import CompiledSteps
from flaxresnet.training.executable_cache import open_executable_cache
from flaxresnet.training.finetuning import merge_pretrained_config, resumable_run
from flaxresnet.training.input_pipeline import InputPipeline
from flaxresnet.training.oom import oom_as_user_error
from flaxresnet.training.preemption import PreemptionHandler
from flaxresnet.training.profiler import StepProfiler
from flaxresnet.training.progress import ProgressLogger
from flaxresnet.training.run_setup import (
    check_splits,
    describe_run,
    prepare_folder,
    resolve_image_size,
    resolve_resize,
    set_aside,
)
from flaxresnet.training.tensorboard import TensorBoardWriter
from flaxresnet.training.trainer import RunOutput, Session, TrainResult, init_or_restore, train
from flaxresnet.weights.pretrained_weights import PretrainedWeights
from flaxresnet.weights.resolve import open_weights

# Options in which the processes of one run may differ.
PER_PROCESS_OPTIONS = (
    "process_id",
    "coordinator_address",
    "workers",
    "data",
    "workdir",
    "compilation_cache",
    "verbose",
)


@x64_disabled()
def fit(config: TrainConfig, *, quiet: bool = False, cache_executables: bool = False) -> TrainResult:
    """Trains a network, or resumes the run in `config.workdir`.

    The call has side effects that last until the process ends. On Linux with glibc, the process keeps freed memory, and
    JAX's asynchronous dispatch on CPUs is off, which makes training steps on a CPU faster (see
    `runtime/malloc_tuning.py`). JAX ignores the second setting after its first computation. `fit` also turns JAX's
    persistent compilation cache on or off.

    Args:
      config: the options. An option that is None has a default that depends on the recipe, the weights of `init`, the
        data or the machine.
      quiet: print nothing.
      cache_executables: on CPUs, store compiled programs, so that the next run with the same options compiles nothing.
        The cache does not detect modules that were patched in memory. The command line passes True;
        `--no-compilation-cache` turns this cache off as well.

    Returns:
      The finished run. Its folder holds `config.json`, `metrics.jsonl`, `checkpoints/` and, if `config.report`,
      `report/`.

    Raises:
      UserError: an option is invalid, the data or the weights do not fit, the folder is in use or holds another run,
        memory runs out, or a loss is not finite.
      TrainingInterrupted: Ctrl-C, SIGTERM or SIGHUP stopped training. The state is saved if training had begun, unless
        a second signal arrived.
    """
    exit_if_imported_by_worker()
    config.check()
    disable_malloc_trim()
    use_compilation_cache(config.compilation_cache)
    distributed.join_processes(config.distributed, config.coordinator_address, config.num_processes, config.process_id)
    warn_of_fallback()
    logger = ProgressLogger(
        config.epochs, config.batch_size, quiet or not distributed.is_process_zero(), config.verbose
    )
    with distributed.exit_watchdog(), WorkdirLock(logger.note) as lock:
        distributed.run_on_process_zero(lambda: _lock_early(config, lock, logger.note))
        return _fit(config, lock, logger, cache_executables)


def _lock_early(config: TrainConfig, lock: WorkdirLock, note: Callable[[str], None]) -> None:
    """Locks an existing workdir before the data are read, which may take minutes.

    In the default workdir, a run of another format is renamed, so that training without `--workdir` always works.
    """
    folder = RunDir(config.workdir)
    if not folder.path.is_dir():
        return
    folder.lock(lock)
    if config.workdir == TrainConfig.workdir and folder.has_other_format():
        note(f"another version wrote the run in {folder.path}; it is now {set_aside(folder, lock)}")


def _fit(config: TrainConfig, lock: WorkdirLock, logger: ProgressLogger, cache_executables: bool) -> TrainResult:
    # Open the weights and the data. A resumed run has its own weights, and the file of --init may no longer exist.
    stored = resumable_run(config)
    weights: PretrainedWeights | None = None
    pretrained_preprocessing = stored.preprocessing if stored else None
    if config.init and stored is None:
        weights = open_weights(config.init)
        pretrained_preprocessing = weights.preprocessing
    read_options = ReadOptions(
        image_size=resolve_image_size(config, pretrained_preprocessing),
        input=config.input,
        max_corrupt_fraction=config.max_corrupt_fraction,
        crop_pct=config.resolved_recipe.crop_pct,
        resize=resolve_resize(config, pretrained_preprocessing),
        processes=distributed.process_group(),
    )
    with logger.status("Reading the images…", terminal_only=True):
        splits = open_dataset(config.data, read_options)
    for line in splits.describe():
        logger.note(line)
    if splits.from_hdf5 or config.verbose:
        for line in splits.describe_arrays():
            logger.note(line)
    train_data, test_data = check_splits(splits, config)
    for sentence in data_warnings(splits):
        logger.note(f"warning: {sentence}")
    if config.init is None and (config.freeze or config.resolved_recipe.freeze_backbone_epochs):
        logger.note("warning: layers are frozen at random weights; give --init to start from pretrained weights")

    # Complete the options.
    if stored:
        config = merge_pretrained_config(config, stored.config.network)
    elif weights:
        config = merge_pretrained_config(config, weights.network, weights.assumed)
    config = config.resolve()
    check_network(config)
    metadata = describe_run(config, splits, train_data, test_data, pretrained_preprocessing)
    _require_equal_runs(metadata)

    # Train.
    is_first = distributed.is_process_zero()
    workdir = Path(config.workdir)
    tensorboard = TensorBoardWriter(workdir / "tensorboard" if config.tensorboard and is_first else None, logger.note)
    profiler = StepProfiler(workdir / "profile" if config.profile and is_first else None)
    with tensorboard:
        folder = distributed.run_on_process_zero(lambda: prepare_folder(metadata, lock, logger.note))
        folder = folder or RunDir(workdir)
        with CheckpointStore(folder, logger.note) as checkpoints, profiler, PreemptionHandler() as preemption:
            output = RunOutput(folder, checkpoints, logger, tensorboard, profiler)
            with oom_as_user_error(config):
                pipeline = InputPipeline(config, train_data, test_data)
                logger.steps_per_epoch = pipeline.train.steps_per_epoch
                logger.detail(pipeline.description)
                steps = _compile_steps(metadata, pipeline, checkpoints, cache_executables, logger)
            has_steps_left = steps.has_steps_left
            with steps, distributed.exit_on_peer_failure(), oom_as_user_error(config):
                session = Session(config, pipeline, steps, output, preemption)
                progress = init_or_restore(session, weights, train_data.class_names)
                weights = None  # frees memory for the first step
                result = train(session, progress)
        del session, progress, pipeline, steps  # frees their arrays for the report
        if config.profile and is_first and has_steps_left and not profiler.written:
            logger.note("--profile wrote no trace: too few steps were left after compilation; give more --epochs")

        # Report.
        if not config.report and has_steps_left and is_first:
            _note_old_report(workdir, logger)
        if config.report or config.tensorboard:
            distributed.run_on_process_zero(lambda: _write_report(result, config, splits, output))
        elif result.test_accuracy < 0.5:  # above this accuracy, the labels cannot be shifted
            distributed.run_on_process_zero(lambda: _warn_label_shift(result, test_data, logger))
    return result


def _require_equal_runs(metadata: RunMetadata) -> None:
    """Raises UserError, in every process, if the processes have different options or data."""
    options = {name: value for name, value in metadata.config.to_json().items() if name not in PER_PROCESS_OPTIONS}
    data = [metadata.data[name] for name in ("train_fingerprint", "test_fingerprint", "streamed")]
    distributed.require_equal_across_processes(data=data, **options)


def _compile_steps(
    metadata: RunMetadata,
    pipeline: InputPipeline,
    checkpoints: CheckpointStore,
    cache_executables: bool,
    logger: ProgressLogger,
) -> CompiledSteps:
    """Returns the compiled functions. Waits until the training step is compiled if there are steps left."""
    saved_steps = [step for step, _ in checkpoints.available_steps()]
    total_steps = metadata.config.epochs * pipeline.train.steps_per_epoch
    has_steps_left = max(saved_steps, default=0) < total_steps
    cache = open_executable_cache(metadata, cache_executables, pipeline.batch_shapes, pipeline.bn_batches)
    start = time.perf_counter()
    with logger.status("Compiling the training step (once, up to a minute)…"):
        steps = CompiledSteps(metadata, pipeline, cache, bool(saved_steps), has_steps_left)
        if has_steps_left:
            _ = steps.train_step
    devices = f"{jax.device_count()} {jax.devices()[0].device_kind} device(s)"
    logger.detail(f"compiled for {devices} in {time.perf_counter() - start:.1f} s")
    return steps


def _note_old_report(workdir: Path, logger: ProgressLogger) -> None:
    """Prints a note if the folder holds a report or a calibration of earlier weights."""
    if (workdir / "report" / "index.html").exists() or (workdir / CALIBRATION_FILE).exists():
        logger.note(
            f"the report and the calibration in {workdir} belong to earlier weights; `flaxresnet report "
            f"{shlex.quote(str(workdir))}` updates both"
        )


def _warn_label_shift(result: TrainResult, test: Dataset, logger: ProgressLogger) -> None:
    """Warns if the test labels appear to be shifted by one, which the report would show."""
    from flaxresnet.evaluation import label_shift_warning

    try:
        warning = label_shift_warning(result.workdir, test)
        if warning:
            logger.note(f"warning: {warning}")
    except Exception as error:  # the training succeeded, whatever happens here
        logger.note(f"the labels of the test images were not checked: {_reason(error)}")


def _write_report(result: TrainResult, config: TrainConfig, splits: Splits, output: RunOutput) -> None:
    """Writes the report and TensorBoard's images. Prints errors instead of raising them: training has succeeded."""
    from flaxresnet.report.collect import collect_report_data
    from flaxresnet.report.text import write_report

    logger = output.logger
    try:
        with logger.status("Writing the report…"):
            data = collect_report_data(result.workdir, splits)
            output.tensorboard.images("mistakes", data.named_mistakes(), result.history[-1]["step"])
            if config.report:
                data.calibration_report.calibration.write(result.workdir)
                path = write_report(result.workdir, data)
        if data.result.warning:
            logger.note(f"warning: {data.result.warning}")
        if config.report:
            logger.note(f"report: {path}")
    except Exception as error:
        if config.report:
            command = f"flaxresnet report {shlex.quote(str(result.workdir))}"
            logger.note(f"could not write the report ({_reason(error)}); `{command}` tries again")
        else:
            logger.note(f"could not write TensorBoard's images of mistakes ({_reason(error)})")


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
