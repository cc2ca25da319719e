"""What a run writes so that it can go on: a checkpoint after each epoch, and every so many steps one within it."""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, Self

from flaxresnet.errors import UserError
from flaxresnet.training.checkpoint import Checkpoints, Unfinished
from flaxresnet.training.distributed import is_first
from flaxresnet.training.metrics import Metrics
from flaxresnet.training.run_folder import RunFolder
from flaxresnet.training.state import TrainState


class Saved:
    """A run's checkpoints of both kinds; a context manager, which waits at its end for what is being written."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            self._epochs = opened.enter_context(Checkpoints(self._folder.checkpoints))
            self._within = opened.enter_context(Unfinished(self._folder.unfinished))
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()
        if is_first():
            with suppress(OSError):  # empty at a run's end
                self._folder.unfinished.rmdir()

    def step(self) -> int | None:
        """The newest step that is saved, if any."""
        steps = [kind.latest_step() for kind in (self._epochs, self._within)]
        return max((step for step in steps if step is not None), default=None)

    def restore(
        self, shapes: TrainState, zero: Metrics, note: Callable[[str], None]
    ) -> tuple[TrainState, Metrics, list[dict[str, Any]]]:
        """The newest state, placed as `shapes` is, the sums of its epoch so far, and the rows of those before.

        Where the one within an epoch is damaged, that before it is taken.
        """
        after, within = self._epochs.latest_step(), self._within.latest_step()
        rows = self._rows() if after is not None else []
        if within is not None and within > (after or 0):
            try:
                return *self._within.restore(shapes, zero), rows
            except UserError as error:
                if after is None:
                    raise UserError(f"{error}; delete {self._folder.unfinished} to begin anew") from error
                note(f"{error}; going back to step {after}")
                self._within.clear()  # or what is saved on the way back there would count as old
        state, _ = self._epochs.restore(shapes)
        return state, zero, rows

    def after_epoch(self, state: TrainState, eval_stats: Any, row: dict[str, Any]) -> None:
        """Starts writing the checkpoint of an epoch that is done."""
        self._within.wait()  # Orbax's managers may not write at the same time where there are many processes
        self._epochs.save(state, eval_stats, row)

    def within_epoch(self, state: TrainState, metrics: Metrics) -> None:
        """Starts writing the checkpoint of a step, with its epoch's sums so far."""
        self._epochs.wait()
        if int(state.step) > (self._epochs.latest_step() or 0):
            self._within.save(state, metrics)

    def wait(self) -> None:
        """Until all is written."""
        self._epochs.wait()
        self._within.wait()

    def finish(self) -> None:
        """Deletes, at a run's end, what nobody will go on from."""
        self._epochs.wait()
        self._within.clear()

    def _rows(self) -> list[dict[str, Any]]:
        """One an epoch; a checkpoint has its own too, so that the two agree wherever the run was cut off."""
        last = self._epochs.row()
        return [*(row for row in self._folder.read_metrics() if row["epoch"] < last["epoch"]), last]
