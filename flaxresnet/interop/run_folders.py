"""A run's folder as one of the worlds: weights from it, and a folder made from weights."""

import tempfile
from pathlib import Path
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np

from flaxresnet.config import TrainConfig
from flaxresnet.errors import UserError
from flaxresnet.interop import layers
from flaxresnet.interop.weights import Weights
from flaxresnet.training.checkpoint import Checkpoints
from flaxresnet.training.run_folder import RunFolder, RunInfo, package_versions


def read_run(run: str | Path, checkpoint: Literal["latest", "best"] = "latest") -> Weights:
    """A run's weights, with the statistics that it was evaluated with. Raises UserError as `Classifier.load` does."""
    folder = RunFolder(run)
    info = folder.read_info()
    shape = (1, info.preprocessing.height, info.preprocessing.width, 3)
    shapes = jax.eval_shape(info.model().init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
    if not folder.checkpoints.is_dir():
        raise UserError(f"{folder.path} holds no checkpoint yet; train for at least one epoch first")
    with Checkpoints(folder.checkpoints, read_only=True) as checkpoints:
        variables = checkpoints.restore_variables(shapes, checkpoint)
    return Weights(
        size=info.config.model,
        variant=info.config.variant,
        width=info.config.width,
        stem_relu=info.config.stem_relu,
        num_classes=len(info.class_names),
        table={name: np.asarray(leaf) for name, leaf in layers.flatten(variables).items()},
        preprocessing=info.preprocessing,
        class_names=info.class_names,
    )


def write_run(weights: Weights, run: str | Path, source: str) -> None:
    """Makes a run's folder of weights, for prediction and evaluation; there is nothing in it to go on training with.

    Args:
      weights: with a last layer. Classes without names are called 0, 1, ….
      run: a folder that does not exist yet.
      source: where the weights come from, in words.

    Raises:
      UserError: the folder exists or cannot be written, or the last layer is missing.
    """
    run = Path(run)
    if run.exists():
        raise UserError(f"{run} exists and is not overwritten; name another folder")
    if weights.num_classes is None:
        raise UserError("the weights have no last layer; train one with --init first")
    config = TrainConfig(
        recipe="tutorial",
        model=cast(Any, weights.size),
        variant=cast(Any, weights.variant),
        width=weights.width,
        stem_relu=weights.stem_relu,
        workdir=str(run),
    )
    info = RunInfo(
        config=config.resolve(),
        class_names=weights.class_names or tuple(map(str, range(weights.num_classes))),
        preprocessing=weights.preprocessing,
        data={"source": source, "path": None, "train_fingerprint": None, "test_fingerprint": None},
        versions=package_versions(),
    )
    try:
        run.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=run.name + ".", dir=run.parent) as temporary:
            folder = RunFolder(Path(temporary) / "run")
            folder.create(info)
            with Checkpoints(folder.checkpoints) as checkpoints:
                checkpoints.save_variables(weights.variables)
            folder.path.rename(run)
    except OSError as error:
        raise UserError(f"{run} cannot be written: {error.strerror or error}") from error
