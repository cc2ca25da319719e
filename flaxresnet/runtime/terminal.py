"""Terminal output that commands share: a spinner for slow phases and aligned tables."""

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner

MAX_CLASSES = 50  # rows of `class_counts`

_messages: list[str] = []  # of the active `status` blocks, the innermost last
_spinner: Spinner | None = None


@contextmanager
def status(message: str, terminal_only: bool = False) -> Iterator[None]:
    """Shows on standard error that a slow phase runs, within the `with` block.

    A terminal shows a spinner beside the message, and removes both at the end. Otherwise the message is one plain line.
    A nested block replaces the message of the outer one until it ends.

    Args:
      message: a short sentence that names the phase, such as "Loading the run…".
      terminal_only: print nothing if standard error is not a terminal.
    """
    global _spinner
    console = Console(stderr=True)
    if not console.is_terminal:
        if not terminal_only:
            print(message, file=sys.stderr, flush=True)
        yield
        return
    _messages.append(message)
    try:
        if _spinner is not None:
            _spinner.update(text=message)
            yield
            return
        _spinner = Spinner("dots", text=message)
        # Rich would redirect a piped standard output to the terminal.
        with Live(_spinner, console=console, transient=True, redirect_stdout=sys.stdout.isatty()):
            yield
    finally:
        _messages.pop()
        if not _messages:
            _spinner = None
        elif _spinner is not None:
            _spinner.update(text=_messages[-1])


def align(rows: Sequence[Sequence[str]], right: Sequence[int] = (), indent: str = "") -> list[str]:
    """Returns one line per row, with aligned columns that are two spaces apart.

    Args:
      rows: cells of the table; a row may have fewer cells than others.
      right: indices of the columns to align at the right.
      indent: text before each line.
    """
    num_columns = max((len(row) for row in rows), default=0)
    widths = [0] * num_columns
    for row in rows:
        for column, cell in enumerate(row):
            widths[column] = max(widths[column], cell_len(cell))
    lines = []
    for row in rows:
        cells = []
        for column, cell in enumerate(row):
            padding = " " * (widths[column] - cell_len(cell))
            cells.append(padding + cell if column in right else cell + padding)
        lines.append((indent + "  ".join(cells)).rstrip())
    return lines


def ellipsize(text: str, width: int) -> str:
    """Returns the text, cut to `width` terminal columns with a final "…" if it is wider."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, width - 1) + "…"


def class_counts(names: Sequence[str], counts: Mapping[str, Sequence[int]]) -> str:
    """Returns a table of the images of each class, one class a line, such as "  cat  120  30".

    Args:
      names: the class names.
      counts: column heading, such as "train" → number of images of each class.
    """
    rows = [["class", *counts]]
    for index, name in enumerate(names[:MAX_CLASSES]):
        rows.append([name, *(f"{column[index]:,}" for column in counts.values())])
    lines = align(rows, right=range(1, len(counts) + 1), indent="  ")
    if len(names) > MAX_CLASSES:
        lines.append(f"  … and {len(names) - MAX_CLASSES:,} more classes")
    return "\n".join(lines)


def next_command(*words: object) -> str:
    """Returns the last line of a command, which suggests another one: "next: flaxresnet train --data signs"."""
    return f"next: {shlex.join(map(str, words))}"
