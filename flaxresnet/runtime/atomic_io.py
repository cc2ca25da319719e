"""Writing files: whole or not at all, and a full disk or a missing permission as a sentence."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from flaxresnet.runtime.errors import UserError


@contextlib.contextmanager
def oserror_as_user_error(path: str | Path) -> Iterator[None]:
    """Turns an OSError into a UserError that names the path."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yields a temporary file beside `path`, which takes its place at the end, or is deleted if that fails.

    A reader sees the old content or the new one, never a part.
    """
    handle, name = tempfile.mkstemp(prefix=path.name + ".", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())  # or a power cut could leave the new name with nothing in it
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Replaces a file as `replace_file` does. Turns an OSError into a UserError that names the path."""
    with oserror_as_user_error(path), replace_file(Path(path)) as temporary:
        yield temporary
