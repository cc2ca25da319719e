"""What a run writes so that it can go on: a checkpoint after each epoch, and every so many steps one within it."""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

from flaxresnet.runs.checkpoint_manager import (
    CorruptCheckpointError,
    EpochCheckpoints,
    Items,
    MidEpochCheckpoints,
    steps_in,
    unreadable_steps,
)
from flaxresnet.runs.run_dir import RunDir
from flaxresnet.runtime.distributed import all_gather_json, is_process_zero, run_on_process_zero
from flaxresnet.runtime.errors import UserError

NOTHING_LEFT = "no other checkpoint is left to go on from: --no-resume begins anew, and keeps what is there"


class CheckpointStore:
    """A run's checkpoints of both kinds; a context manager, which waits at its end for what is being written."""

    def __init__(self, folder: RunDir, note: Callable[[str], None]) -> None:
        """Args: the run's folder, and what is told which checkpoints are damaged."""
        self._folder, self._note = folder, note

    def __enter__(self) -> Self:
        run_on_process_zero(self._quarantine_unreadable)
        with ExitStack() as opened:
            self._epochs = opened.enter_context(EpochCheckpoints(self._folder.checkpoints))
            self._within = opened.enter_context(MidEpochCheckpoints(self._folder.mid_epoch))
            self._kinds: tuple[MidEpochCheckpoints, EpochCheckpoints] = (self._within, self._epochs)
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()
        if is_process_zero():
            with suppress(OSError):  # empty at a run's end
                self._folder.mid_epoch.rmdir()

    def step(self) -> int | None:
        """The newest step that is saved, as this process sees it, if any."""
        steps = [kind.latest_step() for kind in (self._epochs, self._within)]
        return max((step for step in steps if step is not None), default=None)

    def available_steps(self) -> list[tuple[int, int]]:
        """The steps that all processes see, in order, each with the place of its kind in `_kinds`; all have to ask.

        What one of them has written, another may see later on a disk that is reached over a network. Raises UserError
        where no step is seen by all and some by one.
        """
        mine = [(step, place) for place, kind in enumerate(self._kinds) for step in kind.steps()]
        seen = [{(step, place) for step, place in one} for one in all_gather_json(mine)]
        common = set.intersection(*seen)
        if any(seen) and not common:
            raise UserError(
                f"the processes see different checkpoints in {self._folder.path} (this one {len(mine)}); give a "
                "--workdir on a disk that all of them share, or start them again once it looks the same to all"
            )
        return sorted(common)

    def restore(self, expected: Items, zero: Any) -> tuple[Items, Any, list[dict[str, Any]]]:
        """The newest intact items, placed as `expected` is, the sums of its epoch so far, and the rows of those before.

        Intact to all processes, of which each may read a part; all have to ask. DamagedError ones are put into a folder
        of their own. Raises UserError where none is intact.
        """
        wrong, damaged = "", list[Path]()
        for step, number in reversed(self.available_steps()):
            if wrong:
                self._note(f"{wrong}; going back to step {step}")
            mine, found = "", None
            try:
                found = self._found(expected, zero, step, self._kinds[number] is self._within)
            except CorruptCheckpointError as error:
                mine = str(error)
            wrong = next(filter(None, all_gather_json(mine)), "")
            if not wrong and found:
                self._quarantine(damaged)
                return found
            damaged.append(self._kinds[number].path_of(step))
        raise UserError(f"{wrong}; {NOTHING_LEFT}")

    def _found(self, expected: Items, zero: Any, step: int, within: bool) -> tuple[Items, Any, list[dict[str, Any]]]:
        rows = [row for row in self._folder.read_metrics() if row.get("step", 0) <= step]
        if not within:
            items, last = self._epochs.restore(expected, step)
            return items, zero, _with_last(rows, last)
        items, sums = self._within.restore(expected, zero, step)
        for before in (number for number in self._epochs.steps() if number < step):
            with suppress(UserError):  # a row that was cut off may be known to its checkpoint, if that is intact
                return items, sums, _with_last(rows, self._epochs.row(before))
        return items, sums, rows

    def _quarantine_unreadable(self) -> None:
        """Puts aside checkpoints for which Orbax would not open the folder."""
        damaged = unreadable_steps(self._folder.checkpoints)
        left = [path for path in steps_in(self._folder.checkpoints) if path not in damaged]
        if damaged and not (left or steps_in(self._folder.mid_epoch)):
            raise UserError(f"checkpoint {damaged[-1]} cannot be restored: its figures are damaged; {NOTHING_LEFT}")
        for path in damaged:
            self._note(f"checkpoint {path} cannot be restored: its figures are damaged; going back to one before")
            self._folder.quarantine(path)

    def _quarantine(self, damaged: list[Path]) -> None:
        """Or what is saved on the way back there would count as old, and be left out."""
        if damaged:
            run_on_process_zero(lambda: [*map(self._folder.quarantine, damaged)])
            self._epochs.reload()
            self._within.reload()

    def save_epoch(self, step: int, items: Items, eval_stats: Any, row: dict[str, Any]) -> None:
        """Starts writing the checkpoint of an epoch that is done."""
        self._within.wait()  # Orbax's managers may not write at the same time where there are many processes
        self._epochs.save(step, items, eval_stats, row)

    def save_mid_epoch(self, step: int, items: Items, sums: Any) -> None:
        """Starts writing the checkpoint of a step, with its epoch's sums so far."""
        self._epochs.wait()
        if step > (self._epochs.latest_step() or 0):
            self._within.save(step, items, sums)

    def wait(self) -> None:
        """Until all is written."""
        self._epochs.wait()
        self._within.wait()

    def finish(self) -> None:
        """Deletes, at a run's end, what nobody will go on from."""
        self._epochs.wait()
        self._within.clear()


def _with_last(rows: list[dict[str, Any]], last: dict[str, Any]) -> list[dict[str, Any]]:
    """One an epoch; a checkpoint has its own too, so that the two agree wherever the run was cut off."""
    return [*(row for row in rows if row["epoch"] < last["epoch"]), last]
