"""Finds unreadable images in a dataset before training starts, and hashes the files of all readable ones.

If the images are streamed, each process of a run reads a part of them, and the result is cached, because reading a
million images takes minutes.
"""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_CEILING, Context
from pathlib import Path

import numpy as np

from flaxresnet.data.dataset import Dataset
from flaxresnet.data.lazy_images import ContentHash, EncodedImages, LazyImages
from flaxresnet.data.read_options import ReadOptions
from flaxresnet.data.should_stream import should_stream
from flaxresnet.runtime.cache_dir import cache_dir, cache_write
from flaxresnet.runtime.errors import UserError, listed
from flaxresnet.runtime.process_group import SINGLE_PROCESS, ProcessGroup

MAX_NAMED = 5  # unreadable images that a message names
# Rounds to two significant digits, upward, so that the fraction in a message is large enough.
ROUND_UP = Context(prec=2, rounding=ROUND_CEILING)


def drop_unreadable(
    source: str | Path, splits: Sequence[Dataset], options: ReadOptions
) -> tuple[list[Dataset | None], str]:
    """Removes unreadable images, and reads the readable ones into memory unless they are streamed.

    Collective: an image that one process cannot read is removed in all of them.

    Args:
      source: path of the dataset, for messages.
      splits: datasets with `LazyImages`, possibly empty.
      options: streaming, and the fraction of unreadable images to skip.

    Returns:
      The splits, None for those without a readable image, and a note on the skipped images for `Splits.source`: "" if
      there are none.

    Raises:
      UserError: if more than `options.max_corrupt_fraction` of the images are unreadable, or the images do not fit in
        memory.
    """
    streamed = should_stream(source, sum(split.images.nbytes for split in splits), options)
    readable: list[Dataset | None] = []
    messages: list[str] = []
    for split in splits:
        dataset, errors = _drop_unreadable(split, streamed, options)
        readable.append(dataset if len(dataset) else None)
        messages += errors.values()
    if not messages:
        return readable, ""
    count = sum(map(len, splits))
    if len(messages) / count > options.max_corrupt_fraction:
        remedy = "repair or remove them"
        fraction = ROUND_UP.divide(len(messages), count)
        if fraction < 1:
            remedy += f", or give --max-corrupt-fraction {fraction:f} to skip them"
        lines = [f"{len(messages):,} of {count:,} images in {source} cannot be read; {remedy}:", *messages[:MAX_NAMED]]
        if len(messages) > MAX_NAMED:
            lines.append(f"and {len(messages) - MAX_NAMED:,} more")
        raise UserError("\n  ".join(lines))
    return readable, f"; skipped {len(messages):,} unreadable: {listed(messages, MAX_NAMED)}"


def _drop_unreadable(split: Dataset, streamed: bool, options: ReadOptions) -> tuple[Dataset, dict[int, str]]:
    """Returns the readable images of a split, and the error message of each unreadable one by index."""
    lazy = split.images
    if not isinstance(lazy, LazyImages):
        raise TypeError(f"images in memory are not scanned; give LazyImages, not {type(lazy).__name__}")
    images: np.ndarray | LazyImages = lazy
    if streamed:
        result = scan(lazy, f"{split.identity} {lazy.mtime_key()}", options.processes, options.rescan)
    else:
        images, result = _load(lazy, options.processes)
    labels = split.labels
    if result.errors:
        readable = np.delete(np.arange(len(split)), list(result.errors))
        labels = labels[readable]
        images = lazy.take(readable) if streamed else images[readable]
    contents = f"{result.contents:064x}" if isinstance(lazy, EncodedImages) else split.contents
    return replace(split, images=images, labels=labels, contents=contents), result.errors


@dataclass(frozen=True)
class ScanResult:
    """The result of reading images.

    Attributes:
      errors: dict from the index of each unreadable image to the error message.
      contents: `ContentHash.total` of the readable images; 0 if the images are not stored one by one.
    """

    errors: dict[int, str] = field(default_factory=dict)
    contents: int = 0


def _load(images: LazyImages, processes: ProcessGroup) -> tuple[np.ndarray, ScanResult]:
    """Reads all images into memory, in every process."""
    content_hash = ContentHash()
    loaded, own_errors = images.with_hashing(content_hash).load()
    errors = _gather_errors(own_errors, processes)
    if isinstance(images, EncodedImages):
        for index in errors.keys() - own_errors.keys():
            content_hash.add(index, images.encoded(index), sign=-1)
    return loaded, ScanResult(errors, content_hash.total)


def scan(
    images: LazyImages, identity: str, processes: ProcessGroup = SINGLE_PROCESS, rescan: bool = False
) -> ScanResult:
    """Reads every image once to find the unreadable ones. Collective; caches the result in the user's cache folder.

    Args:
      images: the images to read.
      identity: the cached result is valid as long as this string, the location and the shape stay the same.
      processes: each process reads a part of the images.
      rescan: read all images again, and ignore the cached result.
    """
    path = _cache_path(images, identity)
    cached = None if rescan else _load_cached(path)
    # All processes need the same cached result: `contents` is a sum over all of them.
    if len(set(processes.gather(hex(cached.contents) if cached else None))) > 1:
        cached = None
    unread = processes.local_indices(len(images))
    known_contents = 0
    if cached:
        # An earlier error may have been temporary, as on a network drive, so these images are read again.
        unread = unread[np.isin(unread, list(cached.errors))]
        known_contents = cached.contents
    content_hash = ContentHash()
    errors = _gather_errors(images.with_hashing(content_hash).read_errors(unread.tolist()), processes)
    new_contents = sum(int(total, 16) for total in processes.gather(hex(content_hash.total)))
    result = ScanResult(errors, (known_contents + new_contents) % ContentHash.MODULUS)
    if result != cached:
        cache_write(path, json.dumps({"bad": list(errors.items()), "contents": result.contents}).encode())
    return result


def _gather_errors(own_errors: dict[int, str], processes: ProcessGroup) -> dict[int, str]:
    """Returns the errors of all processes, sorted by index. Collective."""
    errors: dict[int, str] = {}
    for items in processes.gather(list(own_errors.items())):
        errors.update(items)
    return dict(sorted(errors.items()))


def _cache_path(images: LazyImages, identity: str) -> Path:
    key = f"{images.location}\0{identity}\0{images.shape}".encode("utf-8", "surrogateescape")
    return cache_dir("checked") / f"{hashlib.sha256(key).hexdigest()}.json"


def _load_cached(path: Path) -> ScanResult | None:
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # missing, damaged, or of an older version
        stored = json.loads(path.read_text())
        errors = {int(index): str(message) for index, message in stored["bad"]}
        return ScanResult(errors, int(stored["contents"]))
    return None
