"""How a benchmark begins: flags from its `Arguments`, and a user's mistake as one sentence with exit status 2."""

import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar

import tyro

from flaxresnet import cli

T = TypeVar("T")


def begin(main: Callable[[T], None], arguments: type[T]) -> NoReturn:
    """Calls `main` with what the command line says, in the dataclass `arguments`, and exits."""

    def run() -> int:
        main(tyro.cli(arguments))
        return 0

    sys.exit(cli.run(run))
