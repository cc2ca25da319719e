"""Log levels of other packages."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def log_errors_only(*names: str) -> Iterator[None]:
    """Suppresses the messages of the named loggers below ERROR within the `with` block."""
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def drop_orbax_errors() -> None:
    """Suppresses Orbax's log of errors: hundreds of lines for a full disk, in threads that outlive the save.

    Orbax raises the same errors, and `checkpoint_write_errors` turns them into one sentence.
    """
    logging.getLogger("absl").addFilter(_is_not_of_orbax)


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR or "orbax" not in Path(record.pathname).parts
