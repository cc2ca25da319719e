"""Checkpoints of a run, which Orbax writes in the background: the latest two, the best, and the newest within an epoch.

A checkpoint consists of items, so that each reader loads only the items that it needs:

- `params`: the parameters, or their average over the steps if the run has an EMA.
- `eval_stats`: batch norm's statistics, measured for these parameters. A checkpoint within an epoch has none, because
  only training reads it.
- `training`: batch norm's running averages, the optimizer state, the step, and the trained parameters of an EMA.
- `sums`: the sums of the epoch's metrics, only in a checkpoint within an epoch.
- `checksums`: item → CRC-32, because Orbax does not detect bit flips.
"""

import sys
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from flaxresnet.config.train_config import CheckpointChoice
from flaxresnet.runs.checkpoint_errors import checkpoint_read_errors, checkpoint_write_errors
from flaxresnet.runs.checkpoint_files import read_metrics, unreadable_checkpoints
from flaxresnet.runs.checksums import checksum, json_checksum, require_equal_checksums
from flaxresnet.runs.metadata import RunMetadata
from flaxresnet.runs.run_dir import RunDir
from flaxresnet.runtime.errors import UserError
from flaxresnet.runtime.logging import drop_orbax_errors, log_errors_only
from flaxresnet.runtime.x64 import x64_disabled

Items = dict[str, Any]  # item's name → pytree: "params" and "training"
IMPORTED_STEP = "0"  # the checkpoint of weights that were trained elsewhere, which has no metrics
METRICS = "figures"  # the name of the metrics among a checkpoint's checksums


def best_key(metrics: dict[str, Any]) -> tuple[float, float]:
    """Returns the key by which the best checkpoint is the maximum: the test accuracy, then the lower test loss."""
    return metrics["test_accuracy"], -metrics["test_loss"]


class _Manager(ocp.CheckpointManager):
    """Orbax's manager without its own check for preemption, which opens a folder with damaged metrics.

    `PreemptionHandler` counts its calls of the same sync point in JAX. With additional calls by Orbax, the processes
    would no longer agree on the step to stop at.
    """

    def reached_preemption(self, step: int) -> bool:
        return False

    def metrics(self, step: int) -> dict[str, Any] | None:
        """Returns a checkpoint's metrics. Returns None instead of raising if they are damaged, so that others open."""
        return read_metrics(Path(self.directory) / str(step))


class _Checkpoints:
    """The checkpoints in a folder. As a context manager, it waits at its end for pending writes."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self._folder = folder
        drop_orbax_errors()
        with checkpoint_read_errors(folder), log_errors_only("absl"):  # absl warns if `read_only` is set
            self._manager = _Manager(folder.absolute(), options=ocp.CheckpointManagerOptions(**options))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with checkpoint_write_errors(self._folder):
            self._manager.close()

    def latest_step(self) -> int | None:
        """Returns the step of the latest checkpoint, or None if there is none."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Returns the steps of all checkpoints, the newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def path_of(self, step: int) -> Path:
        """Returns the path of a step's checkpoint."""
        return self._folder / str(step)

    def reload(self) -> None:
        """Reads the list of steps from the disk again."""
        self._manager.reload()

    def wait(self) -> None:
        """Waits for pending writes; raises UserError if one failed."""
        with checkpoint_write_errors(self._folder):
            self._manager.wait_until_finished()

    def _save(self, step: int, metrics: dict[str, Any] | None = None, **items: Any) -> None:
        checksums = {name: checksum(tree) for name, tree in items.items()}
        if metrics is not None:
            checksums[METRICS] = json_checksum(metrics)
        args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        with checkpoint_write_errors(self._folder):
            args["checksums"] = ocp.args.JsonSave(checksums)
            self._manager.save(step, args=ocp.args.Composite(**args), metrics=metrics)

    def _restore(self, step: int | None, **expected: Any) -> Any:
        step = self._require_step(step)
        shapes = jax.tree.map(_abstract, expected)
        args = {name: ocp.args.StandardRestore(tree) for name, tree in shapes.items()}
        with checkpoint_read_errors(self.path_of(step)):
            items = self._manager.restore(step, args=ocp.args.Composite(**args))
            require_equal_checksums(self._checksums(step), {name: checksum(items[name]) for name in expected})
        return items

    def _require_step(self, step: int | None) -> int:
        if step is None:
            raise UserError(f"{self._folder} holds no finished checkpoint; train for at least one epoch first")
        return step

    def _checksums(self, step: int) -> dict[str, int | None]:
        """Returns item → CRC-32; empty for a checkpoint without checksums."""
        if not (self.path_of(step) / "checksums").is_dir():
            return {}
        return self._manager.restore(step, args=ocp.args.Composite(checksums=ocp.args.JsonRestore()))["checksums"]


class MidEpochCheckpoints(_Checkpoints):
    """The newest state within an epoch."""

    def __init__(self, folder: Path) -> None:
        newest = policies.LatestN(n=1)
        super().__init__(folder, preservation_policy=newest, cleanup_tmp_directories=True, create=True)

    def save(self, step: int, items: Items, sums: Any) -> None:
        """Starts writing the state after a step.

        Args:
          step: the number of steps since the start of the run.
          items: the pytrees to save.
          sums: the sums of the epoch's metrics so far.
        """
        if step != self.latest_step():
            self._save(step, **items, sums=sums)

    def restore(self, expected: Items, sums: Any, step: int | None = None) -> tuple[Items, Any]:
        """Returns the items and the metrics' sums after a step.

        Args:
          expected: pytrees of arrays, or of shapes with shardings. The result has the same shardings.
          sums: the same for the sums.
          step: one of `steps()`; None for the latest.
        """
        step = self.latest_step() if step is None else step
        restored = self._restore(step, **expected, sums=sums)
        return {name: restored[name] for name in expected}, restored["sums"]

    def clear(self) -> None:
        """Deletes all checkpoints."""
        self.wait()
        for step in self._manager.all_steps():
            self._manager.delete(step)


class EpochCheckpoints(_Checkpoints):
    """The checkpoints after each epoch: the latest two, because the last one may get corrupted, and the best one."""

    def __init__(self, folder: Path, read_only: bool = False) -> None:
        keep = [policies.LatestN(n=2), policies.BestN(get_metric_fn=best_key, n=1)]
        multiprocessing = ocp.options.MultiprocessingOptions(primary_host=0)
        if read_only:  # a reader does not wait for other processes
            multiprocessing = ocp.options.MultiprocessingOptions(
                primary_host=jax.process_index(),
                active_processes={jax.process_index()},
                barrier_sync_key_prefix="reader" if jax.process_count() > 1 else None,
            )
        super().__init__(
            folder,
            best_fn=best_key,
            preservation_policy=policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            read_only=read_only,
            multiprocessing_options=multiprocessing,
        )

    def save(self, step: int, items: Items, eval_stats: Any, metrics: dict[str, Any]) -> None:
        """Starts writing the checkpoint after an epoch.

        Args:
          step: the number of steps since the start of the run.
          items: the pytrees to save.
          eval_stats: batch norm's statistics for evaluation.
          metrics: the epoch's row of `metrics.jsonl`, with at least `epoch`, `test_accuracy` and `test_loss`.
        """
        self._save(step, metrics, **items, eval_stats=eval_stats)

    def save_variables(self, variables: Any) -> None:
        """Starts writing {"params", "batch_stats"} of a network that was trained elsewhere, for prediction only."""
        self._save(0, params=variables["params"], eval_stats=variables["batch_stats"])

    def restore(self, expected: Items, step: int | None = None) -> tuple[Items, dict[str, Any]]:
        """Returns the items after a step and the metrics of its epoch.

        Args:
          expected: pytrees of arrays, or of shapes with shardings. The result has the same shardings.
          step: one of `steps()`; None for the latest.
        """
        step = self.latest_step() if step is None else step
        restored = self._restore(step, **expected)
        return {name: restored[name] for name in expected}, self.metrics(step)

    def metrics(self, step: int | None = None) -> dict[str, Any]:
        """Returns the metrics of a checkpoint's epoch.

        Args:
          step: one of `steps()`; None for the latest.

        Raises:
          UserError: there is no checkpoint.
          CorruptCheckpointError: the metrics are corrupt.
        """
        step = self._require_step(self.latest_step() if step is None else step)
        with checkpoint_read_errors(self.path_of(step)):
            metrics = self._manager.metrics(step)
            if metrics is None:
                raise ValueError("its metrics are damaged")
            require_equal_checksums(self._checksums(step), {METRICS: json_checksum(metrics)})
        return metrics

    def restore_variables(self, variables: Any, which: CheckpointChoice = "latest") -> Any:
        """Returns the variables for prediction: the parameters and batch norm's statistics for evaluation.

        Args:
          variables: {"params", "batch_stats"} of arrays, or of shapes with shardings, which the result has too.
          which: "latest" or "best".

        Raises:
          UserError: `which` is invalid, there is no checkpoint, or it is corrupt or has arrays of other shapes.
        """
        if which not in ("latest", "best"):
            raise UserError(f"checkpoint is {which!r}; give 'latest' or 'best'")
        # Converted weights have no test accuracy, and so no best step.
        best = self._manager.best_step() if which == "best" else None
        step = self._manager.latest_step() if best is None else best
        restored = self._restore(step, params=variables["params"], eval_stats=variables["batch_stats"])
        return {"params": restored["params"], "batch_stats": restored["eval_stats"]}


@x64_disabled()
def load_run(run: str | Path, which: CheckpointChoice = "latest") -> tuple[RunMetadata, Any]:
    """Returns a run's metadata and its variables for prediction, {"params", "batch_stats"}.

    Args:
      run: the run's folder.
      which: "latest" or "best".

    Raises:
      UserError: the folder holds no run or no finished checkpoint, `which` is invalid, or the checkpoint is corrupt.
    """
    folder = RunDir(run)
    info = folder.read_metadata()
    images = jax.ShapeDtypeStruct((1, info.preprocessing.height, info.preprocessing.width, 3), jnp.float32)
    shapes = jax.eval_shape(info.model().init, jax.random.key(0), images)
    if not folder.checkpoints.is_dir():
        raise UserError(f"{folder.path} holds no checkpoint yet; train for at least one epoch first")
    for path in unreadable_checkpoints(folder.checkpoints):
        if path.name != IMPORTED_STEP:
            print(f"warning: the metrics of checkpoint {path} are damaged; resuming sets it aside", file=sys.stderr)
    with EpochCheckpoints(folder.checkpoints, read_only=True) as checkpoints:
        return info, checkpoints.restore_variables(shapes, which)


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """Returns an array's shape, dtype and sharding. Without a sharding, the first local device takes the array."""
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
