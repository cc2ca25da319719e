"""All checkpoints of a run: one after each epoch, and one within an epoch at regular steps."""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

from flaxresnet.runs.checkpoint_errors import CorruptCheckpointError
from flaxresnet.runs.checkpoint_files import checkpoint_paths, unreadable_checkpoints
from flaxresnet.runs.checkpoint_io import EpochCheckpoints, Items, MidEpochCheckpoints
from flaxresnet.runs.run_dir import RunDir
from flaxresnet.runtime.distributed import all_gather_json, is_process_zero, run_on_process_zero
from flaxresnet.runtime.errors import UserError

NO_INTACT_CHECKPOINT = "no other checkpoint is intact; give --no-resume to start a new run and keep the old files"


class CheckpointStore:
    """A run's checkpoints of both kinds; as a context manager, it waits at its end for pending writes."""

    def __init__(self, folder: RunDir, note: Callable[[str], None]) -> None:
        """Prepares the store without opening it.

        Args:
          folder: the run's folder.
          note: receives a message for each corrupt checkpoint.
        """
        self._folder = folder
        self._note = note

    def __enter__(self) -> Self:
        run_on_process_zero(self._quarantine_unreadable)
        with ExitStack() as stack:
            self._epochs = stack.enter_context(EpochCheckpoints(self._folder.checkpoints))
            self._mid_epoch = stack.enter_context(MidEpochCheckpoints(self._folder.mid_epoch))
            self._managers = (self._mid_epoch, self._epochs)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        if is_process_zero():
            with suppress(OSError):  # the folder is empty only at a run's end
                self._folder.mid_epoch.rmdir()

    def step(self) -> int | None:
        """Returns the newest saved step that this process sees, or None if there is none."""
        steps = [manager.latest_step() for manager in self._managers]
        return max((step for step in steps if step is not None), default=None)

    def available_steps(self) -> list[tuple[int, int]]:
        """Returns the sorted (step, manager index) pairs that all processes see. All processes must call it.

        A network file system may show a file to one process later than to another.

        Raises:
          UserError: some process sees a checkpoint, but no checkpoint is visible to all.
        """
        local = [(step, index) for index, manager in enumerate(self._managers) for step in manager.steps()]
        visible = [{(step, index) for step, index in pairs} for pairs in all_gather_json(local)]
        common = set.intersection(*visible)
        if any(visible) and not common:
            raise UserError(
                f"the processes see different checkpoints in {self._folder.path} (this one sees {len(local)}); give a "
                "--workdir on a disk that all processes share, or start them again when all see the same files"
            )
        return sorted(common)

    def restore(self, expected: Items, empty_sums: Any) -> tuple[Items, Any, list[dict[str, Any]]]:
        """Returns the newest state that all processes can read. All processes must call it.

        Each process may read a different part of a checkpoint. Corrupt checkpoints move to `corrupt/`.

        Args:
          expected: pytrees of arrays, or of shapes with shardings. The items have the same shardings.
          empty_sums: the sums of the metrics at the start of an epoch.

        Returns:
          The items, the sums of the current epoch's metrics, and the metrics of the finished epochs.

        Raises:
          UserError: no checkpoint is intact.
        """
        error_message = ""
        corrupt = list[Path]()
        for step, index in reversed(self.available_steps()):
            if error_message:
                self._note(f"{error_message}; trying step {step}")
            restored = None
            error_message = ""
            try:
                restored = self._restore_step(expected, empty_sums, step, self._managers[index] is self._mid_epoch)
            except CorruptCheckpointError as error:
                error_message = str(error)
            error_message = next(filter(None, all_gather_json(error_message)), "")
            if not error_message and restored:
                self._quarantine(corrupt)
                return restored
            corrupt.append(self._managers[index].path_of(step))
        raise UserError(f"{error_message}; {NO_INTACT_CHECKPOINT}")

    def _restore_step(
        self, expected: Items, empty_sums: Any, step: int, mid_epoch: bool
    ) -> tuple[Items, Any, list[dict[str, Any]]]:
        rows = [row for row in self._folder.read_metrics() if row.get("step", 0) <= step]
        if not mid_epoch:
            items, last_row = self._epochs.restore(expected, step)
            return items, empty_sums, _replace_last(rows, last_row)
        items, sums = self._mid_epoch.restore(expected, empty_sums, step)
        for earlier_step in self._epochs.steps():
            if earlier_step < step:
                with suppress(UserError):  # a corrupt checkpoint; `rows` may lack its row
                    return items, sums, _replace_last(rows, self._epochs.metrics(earlier_step))
        return items, sums, rows

    def _quarantine_unreadable(self) -> None:
        """Moves checkpoints to `corrupt/` if their metrics are unreadable; with them Orbax cannot open the folder."""
        corrupt = unreadable_checkpoints(self._folder.checkpoints)
        intact = [path for path in checkpoint_paths(self._folder.checkpoints) if path not in corrupt]
        if corrupt and not intact and not checkpoint_paths(self._folder.mid_epoch):
            raise UserError(
                f"checkpoint {corrupt[-1]} cannot be restored: its metrics are damaged; {NO_INTACT_CHECKPOINT}"
            )
        for path in corrupt:
            self._note(f"checkpoint {path} cannot be restored: its metrics are damaged; moving it to corrupt/")
            self._folder.quarantine(path)

    def _quarantine(self, corrupt: list[Path]) -> None:
        """Moves checkpoints to `corrupt/`. Otherwise Orbax skips training's next saves as older than these steps."""
        if corrupt:
            run_on_process_zero(lambda: [*map(self._folder.quarantine, corrupt)])
            self._epochs.reload()
            self._mid_epoch.reload()

    def save_epoch(self, step: int, items: Items, eval_stats: Any, metrics: dict[str, Any]) -> None:
        """Starts writing the checkpoint after an epoch; see `EpochCheckpoints.save`."""
        self._mid_epoch.wait()  # with several processes, only one of Orbax's managers may write at a time
        self._epochs.save(step, items, eval_stats, metrics)

    def save_mid_epoch(self, step: int, items: Items, sums: Any) -> None:
        """Starts writing the checkpoint within an epoch; see `MidEpochCheckpoints.save`."""
        self._epochs.wait()
        if step > (self._epochs.latest_step() or 0):
            self._mid_epoch.save(step, items, sums)

    def wait(self) -> None:
        """Waits for pending writes."""
        self._epochs.wait()
        self._mid_epoch.wait()

    def finish(self) -> None:
        """Deletes the checkpoint within an epoch at the end of a run."""
        self._epochs.wait()
        self._mid_epoch.clear()


def _replace_last(rows: list[dict[str, Any]], last_row: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows of earlier epochs, then `last_row` from a checkpoint.

    `metrics.jsonl` and a checkpoint may disagree if the run stopped between the two writes.
    """
    return [*(row for row in rows if row["epoch"] < last_row["epoch"]), last_row]
