"""The weights of a run folder, and run folders made from weights."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from flaxresnet.config.train_config import CheckpointChoice, TrainConfig
from flaxresnet.reliability.calibration_file import Calibration
from flaxresnet.runs.checkpoint_errors import short_reason
from flaxresnet.runs.checkpoint_io import EpochCheckpoints, load_run
from flaxresnet.runs.metadata import RunMetadata, package_versions
from flaxresnet.runs.run_dir import RunDir
from flaxresnet.runtime.errors import UserError, oserror_as_user_error
from flaxresnet.runtime.local_path import require_local
from flaxresnet.weights import flat_params
from flaxresnet.weights.pretrained_weights import PretrainedWeights


def read_run(run: str | Path, checkpoint: CheckpointChoice = "latest") -> PretrainedWeights:
    """Reads a run's weights, with the batch norm statistics that its evaluation used.

    Raises UserError if the folder contains no run, no complete checkpoint, or a corrupt file.
    """
    info, variables = load_run(run, checkpoint)
    return PretrainedWeights(
        network=info.config.network,
        num_classes=len(info.class_names),
        arrays={name: np.asarray(leaf) for name, leaf in flat_params.flatten(variables).items()},
        preprocessing=info.preprocessing,
        class_names=info.class_names,
    )


def write_run(weights: PretrainedWeights, run: str | Path, source: str) -> None:
    """Makes a run folder from weights, for prediction and evaluation. Training cannot resume from it.

    Args:
      weights: weights with a last layer. If they have no class names, the classes are called 0, 1, ….
      run: the folder to make; it must not exist.
      source: the origin of the weights, for people.

    Raises:
      UserError: the folder exists or cannot be written, or the weights have no last layer.
    """
    if weights.num_classes is None:
        raise UserError("the weights have no last layer; train one with --init first")
    config = TrainConfig(recipe="tutorial", workdir=str(run), **asdict(weights.network))
    info = RunMetadata(
        config=config.resolve(),
        class_names=weights.class_names or tuple(map(str, range(weights.num_classes))),
        preprocessing=weights.preprocessing,
        data={"source": source, "path": None, "train_fingerprint": None, "test_fingerprint": None},
        versions=package_versions(),
    )
    write_variables(info, weights.variables, run)


def require_absent(run: str | Path) -> None:
    """Raises UserError if the path exists, is a URL, or is invalid, such as a name that is too long."""
    require_local(run)
    with oserror_as_user_error(run):
        exists = Path(run).exists()
    if exists:
        raise UserError(f"{run} exists and is not overwritten; name another folder")


def write_variables(info: RunMetadata, variables: Any, run: str | Path, calibration: Calibration | None = None) -> None:
    """Makes a run folder atomically.

    Args:
      info: the run's metadata.
      variables: {"params", "batch_stats"}.
      run: the folder to make; it must not exist.
      calibration: the run's calibration, if it has one.

    Raises:
      UserError: the folder exists or cannot be written.
    """
    run = Path(run)
    require_absent(run)
    try:
        run.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=run.name + ".", dir=run.parent) as temporary:
            folder = RunDir(Path(temporary) / "run")
            folder.create(info)
            with EpochCheckpoints(folder.checkpoints) as checkpoints:
                checkpoints.save_variables(variables)
            if calibration is not None:
                calibration.write(folder.path)
            folder.path.rename(run)
    except Exception as error:  # Orbax reports a full disk with several exception types
        raise UserError(f"{run} cannot be written: {short_reason(error)}") from error
