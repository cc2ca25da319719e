"""The loop over epochs and steps, and the only place with side effects."""

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import optax

from flaxresnet.data.loader import Batch
from flaxresnet.runs.checkpoint_store import CheckpointStore
from flaxresnet.runs.metadata import RunMetadata
from flaxresnet.runs.run_dir import RunDir
from flaxresnet.runtime import distributed
from flaxresnet.runtime.errors import TrainingInterrupted, UserError
from flaxresnet.runtime.malloc_tuning import malloc_trim
from flaxresnet.training.compiled_steps import CompiledSteps
from flaxresnet.training.input_pipeline import InputPipeline
from flaxresnet.training.metrics import NO_STEP, Metrics, all_finite
from flaxresnet.training.optimizer import make_optimizer
from flaxresnet.training.preemption import PreemptionHandler
from flaxresnet.training.pretrained import describe_frozen, describe_start, load_pretrained
from flaxresnet.training.profiler import StepProfiler
from flaxresnet.training.progress import ProgressLogger
from flaxresnet.training.schedule import augmentation_schedule, make_schedule, steps_for
from flaxresnet.training.step import EvalStep
from flaxresnet.training.tensorboard import TensorBoardWriter
from flaxresnet.training.train_state import TrainState
from flaxresnet.weights.pretrained_weights import PretrainedWeights

# Steps that may be under way before the host reads figures: enough to keep the device busy, few enough to be current.
STEPS_AHEAD = 2
READ_EVERY = 0.2  # seconds between two readings
READ_TOGETHER = 10  # steps between two readings of many processes, which have to find the same mistake at the same step
SIGNALS_APART = 1.0  # seconds in which all processes of a group get a signal


@dataclass(frozen=True)
class TrainResult:
    """A finished training run.

    Attributes:
      workdir: its folder.
      history: the rows of `metrics.jsonl`, one an epoch.
      test_loss, test_accuracy: of the last epoch, on all test images.
    """

    workdir: Path
    history: list[dict[str, Any]]

    @property
    def test_loss(self) -> float:
        return self.history[-1]["test_loss"]

    @property
    def test_accuracy(self) -> float:
        return self.history[-1]["test_accuracy"]


class Trainer:
    """One run's compiled functions and the loop over epochs."""

    def __init__(
        self,
        info: RunMetadata,
        feed: InputPipeline,
        folder: RunDir,
        saved: CheckpointStore,
        reporter: ProgressLogger,
        events: TensorBoardWriter,
        profile: StepProfiler,
        interruption: PreemptionHandler,
        weights: PretrainedWeights | None = None,
        keep_programs: bool = False,
    ) -> None:
        self.config, self.feed, self.folder, self.saved, self.reporter = info.config, feed, folder, saved, reporter
        self.events, self.profile, self.interruption = events, profile, interruption
        self.weights, self.class_names = weights, info.class_names
        self.train, self.test = feed.train, feed.test
        reporter.note(feed.words)
        reporter.steps_per_epoch = self.train.steps_per_epoch

        self.schedule = make_schedule(self.config, self.train.steps_per_epoch)
        measures = self.config.measures_statistics
        self.sample = self.train.bn_batches(self.config.precise_bn_images, self.config.seed) if measures else None
        self.state: TrainState
        steps = [step for step, _ in saved.available_steps()]
        self.resuming = bool(steps)
        self.has_steps_left = max(steps, default=0) < self.config.epochs * self.train.steps_per_epoch
        self.empty_metrics = jax.device_put(Metrics.zero(), feed.replicated)
        self.all_finite = jax.jit(all_finite, out_shardings=feed.replicated)
        self.programs = self._compile(info, keep_programs)

    def _compile(self, info: RunMetadata, keep: bool) -> CompiledSteps:
        """The functions of the loop; those that the first step needs are compiled."""
        start = time.perf_counter()
        programs = CompiledSteps(
            info,
            self._optimizer(),
            augmentation_schedule(self.config, self.train.steps_per_epoch),
            self.test.shapes(),
            self.sample,
            self.feed.replicated,
            fresh=not self.resuming,
            has_steps_left=self.has_steps_left,
            zero1=self.config.shard_optimizer,
            keep=keep,
        )
        if not self.has_steps_left:
            return programs
        _ = programs.train_step  # waits for it
        devices = f"{jax.device_count()} {jax.devices()[0].device_kind} device(s)"
        self.reporter.note(f"compiled for {devices} in {time.perf_counter() - start:.1f} s")
        if self.sample is not None:
            measured = self.sample.shape[0] * self.sample.shape[1]
            self.reporter.note(
                f"seconds of an epoch: training + measuring batch norm's statistics on {measured} images"
            )
        return programs

    def _optimizer(self) -> optax.GradientTransformation:
        recipe = self.config.resolved_recipe
        head_steps = steps_for("freeze_backbone_epochs", recipe.freeze_backbone_epochs, self.train.steps_per_epoch)
        kind = recipe.optimizer, recipe.weight_decay, recipe.clip_grad
        return make_optimizer(self.schedule, recipe.layer_decay, head_steps, *kind)

    def run(self) -> TrainResult:
        """Trains the epochs that are left, with a row and a checkpoint for each."""
        rows = self._init_or_restore()
        done = rows[-1]["epoch"] if rows else 0
        with closing(self.train.train(self.config.seed, int(self.state.step))) as batches:
            for epoch in range(done + 1, self.config.epochs + 1):
                row, eval_stats = self._epoch(epoch, batches)
                rows.append(row)
                self.saved.save_epoch(int(self.state.step), self.state.items, eval_stats, row)
                if distributed.is_process_zero():
                    self.folder.append_metrics(row)
                self.reporter.row(row)
                self.events.row(row)
                self.metrics = self.empty_metrics
                malloc_trim()  # what an epoch's end took, a step may not find a use for
        self.saved.finish()
        return TrainResult(self.folder.path, rows)

    def _init_or_restore(self) -> list[dict[str, Any]]:
        """Fills the state, from the newest checkpoint or afresh; returns the rows of the epochs that it has seen."""
        rows, self.metrics = list[dict[str, Any]](), self.empty_metrics
        if self.resuming:
            items, sums, rows = self.saved.restore(self.programs.shapes.items, vars(self.empty_metrics))
            self.state, self.metrics = self.programs.shapes.restored(items), Metrics(**sums)
        else:
            self.state = self.programs.create()
            if self.weights:
                self.state, with_head = load_pretrained(self.state, self.weights, self.class_names)
                self.reporter.note(describe_start(self.config, self.weights, with_head, self.class_names))
                self.weights = None  # their memory is for the first step
        if step := int(self.state.step):
            self.reporter.note(self._resume_message(step, rows[-1]["epoch"] if rows else 0))
        if self.config.frozen:
            self.reporter.note(describe_frozen(self.state.params, self.config.frozen))
        if self.config.resolved_recipe.freeze_bn_stats:
            self.reporter.note("batch norm's statistics stay as the weights have them")
        if distributed.is_process_zero() and (kept := self.folder.write_metrics(rows)):
            self.reporter.note(f"metrics.jsonl had lines that are no epoch's figures; as it was, it is {kept}")
        return rows

    def _resume_message(self, step: int, epochs: int) -> str:
        within, where = step - epochs * self.train.steps_per_epoch, self.folder.path
        if within:
            steps = f"{within} of {self.train.steps_per_epoch} steps of epoch {epochs + 1}"
            return f"{steps} are done in {where}; going on with the next"
        more = f"going on to epoch {self.config.epochs}"
        return f"epoch {epochs} is done in {where}; " + (
            more if epochs < self.config.epochs else f"nothing left for --epochs {self.config.epochs}"
        )

    def _epoch(self, epoch: int, batches: Iterator[Batch]) -> tuple[dict[str, Any], Any]:
        """Trains and evaluates for one epoch: its row, and the statistics that it was evaluated with."""
        start, steps = time.perf_counter(), epoch * self.train.steps_per_epoch - int(self.state.step)
        train_loss, train_accuracy = self._train(epoch, steps, batches)
        trained = time.perf_counter()
        # In the first epoch this waits for compilation, which is no part of its figures.
        measure, eval_step = self.programs.measure, self.programs.eval_step
        ready = time.perf_counter()
        eval_stats = self.state.batch_stats
        if measure is not None:
            variables = {"params": self.state.eval_params, "batch_stats": eval_stats}
            eval_stats = jax.block_until_ready(measure(variables, self.state.step))
        measured = time.perf_counter()
        test_loss, test_accuracy = self._evaluate(eval_step, eval_stats)
        if not math.isfinite(test_loss):  # the last step's update was not finite, which no later step has seen
            raise self._non_finite_error(int(self.state.step))
        row: dict[str, Any] = {
            "epoch": epoch,
            "step": int(self.state.step),
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "learning_rate": float(self.schedule(int(self.state.step) - 1)),
            "seconds": trained - start,
            "images_per_second": steps * self.config.batch_size / (trained - start),
            "precise_bn_seconds": measured - ready,
            "evaluate_seconds": time.perf_counter() - measured,
        }
        return row, eval_stats

    def _train(self, epoch: int, steps: int, batches: Iterator[Batch]) -> tuple[float, float]:
        """Trains the steps that are left of an epoch: loss and accuracy over all of it."""
        train_step = self.programs.train_step
        in_flight, next_read, start = deque[tuple[int, Metrics]](), 0.0, time.perf_counter()
        earlier = self.train.steps_per_epoch - steps
        first = (epoch - 1) * self.train.steps_per_epoch
        self.interruption.begin()
        with self.reporter.epoch(epoch, earlier) as update:
            for done in range(earlier + 1, self.train.steps_per_epoch + 1):
                batch = self._next(batches, first + done - 1)
                self.profile.before_step(self.metrics, self.programs.all_compiled)
                self.state, self.metrics = train_step(self.state, self.metrics, batch)
                in_flight.append((done, self.metrics))
                if len(in_flight) > STEPS_AHEAD:
                    over, oldest = in_flight.popleft()
                    together = distributed.is_multiprocess()
                    # Waits for that step, so not at every one where steps are short.
                    if over % READ_TOGETHER == 0 if together else over >= next_read:
                        update(over, *self._read_metrics(oldest))
                        self.programs.compile_eval_async()
                        next_read = over + READ_EVERY * (over - earlier) / (time.perf_counter() - start)
                self._stop_if_wanted(first + done)
                if (first + done) % self.config.checkpoint_steps == 0:
                    self._save()
            self.profile.end(self.metrics)
            return self._read_metrics(self.metrics)

    def _next(self, batches: Iterator[Batch], step: int) -> Batch:
        try:
            return next(batches)
        except UserError:
            raise
        except Exception:  # a worker process may have got the signal too, and sooner
            if not distributed.is_multiprocess():  # who all have to ask equally often
                time.sleep(SIGNALS_APART)
                self._stop_if_wanted(step)
            raise

    def _stop_if_wanted(self, step: int) -> None:
        """Saves the state and raises `TrainingInterrupted` where a signal said so; `step` is that of the state."""
        if wanted := self.interruption.wanted():
            self.reporter.note(f"{wanted.name}: saving what is trained so far")
            start = time.perf_counter()
            self._save()
            self.saved.wait()
            seconds = time.perf_counter() - start
            saved = f"saved in {self.folder.path} in {seconds:.1f} s; the same command goes on from there"
            raise TrainingInterrupted(wanted, f"stopped by {wanted.name} after step {step}, {saved}")

    def _save(self) -> None:
        """Starts writing the state as it is within an epoch, unless it is beyond saving."""
        self._read_metrics(self.metrics)
        # A gradient that is not finite shows in the weights at once, but in the loss only at the step after.
        if not self.all_finite(self.state.params):
            raise self._non_finite_error(int(self.state.step))
        self.saved.save_mid_epoch(int(self.state.step), self.state.items, vars(self.metrics))

    def _read_metrics(self, metrics: Metrics) -> tuple[float, float]:
        """Mean loss and accuracy, when the step is done; raises UserError where a loss was not finite."""
        if (step := int(metrics.first_non_finite_step)) != NO_STEP:
            raise self._non_finite_error(step)
        return metrics.means()

    def _non_finite_error(self, step: int) -> UserError:
        kept = self.saved.step()
        after = f"the checkpoint after step {kept} is kept" if kept else "no checkpoint had been written"
        return UserError(
            f"the loss or its gradient was not finite at step {step} ({after}); try a --learning-rate below "
            f"{self.config.learning_rate}, and look at the data with `flaxresnet check-data`"
        )

    def _evaluate(self, eval_step: EvalStep, eval_stats: Any) -> tuple[float, float]:
        variables = {"params": self.state.eval_params, "batch_stats": eval_stats}
        metrics = self.empty_metrics
        for batch in self.test.eval_batches():
            self._stop_if_wanted(int(self.state.step))
            metrics = eval_step(variables, metrics, batch)
        return metrics.means()
