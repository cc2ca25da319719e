"""`python -m flaxresnet COMMAND …`: each command is a file in `flaxresnet/commands`."""

import sys
from importlib import import_module

from flaxresnet import cli
from flaxresnet.runtime.errors import UserError
from flaxresnet.runtime.malloc_tuning import keep_freed_memory

COMMANDS = {
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
    "usage: python -m flaxresnet COMMAND …\n\n"
    + "".join(f"  {name:<12} {what}\n" for name, what in COMMANDS.items())
    + "\n`python -m flaxresnet COMMAND --help` tells more; `python train.py --help` trains.\n"
)


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    name = sys.argv[1]
    if name not in COMMANDS:
        raise UserError(f"there is no command {name!r}; the commands are {', '.join(COMMANDS)}")
    command = import_module(f"flaxresnet.commands.{name.replace('-', '_')}")
    arguments = cli.parse(command.Arguments, sys.argv[2:], prog=f"python -m flaxresnet {name}")
    keep_freed_memory()
    return command.main(arguments)


def entry_point() -> int:
    return cli.run(main)


if __name__ == "__main__":
    sys.exit(entry_point())
