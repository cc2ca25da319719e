"""One process at a time in a run's folder, by a lock that the system takes back from a process that is gone."""

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Self

from flaxresnet.runtime.errors import UserError

try:
    import fcntl
except ImportError:  # Windows has no such locks: there nothing is locked
    fcntl = None  # type: ignore[assignment]

NAME = ".flaxresnet-lock"
TAKEN = (errno.EAGAIN, errno.EACCES)


class WorkdirLock:
    """A lock on a run's folder; a context manager, which gives it back at its end.

    It is `flock` on a file of that name there, deleted when given back. A killed process leaves the file, but no lock.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        """Locks nothing yet; `note` is told where a disk knows no locks."""
        self._note = note
        self._held: tuple[int, Path] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self, folder: Path) -> None:
        """Locks a folder that is there.

        Raises UserError where another process has it, and OSError where the folder cannot be written.
        """
        path = folder / NAME
        while fcntl is not None and self._held is None:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                owner = os.read(handle, 200).decode(errors="replace")
                os.close(handle)
                if error.errno not in TAKEN:
                    self._note(f"{folder} is on a disk without locks ({error.strerror}): let one run at a time use it")
                    return
                who = f" ({owner})" if owner else ""
                raise UserError(
                    f"--workdir {folder} is in use by another training{who}; wait for it, or give another --workdir"
                ) from None
            if _is_at(handle, path):
                os.truncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
                self._held = handle, path
            else:  # the one before deleted the file after this one had opened it
                os.close(handle)

    def rename(self, folder: Path) -> None:
        """Says that the locked folder has this name now."""
        if self._held:
            self._held = self._held[0], folder / NAME

    def release(self) -> None:
        """Gives the lock back, if there is one."""
        if self._held:
            (handle, path), self._held = self._held, None
            if _is_at(handle, path):
                path.unlink()
            os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    """Whether the open file is the one of that name."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False
