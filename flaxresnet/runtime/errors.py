"""Errors that commands print as one sentence, and their exit statuses."""

import contextlib
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path

EXIT_USAGE = 2  # exit status after a UserError


class UserError(ValueError):
    """An error that the user can fix: an invalid path, file or option.

    The text is one sentence that names the value and the remedy. Commands print it and exit with status `EXIT_USAGE`.
    """


class TrainingInterrupted(KeyboardInterrupt):
    """Training stopped after Ctrl-C, SIGTERM or SIGHUP.

    Attributes:
      status: the exit status in the shells' convention: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP.
    """

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.status = 128 + number


@contextlib.contextmanager
def oserror_as_user_error(subject: str | Path, action: str = "written") -> Iterator[None]:
    """Turns an OSError into a UserError: "SUBJECT cannot be ACTION: reason".

    Args:
      subject: the path, or a flag with its path.
      action: the failed action as a past participle, such as "read".
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{subject} cannot be {action}: {error.strerror or error}") from error


def listed(items: Collection[object], max_items: int = 20) -> str:
    """Returns the first items for a sentence: "a, b and 3 more"."""
    text = ", ".join(map(str, islice(items, max_items)))
    omitted = len(items) - max_items
    return f"{text} and {omitted:,} more" if omitted > 0 else text
