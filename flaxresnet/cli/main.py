"""Dispatches `flaxresnet COMMAND …`; each command has a module in this folder."""

import sys
from collections.abc import Sequence
from importlib import import_module

from flaxresnet import __version__
from flaxresnet.cli import exit_status, parser
from flaxresnet.runtime.errors import UserError
from flaxresnet.runtime.malloc_tuning import disable_malloc_trim
from flaxresnet.runtime.terminal import status

COMMANDS = {
    "train": "train a network on labeled images",
    "evaluate": "print a run's loss, accuracy, per-class metrics and confusion matrix",
    "predict": "classify photos",
    "summary": "list a network's layers with shapes, parameters and FLOPs",
    "diagram": "draw a network's layers as PNG and SVG",
    "convert": "convert weights from and to Keras and PyTorch",
    "report": "write an HTML page about a run: metrics, mistakes, calibration, robustness",
    "explain": "draw Grad-CAM heatmaps over photos",
    "demo": "serve a web page that classifies images",
    "export": "write a run as one StableHLO or ONNX file",
    "adapt": "adapt a run to a new site with unlabeled photos (AdaBN)",
    "check-data": "list a dataset's splits and classes, and check it for errors",
    "make-data": "write drawn hand signs, or your own images, as HDF5 or ArrayRecord files",
}

USAGE = (
    "usage: flaxresnet COMMAND …\n\n"
    + "".join(f"  {name:<12} {summary}\n" for name, summary in COMMANDS.items())
    + "\n`flaxresnet COMMAND --help` lists a command's options; `flaxresnet --version` prints the version.\n"
)


def main() -> int:
    """Runs the command that `sys.argv` names, and returns its exit status.

    Raises:
      UserError: there is no such command, an argument is invalid, or the command fails.
      SystemExit: the arguments ask for a command's help.
    """
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
    """Runs one of `COMMANDS` with the arguments of its command line, and returns its exit status.

    Raises:
      UserError: an argument is invalid, or the command fails.
      SystemExit: the arguments ask for help.
    """
    with status("Starting…", terminal_only=True):  # the import of JAX takes seconds
        command = import_module(f"flaxresnet.cli.{name.replace('-', '_')}")
    arguments = parser.parse(command.Arguments, argv, prog, getattr(command, "LAYOUT", None))
    if name != "train":  # `fit` calls this function itself
        disable_malloc_trim()
    from flaxresnet.runtime.x64 import x64_disabled  # imports JAX

    with x64_disabled():
        return command.main(arguments)


def entry_point() -> int:
    """Runs `main`, reports its errors, and returns the exit status."""
    return exit_status.run(main)
