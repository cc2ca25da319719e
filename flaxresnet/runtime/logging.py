"""Log levels of other packages."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def log_errors_only(*names: str) -> Iterator[None]:
    """Suppresses the messages of the named loggers below ERROR within the `with` block."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
