"""`fit`: the training run, and the only place with side effects."""

import math
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flaxresnet.compilation_cache import use_compilation_cache
from flaxresnet.config import PARTS, TrainConfig
from flaxresnet.data.dataset import Dataset, Splits, open_dataset
from flaxresnet.data.loader import DeviceLoader
from flaxresnet.errors import UserError
from flaxresnet.interop.sources import open_weights
from flaxresnet.interop.weights import Weights
from flaxresnet.memory import keep_freed_memory, return_freed_memory
from flaxresnet.training.checkpoint import Checkpoints
from flaxresnet.training.metrics import NO_STEP, Metrics
from flaxresnet.training.optimizer import make_augmentation, make_optimizer, make_schedule
from flaxresnet.training.preparation import (
    check_network,
    check_splits,
    describe_run,
    image_size_for,
    prepare_folder,
)
from flaxresnet.training.pretrained import adopt, begin_with, describe_frozen, describe_start, stored_start
from flaxresnet.training.profile import Profile
from flaxresnet.training.programs import Programs
from flaxresnet.training.progress import Reporter
from flaxresnet.training.run_folder import RunFolder, RunInfo
from flaxresnet.training.step import EvalStep
from flaxresnet.training.tensorboard import EventFile

# Steps that may be under way before the host reads figures: enough to keep the device busy, few enough to be current.
STEPS_AHEAD = 2
READ_EVERY = 0.2  # seconds between two readings


@dataclass(frozen=True)
class Run:
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


def fit(config: TrainConfig, *, verbose: bool = True) -> Run:
    """Trains a network, or goes on with the run found in `config.workdir`.

    On Linux the process keeps the memory that it frees from then on (see `flaxresnet.memory`), which makes steps on a
    CPU faster, most of all where `fit` is the first thing that uses JAX.

    Args:
      config: see `TrainConfig`; options left at None take the recipe's value.
      verbose: print what is loaded, a progress bar and a line an epoch.

    Returns:
      The run. Its folder holds `config.json`, `metrics.jsonl` and `checkpoints/`.

    Raises:
      UserError: the data, an option or the folder does not fit, or the loss stopped being finite.
    """
    config.check()
    keep_freed_memory()
    use_compilation_cache(config.compilation_cache)
    reporter = Reporter(verbose, config.epochs, config.batch_size)
    # A run that goes on has its weights; those that it began with need not be there any more.
    begun = stored_start(config)
    weights = open_weights(config.init) if config.init and begun is None else None
    like = begun.preprocessing if begun else weights.preprocessing if weights else None
    splits = open_dataset(config.data, image_size_for(config, like), config.skip_bad)
    for line in splits.describe():
        reporter.note(line)
    train, test = check_splits(splits, config)
    if config.init is None and (config.freeze or config.settings.head_epochs):
        reporter.note("without --init the parts that do not learn keep weights that have learned nothing")
    if begun:
        config = adopt(config, begun.config.network)
    elif weights:
        config = adopt(config, weights.network, weights.assumed)
    config = config.resolve()
    check_network(config)

    info = describe_run(config, splits, train, test, like)
    workdir = Path(config.workdir)
    events = EventFile(workdir / "tensorboard" if config.tensorboard else None, reporter.note)
    profile = Profile(workdir / "profile" if config.profile else None)
    folder = prepare_folder(info, reporter.note)
    with events:
        with Checkpoints(folder.checkpoints) as checkpoints, profile:
            trainer = Trainer(info, train, test, folder, checkpoints, reporter, events, profile, weights)
            del weights  # their memory is for the first step
            with trainer.programs:
                run = trainer.run()
        del trainer  # and its arrays
        if config.profile and not profile.written:
            reporter.note("--profile: no trace, for too few steps were left when all was compiled; give more --epochs")
        if config.report or config.tensorboard:
            _look_back(run, config, splits, reporter, events)
    return run


def _look_back(run: Run, config: TrainConfig, splits: Splits, reporter: Reporter, events: EventFile) -> None:
    """What is written about a finished run; the run is whole without it, so that what goes wrong here is only said."""
    from flaxresnet.inspection.report import investigate, write_report

    try:
        found = investigate(run.workdir, splits)
        events.pictures("mistakes", found.named_mistakes(), run.history[-1]["step"])
        if config.report:
            found.assessment.trust.write(run.workdir)
            reporter.note(f"report: {write_report(run.workdir, found)}")
    except Exception as error:  # whatever it is, what was trained is worth more
        reason = error if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        reporter.note(f"there is no report: {reason}; `python -m flaxresnet report {run.workdir}` tries again")


class Trainer:
    """One run's compiled functions and the loop over epochs."""

    def __init__(
        self,
        info: RunInfo,
        train: Dataset,
        test: Dataset,
        folder: RunFolder,
        checkpoints: Checkpoints,
        reporter: Reporter,
        events: EventFile,
        profile: Profile,
        weights: Weights | None = None,
    ) -> None:
        self.config, self.folder, self.checkpoints, self.reporter = info.config, folder, checkpoints, reporter
        self.events, self.profile = events, profile
        self.weights, self.class_names = weights, info.class_names
        mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
        self.replicated = NamedSharding(mesh, PartitionSpec())
        split = NamedSharding(mesh, PartitionSpec("data"))
        self.train = DeviceLoader(train, self.config.batch_size, self.replicated, split)
        self.test = DeviceLoader(test, self.config.batch_size, self.replicated, split)
        reporter.steps_per_epoch = self.train.steps_per_epoch

        self.schedule = make_schedule(self.config, self.train.steps_per_epoch)
        # Where all of the network but its last layer is frozen there are no statistics to measure.
        measured = self.config.recalibrate and self.config.frozen != PARTS
        self.sample = self.train.sample(self.config.recalibrate, self.config.seed) if measured else None
        self.zero = jax.device_put(Metrics.zero(), self.replicated)
        self.programs = self._compile(info)

    def _compile(self, info: RunInfo) -> Programs:
        """The functions of the loop; those that the first step needs are compiled."""
        start = time.perf_counter()
        programs = Programs(
            info,
            self._optimizer(),
            make_augmentation(self.config, self.train.steps_per_epoch),
            next(self.test.in_order()),
            self.sample,
            self.replicated,
            fresh=self.checkpoints.latest_step() is None,
        )
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
        settings = self.config.settings
        head_steps = round(settings.head_epochs * self.train.steps_per_epoch)
        kind = settings.optimizer, settings.weight_decay, settings.clip
        return make_optimizer(self.schedule, settings.layer_decay, head_steps, *kind)

    def run(self) -> Run:
        """Trains the epochs that are left, with a row and a checkpoint for each."""
        rows = self._begin()
        done = rows[-1]["epoch"] if rows else 0
        for epoch in range(done + 1, self.config.epochs + 1):
            row, eval_stats = self._epoch(epoch)
            rows.append(row)
            self.checkpoints.save(self.state, eval_stats, row)
            self.folder.append_metrics(row)
            self.reporter.row(row)
            self.events.row(row)
            return_freed_memory()  # what an epoch's end took, a step may not find a use for
        return Run(self.folder.path, rows)

    def _begin(self) -> list[dict[str, Any]]:
        """Fills the state, from the latest checkpoint or afresh; returns the rows of the epochs that it has seen."""
        rows: list[dict[str, Any]] = []
        if self.checkpoints.latest_step() is None:
            self.state = self.programs.create()
            if self.weights:
                self.state, with_head = begin_with(self.state, self.weights, self.class_names)
                self.reporter.note(describe_start(self.config, self.weights, with_head, self.class_names))
                self.weights = None  # their memory is for the first step
        else:
            # The checkpoint has its row too, so that the two agree wherever the run was cut off.
            self.state, last = self.checkpoints.restore(self.programs.shapes)
            rows = [*(row for row in self.folder.read_metrics() if row["epoch"] < last["epoch"]), last]
            more = last["epoch"] < self.config.epochs
            what = (
                f"going on to epoch {self.config.epochs}" if more else f"nothing left for --epochs {self.config.epochs}"
            )
            self.reporter.note(f"epoch {last['epoch']} is done in {self.folder.path}; {what}")
        if self.config.frozen:
            self.reporter.note(describe_frozen(self.state.params, self.config.frozen))
        self.folder.write_metrics(rows)
        return rows

    def _epoch(self, epoch: int) -> tuple[dict[str, Any], Any]:
        """Trains and evaluates for one epoch: its row, and the statistics that it was evaluated with."""
        start = time.perf_counter()
        train_loss, train_accuracy = self._train(epoch)
        trained = time.perf_counter()
        # In the first epoch this waits for compilation, which is no part of its figures.
        measure, eval_step = self.programs.measure, self.programs.eval_step
        ready = time.perf_counter()
        eval_stats = self.state.batch_stats
        if measure is not None:
            eval_stats = jax.block_until_ready(measure({"params": self.state.weights, "batch_stats": eval_stats}))
        measured = time.perf_counter()
        test_loss, test_accuracy = self._evaluate(eval_step, eval_stats)
        if not math.isfinite(test_loss):  # the last step's update was not finite, which no later step has seen
            raise self._diverged(int(self.state.step))
        images = self.train.steps_per_epoch * self.config.batch_size
        row: dict[str, Any] = {
            "epoch": epoch,
            "step": int(self.state.step),
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "learning_rate": float(self.schedule(int(self.state.step) - 1)),
            "seconds": trained - start,
            "images_per_second": images / (trained - start),
            "recalibrate_seconds": measured - ready,
            "evaluate_seconds": time.perf_counter() - measured,
        }
        return row, eval_stats

    def _train(self, epoch: int) -> tuple[float, float]:
        train_step, metrics = self.programs.train_step, self.zero
        under_way, next_read, start = deque[tuple[int, Metrics]](), 0.0, time.perf_counter()
        with self.reporter.epoch(epoch) as update:
            for done, batch in enumerate(self.train.epoch(self.config.seed, epoch), start=1):
                self.profile.before_step(metrics, self.programs.are_compiled)
                self.state, metrics = train_step(self.state, metrics, batch)
                under_way.append((done, metrics))
                if len(under_way) > STEPS_AHEAD:
                    done, oldest = under_way.popleft()
                    if done >= next_read:  # waits for that step, so not at every one where steps are short
                        update(done, *self._checked(oldest))
                        self.programs.begin_rest()
                        next_read = done + READ_EVERY * done / (time.perf_counter() - start)
            self.profile.end(metrics)
            return self._checked(metrics)

    def _checked(self, metrics: Metrics) -> tuple[float, float]:
        """Mean loss and accuracy, when the step is done; raises UserError where a loss was not finite."""
        if (step := int(metrics.bad_step)) != NO_STEP:
            raise self._diverged(step)
        return metrics.means()

    def _diverged(self, step: int) -> UserError:
        kept = self.checkpoints.latest_step()
        after = f"the checkpoint after step {kept} is kept" if kept else "no checkpoint had been written"
        return UserError(
            f"the loss was not finite at step {step} ({after}); try a --learning-rate below "
            f"{self.config.learning_rate}, and look at the data with `python -m flaxresnet check-data`"
        )

    def _evaluate(self, eval_step: EvalStep, eval_stats: Any) -> tuple[float, float]:
        variables = {"params": self.state.weights, "batch_stats": eval_stats}
        metrics = self.zero
        for batch in self.test.in_order():
            metrics = eval_step(variables, metrics, batch)
        return metrics.means()
