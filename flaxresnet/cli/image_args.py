"""Photos on the command line: files, folders and patterns."""

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from glob import glob, has_magic
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from flaxresnet.classifier import Classifier
from flaxresnet.cli.parser import positional
from flaxresnet.config.train_config import CheckpointChoice
from flaxresnet.data.image_files import IMAGE_SUFFIXES, find_images
from flaxresnet.runs.run_dir import RunDir
from flaxresnet.runtime.errors import UserError, oserror_as_user_error
from flaxresnet.runtime.local_path import require_local

T = TypeVar("T")
U = TypeVar("U")
EXPLAINED = ".explained.png"  # suffix of the images that `explain` writes
OOD_MESSAGE = "out of distribution"  # printed beside a photo that the OOD score flags


def files_of(pattern: str) -> list[str]:
    """Returns the files that an argument names: a file, the images below a folder, or the matches of a glob pattern.

    Raises:
      UserError: the argument is a URL, the folder contains no images or cannot be read, or the pattern matches no file.
    """
    require_local(pattern)
    with oserror_as_user_error(pattern, "read"):
        if Path(pattern).is_dir():
            files = _images_in(pattern)
            if not files:
                raise UserError(f"{pattern} contains no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
            return files
        if not has_magic(pattern) or Path(pattern).exists():
            return [pattern]
        files = []
        for match in sorted(glob(pattern, recursive=True)):  # noqa: PTH207 - pathlib rejects absolute patterns
            files += _images_in(match) if Path(match).is_dir() else [match]
    if not files:
        raise UserError(f"{pattern} matches no file")
    return files


def _images_in(folder: str) -> list[str]:
    """Returns the sorted paths of the images below a folder, without those that `explain` wrote."""
    return sorted(path for path in find_images(folder) if not path.endswith(EXPLAINED))


@dataclass(frozen=True)
class ImageArguments:
    """A run and photos."""

    run: str = positional("RUN")
    """Run folder (the --workdir of training)."""

    photos: tuple[str, ...] = positional("PHOTO…")
    """Images of any size, folders of images, or patterns such as 'photos/*.jpg'."""

    checkpoint: CheckpointChoice = "latest"
    """Weights to use. latest: from the last epoch; best: from the epoch with the highest test accuracy."""

    top_k: int = 1
    """Number of classes to list per photo, most probable first. The table lists at least two; JSON and CSV also have
    the probabilities of all classes."""


def check(arguments: ImageArguments) -> None:
    """Raises UserError if no photo is given or `--top-k` is below 1."""
    if not arguments.photos:
        raise UserError("no photo given; name one or more images after the run folder")
    if arguments.top_k < 1:
        raise UserError(f"--top-k must be at least 1, not {arguments.top_k}")


def note_if_uncalibrated(classifier: Classifier, arguments: ImageArguments) -> None:
    """Prints a note with the command that calibrates the run, on standard error, if it has no calibration."""
    if classifier.calibration is not None:
        return
    command = f"flaxresnet report {shlex.quote(arguments.run)}"
    if RunDir(arguments.run).read_metadata().data["train_fingerprint"] is None:  # converted weights
        command += " --data PATH"
    weights = "the latest weights" if arguments.checkpoint == "best" else "it"
    print(
        f"note: {arguments.run} is not calibrated for these weights, so probabilities may be too high and no photo is "
        f"flagged as {OOD_MESSAGE}; `{command}` calibrates {weights}",
        file=sys.stderr,
    )


def most_probable(row: np.ndarray, count: int) -> np.ndarray:
    """Returns the indices of the `count` highest values in `row`, the (classes,) probabilities, highest first."""
    return np.argsort(-row, kind="stable")[:count]


class ImageReader(Generic[T]):
    """Reads photos in batches. Reports each unreadable file on standard error and skips it.

    Attributes:
      batches: iterator over lists of (file, photo), in order. It reads lazily, so that memory holds one batch.
      num_read: photos read so far.
      num_unreadable: arguments and files that failed so far.
    """

    def __init__(
        self,
        patterns: Iterable[str],
        load: Callable[[str], T],
        batch_size: int,
        select: Callable[[Iterable[str]], Iterable[str]] = iter,
    ) -> None:
        """Stores the arguments. Reading starts when `batches` is iterated.

        Args:
          patterns: arguments for `files_of`.
          load: reads one file; raises UserError if the file is unreadable.
          batch_size: number of photos per batch.
          select: selects the files to read from the paths of all files.
        """
        self.num_read = 0
        self.num_unreadable = 0
        self._patterns = patterns
        self._load = load
        self._select = select
        photos = self._photos()
        self.batches: Iterator[list[tuple[str, T]]] = iter(lambda: list(islice(photos, batch_size)), [])

    def _photos(self) -> Iterator[tuple[str, T]]:
        for file in self._select(self._files()):
            photo = self._try(self._load, file)
            if photo is not None:
                self.num_read += 1
                yield file, photo

    def _files(self) -> Iterator[str]:
        for pattern in self._patterns:
            yield from self._try(files_of, pattern) or ()

    def _try(self, function: Callable[[str], U], argument: str) -> U | None:
        """Returns `function(argument)`, or prints its UserError and returns None."""
        try:
            return function(argument)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            self.num_unreadable += 1
            return None

    def exit_status(self) -> int:
        """Returns 0 if nothing failed, 1 if some arguments or files failed, and 2 if no photo could be read."""
        if not self.num_unreadable:
            return 0
        return 1 if self.num_read else 2
