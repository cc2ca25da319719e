"""What a training run shows: a progress bar in a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

Update = Callable[[int, float, float], None]  # steps done in this epoch, mean loss, accuracy


class ProgressLogger:
    """Prints a run's lines; nothing if `quiet`.

    Attributes:
      batch_size, steps_per_epoch, epochs: of the run, for images/s and the time left.
    """

    def __init__(self, quiet: bool, epochs: int, batch_size: int) -> None:
        self.epochs = epochs
        self.batch_size = batch_size
        self.steps_per_epoch = 0
        self._console = Console(quiet=quiet, soft_wrap=True)

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def row(self, row: dict[str, Any]) -> None:
        """The line of a finished epoch, short enough for a terminal of 100 columns."""
        width = len(str(self.epochs))
        self.note(
            f"epoch {row['epoch']:{width}}/{self.epochs}"
            f"  train loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:.3f}"
            f"  test loss {row['test_loss']:.4f} accuracy {row['test_accuracy']:.3f}"
            f"  {row['seconds']:.1f} s + {row['precise_bn_seconds']:.1f} s"
        )

    @contextmanager
    def epoch(self, epoch: int, earlier: int = 0) -> Iterator[Update]:
        """A progress bar for one epoch, `earlier` steps of which were done by an earlier process.

        The time left is that of all training steps to come, without compilation.
        """
        columns = (
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}  {task.fields[figures]}"),
        )
        start = time.perf_counter()
        with Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal) as bar:
            task = bar.add_task("", total=self.steps_per_epoch, epoch=f"{epoch}/{self.epochs}", figures="")

            def update(done: int, loss: float, accuracy: float) -> None:
                step_seconds = (time.perf_counter() - start) / max(done - earlier, 1)
                left = step_seconds * ((self.epochs - epoch + 1) * self.steps_per_epoch - done)
                figures = (
                    f"loss {loss:.4f}  accuracy {accuracy:.3f}  {self.batch_size / step_seconds:.0f} images/s"
                    f"  {duration(left)} left"
                )
                bar.update(task, completed=done, figures=figures)

            yield update


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
