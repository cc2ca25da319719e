"""Photos as the command line names them: files, folders and patterns."""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from glob import glob, has_magic
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from flaxresnet.cli.parser import positional
from flaxresnet.config.train_config import CheckpointChoice
from flaxresnet.data.image_folder import IMAGE_SUFFIXES
from flaxresnet.runtime.errors import UserError, oserror_as_user_error

T = TypeVar("T")
U = TypeVar("U")
EXPLAINED = ".explained.png"  # how the names of `explain`'s pictures end
OOD_MESSAGE = "unlike the training images"  # printed for a photo that is out-of-distribution


def files_of(word: str) -> list[str]:
    """The file that is named, the pictures in a folder and those below it, or what a pattern stands for.

    Raises:
      UserError: the folder holds no picture, the pattern stands for nothing, or there may be no looking.
    """
    with oserror_as_user_error(word, "read"):
        if Path(word).is_dir():
            found, wrong = _pictures_in(word), f"holds no picture ({', '.join(sorted(IMAGE_SUFFIXES))})"
        elif has_magic(word) and not Path(word).exists():
            matches = sorted(glob(word, recursive=True))  # noqa: PTH207 - Path's wants no absolute
            found = [file for match in matches for file in (_pictures_in(match) if Path(match).is_dir() else [match])]
            wrong = "stands for no file"
        else:
            return [word]
    if not found:
        raise UserError(f"{word} {wrong}")
    return found


def _pictures_in(folder: str) -> list[str]:
    paths = (path for path in Path(folder).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    return sorted(str(path) for path in paths if not path.name.endswith(EXPLAINED))


@dataclass(frozen=True)
class ImageArguments:
    """Which run, which photos."""

    run: str = positional("RUN")
    """Folder of the run (train.py's --workdir)."""

    photos: tuple[str, ...] = positional("PHOTO…")
    """Pictures of any size, folders of pictures, or patterns such as 'photos/*.jpg'."""

    checkpoint: CheckpointChoice = "latest"
    """The weights after the last epoch, or those that were best on the test images."""

    top_k: int = 1
    """How many classes to name, the most probable first."""


def check(arguments: ImageArguments) -> None:
    """Raises UserError where there is nothing to do."""
    if not arguments.photos:
        raise UserError("no photo given; name one or more pictures after the run's folder")
    if arguments.top_k < 1:
        raise UserError(f"--top-k must be at least 1, not {arguments.top_k}")


def most_probable(row: np.ndarray, count: int) -> np.ndarray:
    """(classes,) probabilities → the indices of the highest, the highest first."""
    return np.argsort(-row, kind="stable")[:count]


class ImageReader(Generic[T]):
    """Photos, some at a time; what cannot be read is named on standard error and left out.

    Attributes:
      batches: lists of (file, photo), in order; one photo after the other is read, and no more than a list's are held.
    """

    def __init__(
        self,
        words: Iterable[str],
        load: Callable[[str], T],
        batch: int,
        some: Callable[[Iterable[str]], Iterable[str]] = iter,
    ) -> None:
        """Reads the files of each word (`files_of`) with `load`, which raises UserError, `batch` at a time.

        Of all files those are read that `some` makes of them.
        """
        self._read = self._unread = 0
        files = (file for word in words for file in self._tried(files_of, word) or ())
        photos = ((file, self._tried(load, file)) for file in some(files))
        read = ((file, photo) for file, photo in photos if photo is not None)
        self.batches: Iterator[list[tuple[str, T]]] = iter(lambda: self._counted(list(islice(read, batch))), [])

    def _tried(self, function: Callable[[str], U], word: str) -> U | None:
        try:
            return function(word)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            self._unread += 1
            return None

    def _counted(self, batch: list[tuple[str, T]]) -> list[tuple[str, T]]:
        self._read += len(batch)
        return batch

    def status(self) -> int:
        """Nothing readable is the user's mistake; something unreadable is a job partly done."""
        return 0 if not self._unread else 1 if self._read else 2
