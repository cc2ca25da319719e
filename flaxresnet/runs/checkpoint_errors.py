"""Errors of reading and writing checkpoints. Orbax may raise an exception of any type."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from flaxresnet.runtime.errors import UserError

# Errors of the system, which do not mean that the file is corrupt.
TRANSIENT_ERRNOS = (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
DISK_FULL_MESSAGES = ("No space left on device", "File too large", "Disk quota exceeded")


class CorruptCheckpointError(UserError):
    """The checkpoint's content is not the content that was written. An earlier checkpoint may be intact."""


@contextlib.contextmanager
def checkpoint_read_errors(path: Path) -> Iterator[None]:
    """Turns an exception into a UserError that names the checkpoint.

    The UserError is a `CorruptCheckpointError` unless the system denies access or lacks resources. Errors of exhausted
    memory pass through unchanged.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise
        is_transient = isinstance(error, OSError) and error.errno in TRANSIENT_ERRNOS
        error_type = UserError if is_transient else CorruptCheckpointError
        raise error_type(f"checkpoint {path} cannot be restored: {short_reason(error)}") from error


@contextlib.contextmanager
def checkpoint_write_errors(path: Path) -> Iterator[None]:
    """Turns an exception, such as one for a full disk, into a UserError that names the folder."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        remedy = "the earlier checkpoints are intact, and the same command resumes from them"
        raise UserError(f"{path} cannot be written ({short_reason(error)}); {remedy}") from error


def short_reason(error: Exception) -> str:
    """Returns an error's reason in one line. Orbax mentions a full disk deep in the text."""
    text = str(error).strip() or type(error).__name__
    for message in DISK_FULL_MESSAGES:
        if message in text:
            return message
    return text.splitlines()[0]
