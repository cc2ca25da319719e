"""The user's cache folder, for files that can be recomputed."""

import contextlib
import os
from pathlib import Path

from flaxresnet.runtime.atomic_io import atomic_write
from flaxresnet.runtime.errors import UserError


def cache_dir(name: str) -> Path:
    """Returns the path of a subfolder of the user's cache folder, which may not exist yet."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - never raises
    return Path(home) / "flaxresnet" / name


def cache_write(path: Path, content: bytes) -> None:
    """Writes a file below `cache_dir`. Ignores a failure, after which the next start recomputes the content."""
    with contextlib.suppress(OSError, UserError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
