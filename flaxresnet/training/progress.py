"""Prints the progress of a training run: a progress bar and a spinner in a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from flaxresnet.runtime import terminal

Update = Callable[[int, float, float], None]  # steps done in this epoch, mean loss, accuracy


class ProgressLogger:
    """Prints the lines of a run.

    Attributes:
      epochs: number of epochs of the run.
      batch_size: images per step, for the images/s.
      steps_per_epoch: training steps per epoch, for the remaining time. Set it before the first `epoch`.
    """

    def __init__(self, epochs: int, batch_size: int, quiet: bool = False, verbose: bool = False) -> None:
        """Sets the amount of output.

        Args:
          epochs, batch_size: see the attributes.
          quiet: print nothing.
          verbose: also print the lines of `detail`.
        """
        self.epochs = epochs
        self.batch_size = batch_size
        self.steps_per_epoch = 0
        self._verbose = verbose
        self._console = Console(quiet=quiet, soft_wrap=True)

    def note(self, text: str) -> None:
        """Prints a line."""
        self._console.print(text, markup=False, highlight=False)

    def detail(self, text: str) -> None:
        """Prints a line for engineers, with `--verbose` only."""
        if self._verbose:
            self.note(text)

    def status(self, text: str, terminal_only: bool = False) -> AbstractContextManager[None]:
        """Shows a spinner beside the text while the body runs; see `terminal.status`.

        With `terminal_only`, prints nothing if standard error is no terminal.
        """
        if self._console.quiet:
            return nullcontext()
        return terminal.status(text, terminal_only)

    def row(self, row: dict[str, Any]) -> None:
        """Prints the line of a finished epoch, which fits into 100 columns."""
        width = len(str(self.epochs))
        seconds = row["seconds"] + row["precise_bn_seconds"] + row["evaluate_seconds"]
        self.note(
            f"epoch {row['epoch']:{width}}/{self.epochs}"
            f"  train loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:.3f}"
            f"  test loss {row['test_loss']:.4f} accuracy {row['test_accuracy']:.3f}"
            f"  {seconds:.1f} s"
        )

    @contextmanager
    def epoch(self, epoch: int, done_before: int = 0) -> Iterator[Update]:
        """Shows a progress bar for one epoch; yields a function that updates it.

        The remaining time covers all further training steps of the run, without evaluation and compilation.

        Args:
          epoch: number of the epoch, from 1.
          done_before: steps of the epoch that the run finished before it was resumed.
        """
        columns = (
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}  {task.fields[figures]}"),
        )
        start = time.perf_counter()
        hidden = not self._console.is_terminal
        with Progress(*columns, console=self._console, transient=True, disable=hidden) as bar:
            task = bar.add_task(
                "", total=self.steps_per_epoch, completed=done_before, epoch=f"{epoch}/{self.epochs}", figures=""
            )

            def update(done: int, loss: float, accuracy: float) -> None:
                step_seconds = (time.perf_counter() - start) / max(done - done_before, 1)
                steps_left = (self.epochs - epoch + 1) * self.steps_per_epoch - done
                figures = (
                    f"loss {loss:.4f}  accuracy {accuracy:.3f}  {self.batch_size / step_seconds:.0f} images/s"
                    f"  {duration(step_seconds * steps_left)} left"
                )
                bar.update(task, completed=done, figures=figures)

            yield update


def duration(seconds: float) -> str:
    """Formats seconds as h:mm:ss or m:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
