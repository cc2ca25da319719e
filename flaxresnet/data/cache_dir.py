"""What may be opened for reading: files that are stored, and nothing that is waited for; and keeping our own."""

import contextlib
import os
import stat
import uuid
from pathlib import Path

from flaxresnet.runtime.errors import UserError


def require_regular_file(path: str | Path) -> None:
    """Raises UserError where a pipe, a socket or a device is at the path: reading one may never end.

    Folders and what is missing pass; who opens them says what is wrong, each in its words.
    """
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(f"{path} is a pipe or a device; give a file that is stored on disk")


def cache_folder(name: str) -> Path:
    """A folder for what could be made again, in the user's cache folder; it need not be there."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - never raises
    return Path(home) / "flaxresnet" / name


def cache_write(path: Path, content: bytes) -> None:
    """Writes a file of a `cache_folder`, whole or not at all; where that cannot be, the next start takes as long."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(f".{uuid.uuid4().hex}")  # other processes may write theirs at the same time
        new.write_bytes(content)
        new.replace(path)
