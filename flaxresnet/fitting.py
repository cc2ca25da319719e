"""`fit`: a training run, from its options and its data to what is written about it."""

from collections.abc import Callable
from pathlib import Path

from flaxresnet.config.train_config import TrainConfig
from flaxresnet.data.dataset import Dataset, Splits
from flaxresnet.data.open import open_dataset
from flaxresnet.data.read_options import ReadOptions
from flaxresnet.data.sanity_checks import suspicions
from flaxresnet.runs.checkpoint_store import CheckpointStore
from flaxresnet.runs.lock import WorkdirLock
from flaxresnet.runs.metadata import check_network
from flaxresnet.runs.run_dir import RunDir
from flaxresnet.runtime import distributed
from flaxresnet.runtime.compilation_cache import use_compilation_cache
from flaxresnet.runtime.devices import warn_of_fallback
from flaxresnet.runtime.errors import UserError
from flaxresnet.runtime.malloc_tuning import disable_malloc_trim
from flaxresnet.training.input_pipeline import InputPipeline
from flaxresnet.training.oom import oom_as_user_error
from flaxresnet.training.preemption import PreemptionHandler
from flaxresnet.training.pretrained import merge_pretrained_config, resumable_run
from flaxresnet.training.profiler import StepProfiler
from flaxresnet.training.progress import ProgressLogger
from flaxresnet.training.run_setup import check_splits, describe_run, prepare_folder, resolve_image_size, set_aside
from flaxresnet.training.tensorboard import TensorBoardWriter
from flaxresnet.training.trainer import Trainer, TrainResult
from flaxresnet.weights.resolve import open_weights

# Options that the processes of a run may have of their own.
OF_A_PROCESS = ("process_id", "coordinator_address", "workers", "data", "workdir", "compilation_cache")


def fit(config: TrainConfig, *, quiet: bool = False, keep_programs: bool = False) -> TrainResult:
    """Trains a network, or goes on with the run found in `config.workdir`.

    On Linux the process keeps the memory that it frees from then on (see `runtime/malloc_tuning.py`). That makes steps
    on a CPU faster, most of all if `fit` is the first thing that uses JAX.

    Args:
      config: see `TrainConfig`; options left at None take the recipe's value.
      quiet: print nothing.
      keep_programs: on CPUs, keep compiled programs so that the next start with the same options traces nothing, and
        take those of an earlier one. Only for processes that change nothing in this package, or in those it uses,
        while they run: such a change is not seen. The command line does so, unless `--no-compilation-cache`.

    Returns:
      The run. Its folder holds `config.json`, `metrics.jsonl` and `checkpoints/`.

    Raises:
      UserError: the data, an option or the folder does not fit, or the loss stopped being finite.
    """
    config.check()
    disable_malloc_trim()
    use_compilation_cache(config.compilation_cache)
    distributed.join_processes(config.distributed, config.coordinator_address, config.num_processes, config.process_id)
    warn_of_fallback()
    reporter = ProgressLogger(quiet or not distributed.is_process_zero(), config.epochs, config.batch_size)
    with distributed.exit_watchdog(), WorkdirLock(reporter.note) as lock:
        distributed.run_on_process_zero(lambda: _lock_early(config, lock, reporter.note))
        return _fit(config, lock, reporter, keep_programs)


def _lock_early(config: TrainConfig, lock: WorkdirLock, note: Callable[[str], None]) -> None:
    """Locks the workdir before the data are read, which may take minutes. A new one is locked when it is made.

    A run of another format in the default workdir is set aside, so that training without --workdir always works.
    """
    folder = RunDir(config.workdir)
    if not folder.path.is_dir():
        return
    folder.lock(lock)
    if config.workdir == TrainConfig.workdir and folder.has_other_format():
        note(f"another version wrote the run in {folder.path}; it is kept as {set_aside(folder, lock)}")


def _fit(config: TrainConfig, lock: WorkdirLock, reporter: ProgressLogger, keep_programs: bool) -> TrainResult:
    # A run that goes on has its weights; those that it began with need not be there any more.
    begun = resumable_run(config)
    weights = open_weights(config.init) if config.init and begun is None else None
    like = begun.preprocessing if begun else weights.preprocessing if weights else None
    read_options = ReadOptions(
        image_size=resolve_image_size(config, like),
        input=config.input,
        max_corrupt_fraction=config.max_corrupt_fraction,
        crop_pct=config.resolved_recipe.crop_pct,
        processes=distributed.process_group(),
    )
    splits = open_dataset(config.data, read_options)
    for line in splits.describe():
        reporter.note(line)
    train, test = check_splits(splits, config)
    for sentence in suspicions(splits):
        reporter.note(f"warning: {sentence}")
    if config.init is None and (config.freeze or config.resolved_recipe.freeze_backbone_epochs):
        reporter.note("without --init the parts that do not learn keep weights that have learned nothing")
    if begun:
        config = merge_pretrained_config(config, begun.config.network)
    elif weights:
        config = merge_pretrained_config(config, weights.network, weights.assumed)
    config = config.resolve()
    check_network(config)

    info = describe_run(config, splits, train, test, like)
    data = [info.data[name] for name in ("train_fingerprint", "test_fingerprint", "streamed")]
    options = {name: value for name, value in config.to_json().items() if name not in OF_A_PROCESS}
    distributed.require_equal_across_processes(data=data, **options)
    workdir, first = Path(config.workdir), distributed.is_process_zero()
    events = TensorBoardWriter(workdir / "tensorboard" if config.tensorboard and first else None, reporter.note)
    profile = StepProfiler(workdir / "profile" if config.profile and first else None)
    with events:
        folder = distributed.run_on_process_zero(lambda: prepare_folder(info, lock, reporter.note)) or RunDir(workdir)
        with CheckpointStore(folder, reporter.note) as saved, profile, PreemptionHandler() as interruption:
            with oom_as_user_error(config):
                feed = InputPipeline(config, train, test)
                trainer = Trainer(
                    info, feed, folder, saved, reporter, events, profile, interruption, weights, keep_programs
                )
            del weights  # their memory is for the first step
            with trainer.programs, distributed.exit_on_peer_failure(), oom_as_user_error(config):
                run, trained = trainer.run(), trainer.has_steps_left
        del trainer, feed  # and their arrays
        if config.profile and first and trained and not profile.written:
            reporter.note("--profile: no trace, for too few steps were left when all was compiled; give more --epochs")
        if config.report:
            reporter.note("looking back on the run, for its report")
        if config.report or config.tensorboard:
            distributed.run_on_process_zero(lambda: _write_report(run, config, splits, reporter, events))
        elif run.test_accuracy < 0.5:  # where more is right, labels cannot be wrong in one way
            distributed.run_on_process_zero(lambda: _warn_label_shift(run, test, reporter))
    return run


def _warn_label_shift(run: TrainResult, test: Dataset, reporter: ProgressLogger) -> None:
    """Says where the answers tell that the test images' labels are shifted; a report would have said it."""
    from flaxresnet.evaluation import label_shift_warning

    try:
        if warning := label_shift_warning(run.workdir, test):
            reporter.note(f"warning: {warning}")
    except Exception as error:  # whatever it is, the run is whole without it
        reason = error if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        reporter.note(f"the test images' labels were not looked at: {reason}")


def _write_report(
    run: TrainResult, config: TrainConfig, splits: Splits, reporter: ProgressLogger, events: TensorBoardWriter
) -> None:
    """What is written about a finished run; the run is whole without it, so that what goes wrong here is only said."""
    from flaxresnet.report.collect import collect_report_data
    from flaxresnet.report.text import write_report

    try:
        found = collect_report_data(run.workdir, splits)
        events.pictures("mistakes", found.named_mistakes(), run.history[-1]["step"])
        if found.result.warning:
            reporter.note(f"warning: {found.result.warning}")
        if config.report:
            found.assessment.calibration.write(run.workdir)
            reporter.note(f"report: {write_report(run.workdir, found)}")
    except Exception as error:  # whatever it is, what was trained is worth more
        reason = error if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        reporter.note(f"there is no report: {reason}; `flaxresnet report {run.workdir}` tries again")
