"""The one error that means "the user can mend this": commands print it as a sentence and exit with status 2."""

from collections.abc import Collection
from itertools import islice


class UserError(ValueError):
    """A mistake in what the user gave: a path, a file, an option. Its text is one sentence saying what to do."""


def listed(words: Collection[object], most: int = 20) -> str:
    """The first of them, for a sentence: "a, b and 3 more"."""
    more = f" and {len(words) - most:,} more" if len(words) > most else ""
    return ", ".join(map(str, islice(words, most))) + more
