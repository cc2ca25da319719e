"""Dispatches `flaxresnet COMMAND …`: each command is a file beside this one."""

import sys
from collections.abc import Sequence
from importlib import import_module

from flaxresnet import __version__
from flaxresnet.cli import exit_status, parser
from flaxresnet.runtime.errors import UserError
from flaxresnet.runtime.malloc_tuning import disable_malloc_trim

COMMANDS = {
    "train": "train a network on labeled images",
    "evaluate": "loss, accuracy with its interval, per-class table and confusion matrix of a run",
    "predict": "label and probability of photos",
    "summary": "the layers of a network: shapes, parameters, work",
    "diagram": "a picture of a network, whole and on one page",
    "convert": "weights from and to Keras and PyTorch",
    "report": "a page about a run: figures, mistakes, how far to trust it",
    "explain": "where in photos the network looked",
    "demo": "a page to try a run on, in the browser",
    "export": "a run as one file for JAX alone, or as ONNX",
    "adapt": "a run for photos of one place, from some of them without labels",
    "check-data": "what a data set holds, or what is wrong with it",
    "make-data": "write the drawn hand signs, or pictures of your own, as HDF5 or ArrayRecord files",
}

USAGE = (
    "usage: flaxresnet COMMAND …\n\n"
    + "".join(f"  {name:<12} {summary}\n" for name, summary in COMMANDS.items())
    + "\n`flaxresnet COMMAND --help` lists a command's options; `flaxresnet --version` prints the version.\n"
)


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    name = sys.argv[1]
    if name == "--version":
        print(f"flaxresnet {__version__}")
        return 0
    if name not in COMMANDS:
        raise UserError(f"there is no command {name!r}; the commands are {', '.join(COMMANDS)}")
    return run_command(name, sys.argv[2:], prog=f"flaxresnet {name}")


def run_command(name: str, argv: Sequence[str], prog: str) -> int:
    """Runs one of `COMMANDS` with the words of its command line, and returns its exit status.

    Raises:
      UserError: a word is wrong, or the command cannot do what it says.
      SystemExit: the words ask for help.
    """
    command = import_module(f"flaxresnet.cli.{name.replace('-', '_')}")
    arguments = parser.parse(command.Arguments, argv, prog, getattr(command, "LAYOUT", None))
    if name != "train":  # `fit` does so itself
        disable_malloc_trim()
    return command.main(arguments)


def entry_point() -> int:
    return exit_status.run(main)
