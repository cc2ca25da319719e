"""Atomic replacement of files."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from flaxresnet.runtime.errors import oserror_as_user_error
from flaxresnet.runtime.local_path import require_local


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yields the path of a temporary file beside `path`, which replaces `path` if the `with` block succeeds.

    Readers see either the old content or the new content, also after a crash or a power failure.

    Raises:
      UserError: the path is a URL, or the folder or the file cannot be written.
    """
    require_local(path)
    path = Path(path)
    with oserror_as_user_error(path):
        handle, name = tempfile.mkstemp(prefix=path.name + ".", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())  # without it, a power failure could leave the new name with no content
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
