"""What other packages log while they do what was asked, and nobody can act on, is left unsaid."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def log_errors_only(*loggers: str) -> Iterator[None]:
    """Within, the named loggers say nothing that is less than an error."""
    before = [(logger, logger.level) for logger in map(logging.getLogger, loggers)]
    for logger, _ in before:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in before:
            logger.setLevel(level)
