"""Labelled images without those that cannot be read, found before training begins, and what their files hold.

Streamed images are all read once for that, by all processes together; a million pictures take minutes, so what was
found is kept.
"""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from flaxresnet.data.dataset import Dataset
from flaxresnet.data.lazy_images import ContentHash, EncodedImages, LazyImages
from flaxresnet.data.read_options import ReadOptions
from flaxresnet.data.should_stream import should_stream
from flaxresnet.runtime.cache_dir import cache_dir, cache_write
from flaxresnet.runtime.errors import UserError, listed
from flaxresnet.runtime.process_group import SINGLE_PROCESS, ProcessGroup

MAX_NAMED = 5  # unreadable pictures in a sentence


def drop_unreadable(
    source: str | Path, parts: Sequence[Dataset], options: ReadOptions
) -> tuple[list[Dataset | None], str]:
    """The data without what cannot be read, in memory or on disk.

    Args:
      source: where they come from, as words.
      parts: splits with `LazyImages`; any may be empty.
      options: streaming, and the handling of unreadable images. An image that one process cannot read, none uses.

    Returns:
      The splits, None for those of which nothing is left, and words for what was left out: "" for nothing.

    Raises:
      UserError: the share cannot be or is exceeded, or memory was asked for that the machine has not.
    """
    streamed = should_stream(source, sum(part.images.nbytes for part in parts), options)
    found = [_readable(part, streamed, options) for part in parts]
    bad = [wrong for _, wrongs in found for wrong in wrongs]
    if len(bad) > options.max_corrupt_fraction * (count := sum(map(len, parts))):
        advice = "mend or remove them, or give --max-corrupt-fraction with the share that may be left out"
        raise UserError(
            f"{len(bad)} of {count} pictures in {source} cannot be read; {advice}: {listed(bad, MAX_NAMED)}"
        )
    return [part for part, _ in found], f"; left out {len(bad)} unreadable: {listed(bad, MAX_NAMED)}" if bad else ""


def _readable(part: Dataset, streamed: bool, options: ReadOptions) -> tuple[Dataset | None, list[str]]:
    stored = part.images
    if not isinstance(stored, LazyImages):
        raise TypeError("only stored images can be looked through")
    images: np.ndarray | LazyImages = stored
    if streamed:
        looked = scan(stored, f"{part.identity} {stored.state()}", options.processes, options.rescan)
    else:
        images, looked = _load(stored, options.processes)
    if isinstance(stored, EncodedImages):
        part = replace(part, contents=f"{looked.contents:064x}")
    if bad := looked.bad:
        good = np.array([place for place in range(len(part)) if place not in bad], int)
        part, images = replace(part, labels=part.labels[good]), stored.only(good) if streamed else images[good]
    return replace(part, images=images) if len(images) else None, list(bad.values())


@dataclass(frozen=True)
class ScanResult:
    """What was found by reading images.

    Attributes:
      bad: place → what is wrong with the image there.
      contents: of all others, as `ContentHash.total` has it.
    """

    bad: dict[int, str] = field(default_factory=dict)
    contents: int = 0


def _load(images: LazyImages, processes: ProcessGroup) -> tuple[np.ndarray, ScanResult]:
    """All images in memory, and what all processes found, of which each reads all."""
    contents = ContentHash()
    loaded, mine = images.with_hashing(contents).load()
    bad = _of_all(mine, processes)
    if isinstance(images, EncodedImages):
        for place in bad.keys() - mine.keys():
            contents.add(place, images.encoded(place), times=-1)
    return loaded, ScanResult(bad, contents.total)


def scan(
    images: LazyImages, identity: str, processes: ProcessGroup = SINGLE_PROCESS, rescan: bool = False
) -> ScanResult:
    """What all processes find together, kept in the user's cache folder for the next time.

    Args:
      images: what is read.
      identity: tells them from others; what was found counts as long as it stays the same.
      processes: each reads its share.
      rescan: read all, whatever is known.
    """
    path, mine = _path(images, identity), processes.local_indices(len(images))
    known = None if rescan else _load_cached(path)
    if len({*processes.gather(hex(known.contents) if known else None)}) > 1:
        known = None  # a sum of what some recall and others read would be of some pictures twice
    # What was wrong may have been the network's fault, so that those pictures are read again.
    again = mine if known is None else mine[np.isin(mine, list(known.bad))]
    contents = ContentHash()
    bad = _of_all(images.with_hashing(contents).unreadable(again.tolist()), processes)
    more = sum(int(one, 16) for one in processes.gather(hex(contents.total)))
    found = ScanResult(bad, ((known.contents if known else 0) + more) % ContentHash.MODULUS)
    if found != known:
        cache_write(path, json.dumps({"bad": list(found.bad.items()), "contents": found.contents}).encode())
    return found


def _of_all(mine: dict[int, str], processes: ProcessGroup) -> dict[int, str]:
    """Place → what is wrong, as any of the processes found it."""
    return dict(sorted((place, wrong) for some in processes.gather(list(mine.items())) for place, wrong in some))


def _path(images: LazyImages, identity: str) -> Path:
    name = hashlib.sha256(f"{images.location}\0{identity}\0{images.shape}".encode("utf-8", "surrogateescape"))
    return cache_dir("checked") / f"{name.hexdigest()}.json"


def _load_cached(path: Path) -> ScanResult | None:
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # those of before had no contents
        said = json.loads(path.read_text())
        return ScanResult({int(place): str(wrong) for place, wrong in said["bad"]}, int(said["contents"]))
    return None
