"""Command line of the benchmarks: flags from a dataclass `Arguments`, and one-sentence errors with exit status 2."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from flaxresnet.cli import exit_status, parser
from flaxresnet.config.validation import flag
from flaxresnet.runtime.errors import UserError

T = TypeVar("T")
# Lower bounds of options by name, in all benchmarks that have them. An option may hold several numbers.
MINIMUMS = {
    "batch_size": 1,
    "batch_sizes": 1,
    "calls": 1,
    "counts": 1,
    "epochs": 1,
    "image_size": 32,
    "image_sizes": 32,
    "infer_batch_sizes": 1,
    "infer_steps": 1,
    "keras_epochs": 1,
    "pictures": 1,
    "pretraining_epochs": 1,
    "repeats": 1,
    "rounds": 1,
    "steps": 1,
    "timed_pictures": 1,
    "width": 1,
}


def begin(main: Callable[[T], None], arguments: type[T]) -> NoReturn:
    """Parses the command line into the dataclass `arguments`, calls `main` with it, and exits."""

    def run() -> int:
        options = parser.parse(arguments, sys.argv[1:], prog=f"python benchmarks/{Path(sys.argv[0]).name}")
        check(vars(options))
        main(options)
        return 0

    sys.exit(exit_status.run(run))


def check(options: dict[str, Any]) -> None:
    """Checks options before anything is measured.

    Raises:
      UserError: a number is below its minimum, or the folder of `--json` does not exist.
    """
    for name, minimum in MINIMUMS.items():
        value = options.get(name, minimum)
        for number in value if isinstance(value, tuple) else (value,):
            if number < minimum:
                raise UserError(f"{flag(name)} {number} is too small; give {minimum} or more")
    json = options.get("json")
    if json is not None and not json.parent.is_dir():
        raise UserError(f"--json {json}: there is no folder {json.parent}; create it, or give another path")
