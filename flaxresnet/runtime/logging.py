"""Log levels of other packages."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


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
