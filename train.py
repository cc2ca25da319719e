"""Trains a residual network: `python train.py --epochs 20`. Every option of `flaxresnet.TrainConfig` is a flag."""

import sys

from flaxresnet import cli
from flaxresnet.config.train_config import TrainConfig


def main() -> int:
    config = cli.parse(TrainConfig, sys.argv[1:], prog="python train.py")
    from flaxresnet import fit
    from flaxresnet.runtime.distributed import is_first

    run = fit(config, keep_programs=True)
    if is_first():  # of the processes that trained together
        print(f"Loss = {run.test_loss:.4f}")
        print(f"Test Accuracy = {run.test_accuracy:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
