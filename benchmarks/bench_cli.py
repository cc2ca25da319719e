"""How a benchmark begins: flags from its `Arguments`, and a user's mistake as one sentence with exit status 2."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from flaxresnet.cli import exit_status, parser
from flaxresnet.config.validation import flag
from flaxresnet.runtime.errors import UserError

T = TypeVar("T")
# The least that options of these names may be, in all benchmarks that have them; each may be several numbers.
COUNTS = (
    *("batch_size", "batch_sizes", "infer_batch_sizes", "calls", "counts", "epochs", "infer_steps", "keras_epochs"),
    *("pictures", "pretraining_epochs", "repeats", "rounds", "steps", "timed_pictures", "width"),
)
LEAST = {"image_size": 32, "image_sizes": 32} | dict.fromkeys(COUNTS, 1)


def begin(main: Callable[[T], None], arguments: type[T]) -> NoReturn:
    """Calls `main` with what the command line says, in the dataclass `arguments`, and exits."""

    def run() -> int:
        told = parser.parse(arguments, sys.argv[1:], prog=f"python benchmarks/{Path(sys.argv[0]).name}")
        check(vars(told))
        main(told)
        return 0

    sys.exit(exit_status.run(run))


def check(options: dict[str, Any]) -> None:
    """Before anything is measured; raises UserError where a number is too small, or `--json` could not be written."""
    for name, least in LEAST.items():
        value = options.get(name, least)
        for number in value if isinstance(value, tuple) else (value,):
            if number < least:
                raise UserError(f"{flag(name)} {number} is too small; give {least} or more")
    json = options.get("json")
    if json is not None and not json.parent.is_dir():
        raise UserError(f"--json {json}: there is no folder {json.parent}; make it, or give another")
