"""Trains a residual network: `python train.py --epochs 20`, the same as `flaxresnet train --epochs 20`."""

import sys

from flaxresnet.cli import exit_status
from flaxresnet.cli.main import run_command


def main() -> int:
    """Runs `flaxresnet train` with the arguments of this program, and returns its exit status."""
    return run_command("train", sys.argv[1:], prog="python train.py")


if __name__ == "__main__":
    sys.exit(exit_status.run(main))
