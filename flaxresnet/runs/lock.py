"""A lock on a run's folder. The system releases the lock when the process that holds it ends."""

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Self

from flaxresnet.runtime.errors import UserError

try:
    import fcntl
except ImportError:  # Windows has no such locks, and folders stay unlocked there
    fcntl = None  # type: ignore[assignment]

NAME = ".flaxresnet-lock"
IN_USE_ERRNOS = (errno.EAGAIN, errno.EACCES)


class WorkdirLock:
    """A lock on a run's folder; as a context manager, it releases the lock at its end.

    The lock is `flock` on the file `.flaxresnet-lock` in the folder. `release` deletes the file. A killed process
    leaves the file, but not the lock.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        """Prepares a lock without acquiring it.

        Args:
          note: receives a message if the file system does not support locks.
        """
        self._note = note
        self._held: tuple[int, Path] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self, folder: Path) -> None:
        """Locks an existing folder. Does nothing on Windows, or after a note if the file system does not support locks.

        Raises:
          UserError: another process holds the lock.
          OSError: the folder cannot be written.
        """
        path = folder / NAME
        while fcntl is not None and self._held is None:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                owner = os.read(handle, 200).decode(errors="replace")
                os.close(handle)
                if error.errno not in IN_USE_ERRNOS:
                    self._note(
                        f"the disk of {folder} does not support locks ({error.strerror}); run only one training at a "
                        "time in this folder"
                    )
                    return
                by_owner = f" ({owner})" if owner else ""
                raise UserError(
                    f"--workdir {folder} is in use by another training{by_owner}; wait for it, or give another "
                    "--workdir"
                ) from None
            if _is_at(handle, path):
                os.truncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
                self._held = handle, path
            else:  # the previous owner deleted the file after this process opened it
                os.close(handle)

    def rename(self, folder: Path) -> None:
        """Records the new path of a locked folder that was renamed."""
        if self._held:
            handle, _ = self._held
            self._held = handle, folder / NAME

    def release(self) -> None:
        """Releases the lock, if it is held."""
        if self._held:
            handle, path = self._held
            self._held = None
            if _is_at(handle, path):
                path.unlink()
            os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    """Returns whether the open file is the file at `path`."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False
