"""The hand signs that are used where no data are given, kept once they are drawn: to draw them takes seconds."""

import contextlib
import hashlib
import io
from pathlib import Path

import numpy as np

from flaxresnet.data.dataset import Splits
from flaxresnet.data.hand_signs import hand_model, render
from flaxresnet.runtime.cache_dir import cache_dir, cache_write

MAX_FILES = 6  # two for each version of the drawing; some 15 MB


def load_default_signs() -> Splits:
    """`hand_signs()`, from the user's cache folder where an earlier start left them."""
    return render.hand_signs(draw=_kept_or_drawn)


def _kept_or_drawn(
    count: int, seed: int | tuple[int, ...], image_size: int, variety: float
) -> tuple[np.ndarray, np.ndarray]:
    """As `render_signs`."""
    path = _path(count, seed, image_size, variety)
    if path is None:
        return render.render_signs(count, seed, image_size, variety)
    if (kept := _load_cached(path)) and len(kept[0]) == count:
        return kept
    images, labels = render.render_signs(count, seed, image_size, variety)
    np.savez(content := io.BytesIO(), images=images, labels=labels)
    cache_write(path, content.getvalue())
    with contextlib.suppress(OSError):  # another process may forget the same
        for old in sorted(path.parent.iterdir(), key=lambda file: file.stat().st_mtime)[:-MAX_FILES]:
            old.unlink()
    return images, labels


def _load_cached(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    try:
        with np.load(path, allow_pickle=False) as file:  # a zip archive, whose checksums tell damage
            return file["images"], file["labels"]
    except Exception:  # not there, or damaged, of which NumPy and zipfile have many kinds: drawn again
        return None


def _path(*what: object) -> Path | None:
    """Returns the file for these arguments and the program as it is; None if its source cannot be read."""
    try:
        program = [Path(module.__file__ or "").read_bytes() for module in (render, hand_model)]
    except OSError:  # as in a zip archive
        return None
    digest = hashlib.sha256(repr((np.__version__, program, what)).encode())
    return cache_dir("drawn") / f"{digest.hexdigest()}.npz"
