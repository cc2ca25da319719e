"""The one error that means "the user can mend this": commands print it as a sentence and exit with status 2."""

from collections.abc import Collection
from itertools import islice

EXIT_USAGE = 2  # exit status after a mistake of the user


class UserError(ValueError):
    """A mistake in what the user gave: a path, a file, an option. Its text is one sentence saying what to do."""


def listed(words: Collection[object], most: int = 20) -> str:
    """The first of them, for a sentence: "a, b and 3 more"."""
    more = f" and {len(words) - most:,} more" if len(words) > most else ""
    return ", ".join(map(str, islice(words, most))) + more


class TrainingInterrupted(KeyboardInterrupt):
    """Training was told to stop, by Ctrl-C or SIGTERM, and has.

    Attributes:
      status: the exit status, as shells count: 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.status = 128 + number
