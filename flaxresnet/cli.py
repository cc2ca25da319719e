"""Command lines: flags from a dataclass, and a user's mistake as one sentence with exit status 2."""

import contextlib
import io
import re
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from flaxresnet.errors import UserError

T = TypeVar("T")

MISTAKE = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells count


def parse(arguments: type[T], argv: Sequence[str], prog: str) -> T:
    """An instance of the dataclass `arguments` from flags; its docstrings are the help texts.

    Raises:
      UserError: a flag is unknown or its value does not fit.
      SystemExit: `--help` was asked for and printed.
    """
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(arguments, args=list(argv), prog=prog)
    except SystemExit as stop:
        if stop.code == MISTAKE:
            raise UserError(f"{_sentence(said.getvalue())}; see `{prog} --help`") from None
        sys.stderr.write(said.getvalue())
        raise


def run(main: Callable[[], int]) -> int:
    """The exit status of `main`, with the user's mistakes and Ctrl-C turned into a sentence on standard error."""
    try:
        return main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("interrupted; what had been written is kept", file=sys.stderr)
        return INTERRUPTED


def _sentence(box: str) -> str:
    """The first paragraph of the box that tyro draws around an error, on one line."""
    lines = [line.strip("│ ") for line in box.splitlines() if line.startswith("│")]
    paragraph = []
    for line in lines:
        if set(line) <= {"─"}:
            break
        paragraph.append(line)
    return re.sub(r"^Error parsing \w+: ", "", " ".join(paragraph)).rstrip(". ")
