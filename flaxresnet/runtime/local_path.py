"""Refusal of URLs, which `Path` would turn into local folders such as `gs:`."""

import re
from pathlib import Path

from flaxresnet.runtime.errors import UserError

URL = re.compile(r"[A-Za-z][\w+.-]+:/")  # `Path` shortens "gs://" to "gs:/"; a drive such as C:/ has one letter


def is_url(path: str | Path) -> bool:
    """Returns whether a path is a URL, such as "gs://bucket/run", or names another machine, such as "host:/run"."""
    return URL.match(str(path)) is not None


def require_local(path: str | Path) -> None:
    """Raises UserError if the path is a URL."""
    if is_url(path):
        raise UserError(f"{path} is not on a local disk; mount the storage, or copy its files, and give that path")
