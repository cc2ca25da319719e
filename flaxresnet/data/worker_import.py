"""Errors of worker processes that import the main script again.

`multiprocessing` starts each worker with a fresh interpreter, which imports the script. A script that trains without
`if __name__ == "__main__":` would train in its workers, too.
"""

import multiprocessing
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flaxresnet.runtime.errors import UserError

EXIT_NO_GUARD = 79  # exit status of a worker whose script trains when it is imported
NO_WORKERS_HINT = "or give --workers 0 (in Python, workers=0) to read images in threads"


def exit_if_imported_by_worker() -> None:
    """Ends the process if it is a worker that is importing the main script. The main process reports the error."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit(EXIT_NO_GUARD)


def require_script_file() -> None:
    """Raises UserError if the main script has no file that workers can import, as for `python < script.py`."""
    script = _script()
    if script is not None and not Path(script).exists():
        raise UserError(f"worker processes cannot import the script {script}; store it as a file, {NO_WORKERS_HINT}")


def next_or_import_error(batches: Iterator[Any]) -> Any:
    """Returns the next item, or None at the end.

    Raises:
      UserError: if a worker process could not import the main script.
    """
    try:
        return next(batches, None)
    except RuntimeError as error:  # from Grain, if a worker ended
        if f"exit code {EXIT_NO_GUARD}." in str(error):
            raise UserError(
                f"{_script()} trains without a main guard, so its worker processes would train, too; put the lines "
                f'that train below `if __name__ == "__main__":`, {NO_WORKERS_HINT}'
            ) from None
        if "exit code 1." in str(error) and _script() is not None:
            raise UserError(
                f"a worker process ended, usually because it could not import {_script()} again; put the lines that "
                f'train below `if __name__ == "__main__":`, {NO_WORKERS_HINT}'
            ) from None
        raise


def _script() -> str | None:
    """Returns the path of the main script that workers import; None for a module, a notebook or an interpreter."""
    main = sys.modules["__main__"]
    return None if getattr(main, "__spec__", None) else getattr(main, "__file__", None)
