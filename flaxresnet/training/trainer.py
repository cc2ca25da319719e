"""The training loop over epochs and steps. Its functions write files and print; the compiled steps are pure."""

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from flaxresnet.config.train_config import TrainConfig
from flaxresnet.data.loader import Batch
from flaxresnet.runs.checkpoint_store import CheckpointStore
from flaxresnet.runs.run_dir import RunDir
from flaxresnet.runtime import distributed
from flaxresnet.runtime.errors import TrainingInterrupted, UserError
from flaxresnet.runtime.malloc_tuning import malloc_trim
from flaxresnet.training.compiled_steps import CompiledSteps
from flaxresnet.training.finetuning import describe_frozen, describe_start, load_pretrained
from flaxresnet.training.input_pipeline import InputPipeline
from flaxresnet.training.metrics import NO_STEP, Metrics
from flaxresnet.training.preemption import PreemptionHandler
from flaxresnet.training.profiler import StepProfiler
from flaxresnet.training.progress import ProgressLogger
from flaxresnet.training.tensorboard import TensorBoardWriter
from flaxresnet.training.train_state import TrainState
from flaxresnet.weights.pretrained_weights import PretrainedWeights

STEPS_IN_FLIGHT = 2  # steps dispatched ahead of the one that the host reads: the device stays busy
READ_INTERVAL = 0.2  # seconds between two readings of the metrics
READ_STEPS = 10  # steps between two readings with several processes, which must detect an error at the same step
SIGNAL_GRACE = 1.0  # seconds within which all processes of a group receive a signal


@dataclass(frozen=True)
class TrainResult:
    """A finished training run.

    Attributes:
      workdir: the run's folder.
      history: the rows of `metrics.jsonl`, one per epoch.
      test_loss: mean cross-entropy over all test images after the last epoch, in nats.
      test_accuracy: fraction of test images that are classified correctly after the last epoch, in [0, 1].
    """

    workdir: Path
    history: list[dict[str, Any]]

    @property
    def test_loss(self) -> float:
        return self.history[-1]["test_loss"]

    @property
    def test_accuracy(self) -> float:
        return self.history[-1]["test_accuracy"]


@dataclass(frozen=True)
class RunOutput:
    """Everything that a training run writes to.

    Attributes:
      folder: receives `config.json` and `metrics.jsonl`.
      checkpoints: stores checkpoints after epochs and within them.
      logger: prints to the terminal.
      tensorboard: writes TensorBoard's event file.
      profiler: writes a trace of a few steps.
    """

    folder: RunDir
    checkpoints: CheckpointStore
    logger: ProgressLogger
    tensorboard: TensorBoardWriter
    profiler: StepProfiler


@dataclass(frozen=True)
class Session:
    """The objects of one training run that the functions below share."""

    config: TrainConfig
    pipeline: InputPipeline
    steps: CompiledSteps
    output: RunOutput
    preemption: PreemptionHandler


@dataclass(frozen=True)
class Progress:
    """How far a run has trained.

    Attributes:
      state: the training state after the last finished step.
      metrics: sums over the current epoch so far.
      history: rows of the finished epochs.
    """

    state: TrainState
    metrics: Metrics
    history: list[dict[str, Any]]


def init_or_restore(session: Session, weights: PretrainedWeights | None, class_names: tuple[str, ...]) -> Progress:
    """Returns the progress of the newest checkpoint, or an initial state with the given weights.

    Args:
      session: the run.
      weights: the pretrained weights of an initial state; None for random weights.
      class_names: the class names of the training data, in the order of their labels.

    Raises:
      UserError: no checkpoint is intact, or the weights do not fit the network.
    """
    config = session.config
    steps = session.steps
    output = session.output
    logger = output.logger

    if steps.resuming:
        items, sums, history = output.checkpoints.restore(steps.shapes.items, vars(steps.zero_metrics))
        state = steps.shapes.restored(items)
        metrics = Metrics(**sums)
        logger.note(_resume_message(session, int(state.step), _epochs_done(history)))
    else:
        history = []
        state = steps.create()
        metrics = steps.zero_metrics
        if weights is not None:
            state, with_head = load_pretrained(state, weights, class_names)
            logger.note(describe_start(config, weights, with_head, class_names))

    if config.frozen:
        logger.note(describe_frozen(state.params, config.frozen))
    if config.resolved_recipe.freeze_bn_stats:
        logger.note("batch norm keeps the statistics of the weights (--freeze-bn-stats)")
    if distributed.is_process_zero():
        damaged = output.folder.write_metrics(history)
        if damaged:
            logger.note(f"warning: metrics.jsonl had damaged lines; the original file is {damaged}")
    return Progress(state, metrics, history)


def _epochs_done(history: list[dict[str, Any]]) -> int:
    return history[-1]["epoch"] if history else 0


def _resume_message(session: Session, step: int, epochs: int) -> str:
    steps_per_epoch = session.pipeline.train.steps_per_epoch
    path = session.output.folder.path
    steps_in_epoch = step - epochs * steps_per_epoch
    if steps_in_epoch:
        return f"resuming {path} in epoch {epochs + 1}, after step {steps_in_epoch} of {steps_per_epoch}"
    if epochs < session.config.epochs:
        return f"resuming {path} after epoch {epochs} of {session.config.epochs}"
    return f"{path} has trained {epochs} epochs; nothing left for --epochs {session.config.epochs}"


def train(session: Session, progress: Progress) -> TrainResult:
    """Trains the remaining epochs, and writes a row of metrics and a checkpoint after each.

    Raises:
      UserError: a loss or a gradient is not finite.
      TrainingInterrupted: a signal stopped training; the state is saved.
    """
    config = session.config
    steps = session.steps
    output = session.output
    loader = session.pipeline.train
    state = progress.state
    metrics = progress.metrics
    history = list(progress.history)

    with closing(loader.train(config.seed, int(state.step))) as batches:
        for epoch in range(_epochs_done(history) + 1, config.epochs + 1):
            # Train.
            start = time.perf_counter()
            steps_left = epoch * loader.steps_per_epoch - int(state.step)
            state, metrics = train_epoch(session, epoch, state, metrics, batches)
            train_loss, train_accuracy = read_metrics(session, metrics)
            trained = time.perf_counter()

            # Wait for compilation in the first epoch. No time in the metrics includes the wait.
            with output.logger.status("Compiling the evaluation (once)…", terminal_only=True):
                measure = steps.measure
                eval_step = steps.eval_step
            compiled = time.perf_counter()

            # Measure the statistics of batch norm, and evaluate with them.
            with output.logger.status("Evaluating…", terminal_only=True):
                eval_stats = state.batch_stats
                if measure is not None:
                    variables = {"params": state.eval_params, "batch_stats": eval_stats}
                    eval_stats = jax.block_until_ready(measure(variables, state.step))
                measured = time.perf_counter()
                test_metrics = evaluate(session, state, metrics, eval_stats, eval_step)
                test_loss, test_accuracy = test_metrics.means()
            if not math.isfinite(test_loss):  # only the last step's update was not finite
                raise _non_finite_error(session, int(state.step))
            evaluated = time.perf_counter()

            # Write.
            row = {
                "epoch": epoch,
                "step": int(state.step),
                "train_loss": train_loss,
                "train_accuracy": train_accuracy,
                "test_loss": test_loss,
                "test_accuracy": test_accuracy,
                "learning_rate": float(steps.schedule(int(state.step) - 1)),
                "seconds": trained - start,
                "images_per_second": steps_left * config.batch_size / (trained - start),
                "precise_bn_seconds": measured - compiled,
                "evaluate_seconds": evaluated - measured,
            }
            history.append(row)
            output.checkpoints.save_epoch(int(state.step), state.items, eval_stats, row)
            if distributed.is_process_zero():
                output.folder.append_metrics(row)
            output.logger.row(row)
            output.tensorboard.row(row)
            metrics = steps.zero_metrics
            malloc_trim()  # the next step may not reuse the memory of the evaluation
    output.checkpoints.finish()
    return TrainResult(output.folder.path, history)


def train_epoch(
    session: Session, epoch: int, state: TrainState, metrics: Metrics, batches: Iterator[Batch]
) -> tuple[TrainState, Metrics]:
    """Trains the remaining steps of an epoch. Saves a checkpoint every `--checkpoint-steps`, and if a signal arrives.

    Returns:
      The state, and the metrics over all steps of the epoch.
    """
    steps = session.steps
    steps_per_epoch = session.pipeline.train.steps_per_epoch
    first_step = (epoch - 1) * steps_per_epoch
    done_before = int(state.step) - first_step
    train_step = steps.train_step
    in_flight = deque[tuple[int, Metrics]]()
    next_read = 0.0
    start = time.perf_counter()
    session.preemption.begin()

    with session.output.logger.epoch(epoch, done_before) as update:
        for done in range(done_before + 1, steps_per_epoch + 1):
            step = first_step + done
            batch = next_batch(session, batches, state, metrics)
            session.output.profiler.before_step(metrics, steps.all_compiled)
            state, metrics = train_step(state, metrics, batch)

            in_flight.append((done, metrics))
            if len(in_flight) > STEPS_IN_FLIGHT:
                finished, finished_metrics = in_flight.popleft()
                if _should_read(finished, next_read):
                    update(finished, *read_metrics(session, finished_metrics))
                    steps.compile_eval_async()
                    seconds_per_step = (time.perf_counter() - start) / (finished - done_before)
                    next_read = finished + READ_INTERVAL / seconds_per_step

            stop_if_preempted(session, state, metrics)
            if step % session.config.checkpoint_steps == 0:
                save_mid_epoch(session, state, metrics)
        session.output.profiler.end(metrics)
        jax.block_until_ready(metrics)
    return state, metrics


def _should_read(step: int, next_read: float) -> bool:
    """Returns whether to read a step's metrics. Reading waits for the device, so it does not follow each short step."""
    if distributed.is_multiprocess():
        return step % READ_STEPS == 0
    return step >= next_read


def next_batch(session: Session, batches: Iterator[Batch], state: TrainState, metrics: Metrics) -> Batch:
    """Returns the next training batch. If loading fails because of a signal, saves and stops as for that signal."""
    try:
        return next(batches)
    except UserError:
        raise
    except Exception:
        # A signal may have reached the worker processes before this process. Several training processes cannot wait,
        # because all of them have to call `stop_if_preempted` equally often.
        if not distributed.is_multiprocess():
            time.sleep(SIGNAL_GRACE)
            stop_if_preempted(session, state, metrics)
        raise


def evaluate(session: Session, state: TrainState, metrics: Metrics, eval_stats: Any, eval_step: Any) -> Metrics:
    """Returns the metrics over all test images, with the given statistics of batch norm.

    `metrics` are the training metrics of the epoch. If a signal stops the evaluation, they are saved with the state.
    """
    variables = {"params": state.eval_params, "batch_stats": eval_stats}
    test_metrics = session.steps.zero_metrics
    for batch in session.pipeline.test.eval_batches():
        stop_if_preempted(session, state, metrics)
        test_metrics = eval_step(variables, test_metrics, batch)
    return test_metrics


def stop_if_preempted(session: Session, state: TrainState, metrics: Metrics) -> None:
    """Saves the state and raises `TrainingInterrupted` if a signal asks to stop."""
    signal = session.preemption.wanted()
    if not signal:
        return
    output = session.output
    output.logger.note(f"{signal.name}: saving the state…")
    start = time.perf_counter()
    save_mid_epoch(session, state, metrics)
    output.checkpoints.wait()
    seconds = time.perf_counter() - start
    raise TrainingInterrupted(
        signal,
        f"stopped by {signal.name} after step {int(state.step)}, saved in {output.folder.path} in {seconds:.1f} s; "
        "repeat the command to resume",
    )


def save_mid_epoch(session: Session, state: TrainState, metrics: Metrics) -> None:
    """Starts writing a checkpoint within an epoch. Raises UserError if the state is not finite."""
    read_metrics(session, metrics)
    # A gradient that is not finite affects the weights at once, but the loss only at the next step.
    if not session.steps.all_finite(state.params):
        raise _non_finite_error(session, int(state.step))
    session.output.checkpoints.save_mid_epoch(int(state.step), state.items, vars(metrics))


def read_metrics(session: Session, metrics: Metrics) -> tuple[float, float]:
    """Returns the mean loss and the accuracy. Waits for the device. Raises UserError if a loss was not finite."""
    step = int(metrics.first_non_finite_step)
    if step != NO_STEP:
        raise _non_finite_error(session, step)
    return metrics.means()


def _non_finite_error(session: Session, step: int) -> UserError:
    saved_step = session.output.checkpoints.step()
    saved = f"the checkpoint after step {saved_step} is kept" if saved_step else "no checkpoint was written"
    return UserError(
        f"the loss or its gradient was not finite at step {step} ({saved}); try a --learning-rate below "
        f"{session.config.learning_rate}, and inspect the data with `flaxresnet check-data`"
    )
