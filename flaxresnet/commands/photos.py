"""Photos as the command line names them: files, folders and patterns."""

import sys
from collections.abc import Callable, Iterable, Iterator
from glob import glob, has_magic
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar

from flaxresnet.errors import UserError

T = TypeVar("T")
ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".jp2"}


def photos_of(words: Iterable[str]) -> Iterator[str]:
    """The files: those that are named, the pictures in a folder and those below it, and what a pattern stands for.

    Raises:
      UserError: a folder holds no picture, or a pattern stands for nothing.
    """
    for word in words:
        if Path(word).is_dir():
            found = sorted(str(path) for path in Path(word).rglob("*") if path.suffix.lower() in ENDINGS)
            if not found:
                raise UserError(f"{word} holds no picture ({', '.join(sorted(ENDINGS))})")
            yield from found
        elif has_magic(word) and not Path(word).exists():
            if not (found := sorted(glob(word, recursive=True))):  # noqa: PTH207 - Path's takes no absolute pattern
                raise UserError(f"{word} stands for no file")
            yield from found
        else:
            yield word


class Reader(Generic[T]):
    """Photos, some at a time; those that cannot be read are named on standard error and left out.

    Attributes:
      batches: lists of (file, photo), in order; one photo after the other is read, and no more than a list's are held.
    """

    def __init__(self, words: Iterable[str], load: Callable[[str], T], batch: int) -> None:
        """Reads what `photos_of(words)` names with `load`, which raises UserError, `batch` at a time."""
        self.read = self.unread = 0
        photos = self._photos(words, load)
        self.batches = iter(lambda: list(islice(photos, batch)), [])

    def _photos(self, words: Iterable[str], load: Callable[[str], T]) -> Iterator[tuple[str, T]]:
        for name in photos_of(words):
            try:
                photo = load(name)
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                self.unread += 1
                continue
            self.read += 1
            yield name, photo

    def status(self) -> int:
        """All unreadable is the user's mistake; some unreadable is a job partly done."""
        return 0 if not self.unread else 1 if self.read else 2
