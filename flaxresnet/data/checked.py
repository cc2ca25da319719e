"""Labelled images without those that cannot be read, found before training begins.

Streamed images are all read once for that; a million pictures take minutes, so what was found is kept.
"""

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from flaxresnet.data.dataset import Dataset, Input, is_to_be_streamed
from flaxresnet.data.stored import StoredImages
from flaxresnet.errors import UserError, listed

MOST_NAMED = 5  # unreadable pictures in a sentence


def readable(
    source: str | Path, parts: Sequence[Dataset], skip_bad: float, input: Input
) -> tuple[list[Dataset | None], str]:
    """The data without what cannot be read, in memory or on disk.

    Args:
      source: where they come from, as words.
      parts: splits with `StoredImages` and an `identity`; any may be empty.
      skip_bad: the largest share of all that may be unreadable and are then left out, in [0, 1).
      input: as for `open_dataset`.

    Returns:
      The splits, None for those of which nothing is left, and words for what was left out: "" for nothing.

    Raises:
      UserError: the share cannot be or is exceeded, or memory was asked for that the machine has not.
    """
    if not 0 <= skip_bad < 1:
        raise UserError(f"--skip-bad must be at least 0 and below 1, not {skip_bad}")
    streamed = is_to_be_streamed(source, sum(part.images.nbytes for part in parts), input)
    found = [_readable(part, streamed) for part in parts]
    bad = [wrong for _, wrongs in found for wrong in wrongs]
    if len(bad) > skip_bad * (count := sum(map(len, parts))):
        advice = "mend or remove them, or give --skip-bad with the share that may be left out"
        raise UserError(
            f"{len(bad)} of {count} pictures in {source} cannot be read; {advice}: {listed(bad, MOST_NAMED)}"
        )
    return [part for part, _ in found], f"; left out {len(bad)} unreadable: {listed(bad, MOST_NAMED)}" if bad else ""


def _readable(part: Dataset, streamed: bool) -> tuple[Dataset | None, list[str]]:
    stored = part.images
    if not isinstance(stored, StoredImages) or part.identity is None:
        raise TypeError("only stored images with an identity can be looked through")
    images, bad = (stored, known_unreadable(stored, part.identity)) if streamed else stored.load()
    if bad:
        good = np.array([place for place in range(len(part)) if place not in bad], int)
        part, images = replace(part, labels=part.labels[good]), stored.only(good) if streamed else images[good]
    return replace(part, images=images) if len(images) else None, list(bad.values())


def known_unreadable(images: StoredImages, identity: str) -> dict[int, str]:
    """As `StoredImages.unreadable`, and kept in the user's cache folder for the next time.

    Args:
      images: what is read.
      identity: tells them from others; what was found counts as long as it stays the same.
    """
    known = _recall(path := _path(images, identity))
    # What was wrong may have been the network's fault, so that those pictures are read again.
    found = images.unreadable(None if known is None else [place for place in known if place < len(images)])
    if found != known:
        with contextlib.suppress(OSError):  # no cache: the next time takes as long
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_suffix(f".{uuid.uuid4().hex}")  # other processes may write theirs at the same time
            new.write_text(json.dumps(list(found.items())))
            new.replace(path)
    return found


def _path(images: StoredImages, identity: str) -> Path:
    name = hashlib.sha256(f"{images.location}\0{identity}\0{images.shape}".encode("utf-8", "surrogateescape"))
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - never raises
    return Path(home) / "flaxresnet" / "checked" / f"{name.hexdigest()}.json"


def _recall(path: Path) -> dict[int, str] | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return {int(place): str(wrong) for place, wrong in json.loads(path.read_text())}
    return None
