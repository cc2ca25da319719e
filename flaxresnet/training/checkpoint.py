"""Checkpoints of a run, written by Orbax in the background: the latest and the best, and the newest within an epoch.

A checkpoint holds three items, so that each reader loads no more than it needs: `params`, `eval_stats` (the batch-norm
statistics measured for these parameters) and `training` (running averages, optimiser state, step, and the weights
that learn where those in `params` are their average). One within an epoch has no `eval_stats`, for it is there to go on
from alone, and the epoch's sums so far instead.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from flaxresnet.config import Which
from flaxresnet.errors import UserError
from flaxresnet.training.metrics import Metrics
from flaxresnet.training.run_folder import RunFolder, RunInfo
from flaxresnet.training.state import TrainState


def rank(metrics: dict[str, Any]) -> tuple[float, float]:
    """What makes a checkpoint the best: test accuracy, then the lower test loss."""
    return metrics["test_accuracy"], -metrics["test_loss"]


class _Folder:
    """Orbax's manager of a folder. A context manager: leaving it waits for what is being written."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self._folder = folder
        with reading(folder):
            self._manager = ocp.CheckpointManager(folder.absolute(), options=ocp.CheckpointManagerOptions(**options))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def wait(self) -> None:
        """Until all is written."""
        self._manager.wait_until_finished()

    def _restore(self, step: int | None, **expected: Any) -> Any:
        if step is None:
            raise UserError(f"{self._folder} holds no finished checkpoint; train for at least one epoch first")
        shapes = jax.tree.map(_abstract, expected)
        args = ocp.args.Composite(**{name: ocp.args.StandardRestore(tree) for name, tree in shapes.items()})
        with reading(self._folder / str(step)):
            return self._manager.restore(step, args=args)


class Unfinished(_Folder):
    """The newest state within an epoch."""

    def __init__(self, folder: Path) -> None:
        newest = policies.LatestN(n=1)
        super().__init__(folder, preservation_policy=newest, cleanup_tmp_directories=True, create=True)

    def save(self, state: TrainState, metrics: Metrics) -> None:
        """Starts writing what the epoch's next step needs; `metrics` are its sums so far."""
        if (step := int(state.step)) != self.latest_step():
            items = {"params": state.weights, "training": state.training, "sums": vars(metrics)}
            args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
            self._manager.save(step, args=ocp.args.Composite(**args))

    def restore(self, state: TrainState, metrics: Metrics) -> tuple[TrainState, Metrics]:
        """The newest state and its epoch's sums, placed as those given are."""
        sums = vars(metrics)
        found = self._restore(self.latest_step(), params=state.params, training=state.training, sums=sums)
        return state.restored(found["params"], found["training"]), Metrics(**found["sums"])

    def clear(self) -> None:
        """Deletes it, when its epoch is whole."""
        self.wait()
        for step in self._manager.all_steps():
            self._manager.delete(step)


class Checkpoints(_Folder):
    """The checkpoints after each epoch: the latest and the best."""

    def __init__(self, folder: Path, read_only: bool = False) -> None:
        keep = [policies.LatestN(n=1), policies.BestN(get_metric_fn=rank, n=1)]
        alone = {jax.process_index()} if read_only else None  # readers do not wait for other processes
        super().__init__(
            folder,
            best_fn=rank,
            preservation_policy=policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            read_only=read_only,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=jax.process_index() if read_only else 0,
                active_processes=alone,
                barrier_sync_key_prefix="reader" if read_only and jax.process_count() > 1 else None,
            ),
        )

    def save(self, state: TrainState, eval_stats: Any, row: dict[str, Any]) -> None:
        """Starts writing a checkpoint, with the epoch's row of metrics, `test_accuracy` and `test_loss` among them."""
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.weights),
                eval_stats=ocp.args.StandardSave(eval_stats),
                training=ocp.args.StandardSave(state.training),
            ),
            metrics=row,
        )

    def save_variables(self, variables: Any) -> None:
        """Starts writing {"params", "batch_stats"} of a network that was not trained here: nothing to go on with."""
        items = {"params": variables["params"], "eval_stats": variables["batch_stats"]}
        args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        self._manager.save(0, args=ocp.args.Composite(**args))

    def restore(self, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The latest checkpoint's state, placed as `state` is (arrays or shapes with shardings), and its row."""
        step = self.latest_step()
        found = self._restore(step, params=state.params, training=state.training)
        return state.restored(found["params"], found["training"]), self.row()

    def row(self) -> dict[str, Any]:
        """The metrics of the latest checkpoint's epoch."""
        step = self.latest_step()
        with reading(self._folder / str(step)):
            row = self._manager.metrics(step)
            if "epoch" not in row:
                raise KeyError("epoch")
        return row

    def restore_variables(self, variables: Any, which: Which = "latest") -> Any:
        """Parameters and measured statistics for prediction.

        Args:
          variables: {"params", "batch_stats"} of arrays or shapes, which says what is expected and where it goes.
          which: "latest" or "best".

        Raises:
          UserError: there is no checkpoint, or it does not fit.
        """
        if which not in ("latest", "best"):
            raise UserError(f"checkpoint is {which!r}; give 'latest' or 'best'")
        # Weights that were not trained here have no test accuracy by which one would be the best.
        best = self._manager.best_step() if which == "best" else None
        step = self._manager.latest_step() if best is None else best
        found = self._restore(step, params=variables["params"], eval_stats=variables["batch_stats"])
        return {"params": found["params"], "batch_stats": found["eval_stats"]}


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns whatever Orbax raises for a damaged checkpoint, which may be anything, into a sentence."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"checkpoint {path} cannot be restored: {reason}") from error


def load_run(run: str | Path, which: Which = "latest") -> tuple[RunInfo, Any]:
    """A run's description and its variables for prediction, {"params", "batch_stats"}.

    Args:
      run: its folder.
      which: "latest" or "best".

    Raises:
      UserError: the folder holds no run, no finished checkpoint, or a damaged one.
    """
    folder = RunFolder(run)
    info = folder.read_info()
    images = jax.ShapeDtypeStruct((1, info.preprocessing.height, info.preprocessing.width, 3), jnp.float32)
    shapes = jax.eval_shape(info.model().init, jax.random.key(0), images)
    if not folder.checkpoints.is_dir():
        raise UserError(f"{folder.path} holds no checkpoint yet; train for at least one epoch first")
    with Checkpoints(folder.checkpoints, read_only=True) as checkpoints:
        return info, checkpoints.restore_variables(shapes, which)


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """An array's shape, dtype and placement; without a placement, the first local device's."""
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
