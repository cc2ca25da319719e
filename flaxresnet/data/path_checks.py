"""Checks a path before it is read."""

import stat
from pathlib import Path

from flaxresnet.runtime.errors import UserError


def require_regular_file(path: str | Path) -> None:
    """Raises UserError if the path is a pipe, a socket or a device, because reading one may block forever.

    Folders and missing files pass; opening them raises a more specific error.
    """
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(f"{path} is a pipe or a device; give a file that is stored on disk")
