"""The directory of a run: its metadata file `config.json`, its metrics file `metrics.jsonl`, and its subfolders."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

from flaxresnet.runs.lock import WorkdirLock
from flaxresnet.runs.metadata import FORMAT, RunMetadata
from flaxresnet.runs.schema import RUN, is_metrics_row, require
from flaxresnet.runtime.atomic_io import atomic_write
from flaxresnet.runtime.errors import UserError, oserror_as_user_error
from flaxresnet.runtime.local_path import require_local


class RunFormatError(UserError):
    """Another version of the package wrote the run, in a format that this version does not read."""


class RunDir:
    """Reads and writes the files of a run, except for the content of its checkpoints.

    Attributes:
      path: the run's folder, which need not exist yet.
      checkpoints: the subfolder of the checkpoints after each epoch.
      mid_epoch: the subfolder of the checkpoint within an epoch.
    """

    def __init__(self, path: str | Path) -> None:
        """Prepares access to a run's folder; raises UserError if the path is a URL."""
        require_local(path)
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.mid_epoch = self.path / "mid_epoch"
        self._config = self.path / "config.json"
        self._metrics = self.path / "metrics.jsonl"
        self._flag = f"--workdir {self.path}"

    def exists(self) -> bool:
        """Returns whether the folder holds a `config.json`; raises UserError if it may not be read."""
        with oserror_as_user_error(self.path, "read"):
            return self._config.exists()

    def has_checkpoints(self) -> bool:
        """Returns whether the folder holds any checkpoints, intact or not."""
        folders = (self.checkpoints, self.mid_epoch)
        return any(folder.is_dir() and any(folder.iterdir()) for folder in folders)

    def has_progress(self) -> bool:
        """Returns whether training wrote checkpoints or metrics.

        A start that fails before its first step leaves only `config.json`.
        """
        return self.has_checkpoints() or any(line.strip() for line in self._metrics_lines())

    def create(self, info: RunMetadata) -> None:
        """Creates the folder and its files, and writes `config.json`; raises UserError if that fails."""
        with oserror_as_user_error(self._flag):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            probe = self.checkpoints / ".writable"
            probe.touch()
            probe.unlink()
            self._metrics.touch()
        with atomic_write(self._config) as temporary:
            temporary.write_text(json.dumps(info.to_json(), indent=2) + "\n")

    def lock(self, lock: WorkdirLock) -> None:
        """Creates the folder if necessary, and locks it; raises UserError if it is in use or not writable."""
        with oserror_as_user_error(self._flag):
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(self.path)

    # ---- config.json

    def read_metadata(self) -> RunMetadata:
        """Reads `config.json`.

        Raises:
          RunFormatError: the file has another version's format.
          UserError: the file is missing, damaged, or describes an invalid run.
        """
        if not self.exists():
            raise UserError(f"{self.path} holds no run (no config.json); give the --workdir of a finished training")
        try:
            values = json.loads(self._config.read_text())
            require(values, {"format": RUN["format"]})  # first, because another format may have other fields
            if values["format"] != FORMAT:
                raise RunFormatError(
                    f"it has format {values['format']}, and this version reads format {FORMAT}; train again with "
                    "another --workdir, or use the version that wrote it"
                )
            return RunMetadata.from_json(values)
        except UserError as error:
            raise type(error)(f"{self._config}: {error}") from error
        # Deeply nested brackets raise RecursionError.
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{self._config} is damaged ({type(error).__name__}: {error}); restore it") from error

    def has_other_format(self) -> bool:
        """Returns whether `config.json` has another version's format."""
        try:
            self.read_metadata()
        except RunFormatError:
            return True
        except UserError:  # a later read reports it
            pass
        return False

    def backup_config(self) -> Path:
        """Copies `config.json` to `corrupt/` and returns the copy's path."""
        return self._backup(self._config)

    # ---- metrics.jsonl

    def read_metrics(self) -> list[dict[str, Any]]:
        """Returns the rows of finished epochs. Skips lines that are not valid rows, such as a truncated last line."""
        rows = map(_parse_row, self._metrics_lines())
        return [row for row in rows if row is not None]

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Adds an epoch's row at the end of `metrics.jsonl`."""
        with oserror_as_user_error(self._metrics), self._metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def write_metrics(self, rows: list[dict[str, Any]]) -> Path | None:
        """Replaces all rows of `metrics.jsonl`.

        Returns:
          The path of a backup in `corrupt/` if the old file has damaged lines, else None.
        """
        backup = None
        for line in self._metrics_lines():
            # A last line without a newline is not damage: the machine stopped while writing it, and its epoch is
            # trained again.
            if line.endswith("\n") and _parse_row(line) is None:
                backup = self.backup_metrics()
                break
        with atomic_write(self._metrics) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return backup

    def backup_metrics(self) -> Path:
        """Copies `metrics.jsonl` to `corrupt/` and returns the copy's path."""
        return self._backup(self._metrics)

    def _metrics_lines(self) -> list[str]:
        with oserror_as_user_error(self._metrics, "read"):
            if not self._metrics.exists():
                return []
            with self._metrics.open(errors="replace") as file:
                return file.readlines()

    # ---- moved files

    def quarantine(self, checkpoint: Path) -> None:
        """Moves a corrupt checkpoint to `corrupt/`, so that training can save its step again."""
        with oserror_as_user_error(self._flag):
            checkpoint.rename(_unused_path(self._corrupt_dir() / f"{checkpoint.parent.name}-{checkpoint.name}"))

    def rename_old_run(self) -> Path:
        """Renames the folder to the first unused of `NAME.1`, `NAME.2`, … and returns the new path."""
        path = self.path.absolute().resolve()  # because "." has no name to append to
        renamed = _unused_path(path)
        with oserror_as_user_error(self._flag, "renamed"):
            path.rename(renamed)
        return renamed

    def _backup(self, path: Path) -> Path:
        with oserror_as_user_error(self._flag):
            return Path(shutil.copy2(path, _unused_path(self._corrupt_dir() / path.name)))

    def _corrupt_dir(self) -> Path:
        folder = self.path / "corrupt"
        folder.mkdir(exist_ok=True)
        return folder


def _parse_row(line: str) -> dict[str, Any] | None:
    """Returns the metrics row in a line of `metrics.jsonl`, or None if the line is not a valid row."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # RecursionError: deeply nested brackets
        return None
    return row if is_metrics_row(row) else None


def _unused_path(path: Path) -> Path:
    """Returns the first of `NAME.1`, `NAME.2`, … that does not exist."""
    numbered = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
    return next(candidate for candidate in numbered if not candidate.exists())
