"""Caches the images of the default dataset of hand signs, because drawing them takes seconds."""

import contextlib
import hashlib
import io
from pathlib import Path

import numpy as np

from flaxresnet.data.dataset import Splits
from flaxresnet.data.hand_signs import hand_model, render
from flaxresnet.runtime.cache_dir import cache_dir, cache_write

MAX_FILES = 6  # two splits of three versions of the code; about 44 MB in all


def load_default_signs() -> Splits:
    """Returns the splits of `hand_signs()`; reads them from the user's cache folder if an earlier call stored them."""
    return render.hand_signs(draw=_load_or_draw)


def _load_or_draw(
    count: int, seed: int | tuple[int, ...], image_size: int, variety: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the arrays of `render_signs`, from the cache if possible. Deletes the oldest files in the cache."""
    path = _cache_path(count, seed, image_size, variety)
    if path is None:
        return render.render_signs(count, seed, image_size, variety)
    cached = _load_cached(path)
    if cached is not None:
        return cached
    images, labels = render.render_signs(count, seed, image_size, variety)
    content = io.BytesIO()
    np.savez(content, images=images, labels=labels)
    cache_write(path, content.getvalue())
    with contextlib.suppress(OSError):  # another process deletes the same file, or the cache folder cannot be written
        for old in sorted(path.parent.iterdir(), key=lambda file: file.stat().st_mtime)[:-MAX_FILES]:
            old.unlink()
    return images, labels


def _load_cached(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    try:
        with np.load(path, allow_pickle=False) as file:  # a zip archive, whose checksums reveal damage
            return file["images"], file["labels"]
    except Exception:  # missing or damaged; NumPy and zipfile raise many types of exceptions
        return None


def _cache_path(*arguments: object) -> Path | None:
    """Returns the file for these arguments and this code; None if the code cannot be read, as in a zip archive."""
    try:
        source = [Path(module.__file__ or "").read_bytes() for module in (render, hand_model)]
    except OSError:
        return None
    digest = hashlib.sha256(repr((np.__version__, source, arguments)).encode())
    return cache_dir("drawn") / f"{digest.hexdigest()}.npz"
