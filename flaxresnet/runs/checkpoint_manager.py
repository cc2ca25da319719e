"""Checkpoints of a run, written by Orbax in the background: the latest two, the best, and the newest within an epoch.

A checkpoint holds three items, so that each reader loads no more than it needs: `params`, `eval_stats` (the batch-norm
statistics measured for these parameters) and `training` (running averages, optimiser state, step, and the weights
that learn where those in `params` are their average). One within an epoch has no `eval_stats`, for it is there to go on
from alone, and the epoch's sums so far instead. Beside them are checksums, for a flipped bit would go unnoticed.
"""

import contextlib
import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from flaxresnet.config.train_config import CheckpointChoice
from flaxresnet.runs.checksums import checksum, checksum_of_row, require_same
from flaxresnet.runs.metadata import RunMetadata
from flaxresnet.runs.run_dir import RunDir
from flaxresnet.runtime.errors import UserError
from flaxresnet.runtime.logging import log_errors_only

Items = dict[str, Any]  # pytrees by the name of the checkpoint's item: "params" and "training"
# What is wrong with a disk, not with what is on it.
TRANSIENT_ERRNOS = (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE, errno.ENFILE)


def best_key(metrics: dict[str, Any]) -> tuple[float, float]:
    """What makes a checkpoint the best: test accuracy, then the lower test loss."""
    return metrics["test_accuracy"], -metrics["test_loss"]


class CorruptCheckpointError(UserError):
    """A checkpoint that is not what was written; the one before may be."""


class _Manager(ocp.CheckpointManager):
    """Orbax's, which does not ask whether the job is to end.

    `PreemptionHandler` asks that, of the same counter in JAX and by numbers of its own: asked for a training step in
    between, processes would no longer agree on where to stop.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class _Folder:
    """Orbax's manager of a folder. A context manager: leaving it waits for what is being written."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self._folder = folder
        with reading(folder), log_errors_only("absl"):  # a reader is warned that it only reads
            self._manager = _Manager(folder.absolute(), options=ocp.CheckpointManagerOptions(**options))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with writing(self._folder):
            self._manager.close()

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """All that are kept, the newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def path_of(self, step: int) -> Path:
        return self._folder / str(step)

    def reload(self) -> None:
        """Looks again at which steps there are."""
        self._manager.reload()

    def wait(self) -> None:
        """Until all is written; raises UserError where that failed."""
        with writing(self._folder):
            self._manager.wait_until_finished()

    def _save(self, step: int, row: dict[str, Any] | None = None, **items: Any) -> None:
        checksums = {name: checksum(tree) for name, tree in items.items()}
        if row is not None:
            checksums["figures"] = checksum_of_row(row)
        args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        with writing(self._folder):
            args |= {"checksums": ocp.args.JsonSave(checksums)}
            self._manager.save(step, args=ocp.args.Composite(**args), metrics=row)

    def _restore(self, step: int | None, **expected: Any) -> Any:
        if step is None:
            raise UserError(f"{self._folder} holds no finished checkpoint; train for at least one epoch first")
        shapes = jax.tree.map(_abstract, expected)
        args = {name: ocp.args.StandardRestore(tree) for name, tree in shapes.items()}
        with reading(self.path_of(step)):
            found = self._manager.restore(step, args=ocp.args.Composite(**args))
            require_same(self._checksums(step), {name: checksum(found[name]) for name in expected})
        return found

    def _checksums(self, step: int) -> dict[str, int | None]:
        """By item; those written before there were any have none."""
        if not (self.path_of(step) / "checksums").is_dir():
            return {}
        return self._manager.restore(step, args=ocp.args.Composite(checksums=ocp.args.JsonRestore()))["checksums"]


class MidEpochCheckpoints(_Folder):
    """The newest state within an epoch."""

    def __init__(self, folder: Path) -> None:
        newest = policies.LatestN(n=1)
        super().__init__(folder, preservation_policy=newest, cleanup_tmp_directories=True, create=True)

    def save(self, step: int, items: Items, sums: Any) -> None:
        """Starts writing what the epoch's next step needs; `sums` are those of its metrics so far."""
        if step != self.latest_step():
            self._save(step, **items, sums=sums)

    def restore(self, expected: Items, sums: Any, step: int | None = None) -> tuple[Items, Any]:
        """Returns the items after a step, the newest by default, and its epoch's sums, placed as those given are."""
        found = self._restore(step or self.latest_step(), **expected, sums=sums)
        return {name: found[name] for name in expected}, found["sums"]

    def clear(self) -> None:
        """Deletes it, when its epoch is whole."""
        self.wait()
        for step in self._manager.all_steps():
            self._manager.delete(step)


class EpochCheckpoints(_Folder):
    """The checkpoints after each epoch: the latest two, for the last may get damaged, and the best."""

    def __init__(self, folder: Path, read_only: bool = False) -> None:
        keep = [policies.LatestN(n=2), policies.BestN(get_metric_fn=best_key, n=1)]
        alone = {jax.process_index()} if read_only else None  # readers do not wait for other processes
        super().__init__(
            folder,
            best_fn=best_key,
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

    def save(self, step: int, items: Items, eval_stats: Any, row: dict[str, Any]) -> None:
        """Starts writing a checkpoint, with the epoch's row of metrics, `test_accuracy` and `test_loss` among them."""
        self._save(step, row, **items, eval_stats=eval_stats)

    def save_variables(self, variables: Any) -> None:
        """Starts writing {"params", "batch_stats"} of a network that was not trained here: nothing to go on with."""
        self._save(0, params=variables["params"], eval_stats=variables["batch_stats"])

    def restore(self, expected: Items, step: int | None = None) -> tuple[Items, dict[str, Any]]:
        """Returns the items after a step, the latest by default, placed as `expected` is, and its epoch's row.

        Args:
          expected: pytrees of arrays, or of shapes with shardings.
          step: one of `steps()`.
        """
        step = step or self.latest_step()
        found = self._restore(step, **expected)
        return {name: found[name] for name in expected}, self.row(step)

    def row(self, step: int | None = None) -> dict[str, Any]:
        """The metrics of a checkpoint's epoch, of the latest by default."""
        if step is None and (step := self.latest_step()) is None:
            raise UserError(f"{self._folder} holds no finished checkpoint; train for at least one epoch first")
        with reading(self.path_of(step)):
            row = self._manager.metrics(step)
            if not _is_row(row):
                raise KeyError("epoch")
            require_same(self._checksums(step), {"figures": checksum_of_row(row)})
        return row

    def restore_variables(self, variables: Any, which: CheckpointChoice = "latest") -> Any:
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
    """Turns an error of Orbax, which may be of any type, into a `CorruptCheckpointError` with one sentence.

    Permission, I/O and out-of-memory errors are not corruption.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise
        kind = UserError if isinstance(error, OSError) and error.errno in TRANSIENT_ERRNOS else CorruptCheckpointError
        raise kind(f"checkpoint {path} cannot be restored: {_reason(error)}") from error


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns whatever Orbax raises where a disk is full or may not be written into a sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        kept = "what was whole before is kept, and the same command goes on from there"
        raise UserError(f"{path} cannot be written ({_reason(error)}); {kept}") from error


def unreadable_steps(folder: Path) -> list[Path]:
    """Checkpoints of epochs whose figures cannot be read, for which Orbax would not open the folder."""
    return [path for path in steps_in(folder) if _row_of(path) is None]


def steps_in(folder: Path) -> list[Path]:
    """Finished checkpoints, the oldest first."""
    return sorted((path for path in folder.glob("*") if path.name.isdigit()), key=lambda path: int(path.name))


def epochs_in(folder: Path) -> int:
    """The last epoch that a checkpoint is of, as these tell themselves; 0 where there is none."""
    rows = [row for path in steps_in(folder) if (row := _row_of(path))]
    return max((row["epoch"] for row in rows if type(row["epoch"]) is int), default=0)


def _row_of(path: Path) -> dict[str, Any] | None:
    """The figures that are beside a checkpoint, if they can be read."""
    try:
        row = json.loads((path / "metrics" / "metrics").read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return row if _is_row(row) else None


def _is_row(row: Any) -> bool:
    """Whether these are an epoch's figures, as far as they are needed to go on and to find the best."""
    needed = ("epoch", "test_accuracy", "test_loss")
    return isinstance(row, dict) and all(isinstance(row.get(name), int | float) for name in needed)


def _reason(error: Exception) -> str:
    """What an error says, in a line; where a disk is full it is deep inside."""
    text = str(error).strip() or type(error).__name__
    known = [words for words in ("No space left on device", "File too large", "Disk quota exceeded") if words in text]
    return known[0] if known else text.splitlines()[0]


def load_run(run: str | Path, which: CheckpointChoice = "latest") -> tuple[RunMetadata, Any]:
    """A run's description and its variables for prediction, {"params", "batch_stats"}.

    Args:
      run: its folder.
      which: "latest" or "best".

    Raises:
      UserError: the folder holds no run, no finished checkpoint, or a damaged one.
    """
    folder = RunDir(run)
    info = folder.read_metadata()
    images = jax.ShapeDtypeStruct((1, info.preprocessing.height, info.preprocessing.width, 3), jnp.float32)
    shapes = jax.eval_shape(info.model().init, jax.random.key(0), images)
    if not folder.checkpoints.is_dir():
        raise UserError(f"{folder.path} holds no checkpoint yet; train for at least one epoch first")
    with EpochCheckpoints(folder.checkpoints, read_only=True) as checkpoints:
        return info, checkpoints.restore_variables(shapes, which)


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """An array's shape, dtype and placement; without a placement, the first local device's."""
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
