"""The user's cache folder, for files that could be made again."""

import contextlib
import os
from pathlib import Path

from flaxresnet.runtime.atomic_io import replace_file


def cache_dir(name: str) -> Path:
    """Returns the path of a subfolder of the user's cache folder, which may not exist yet."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - never raises
    return Path(home) / "flaxresnet" / name


def cache_write(path: Path, content: bytes) -> None:
    """Writes a file below `cache_dir`. If that fails, the next start makes its content again."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as temporary:
            temporary.write_bytes(content)
