"""Readers by the name of their file, and valid files of each kind, for the fuzzers."""

import contextlib
import shutil
from importlib.util import find_spec
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import blobs
from PIL import Image
from random_weights import random_weights

from flaxresnet.data.dataset import Splits
from flaxresnet.data.decode import decode
from flaxresnet.data.hdf5 import read_hdf5
from flaxresnet.data.read_options import ReadOptions
from flaxresnet.evaluation import load_training_data
from flaxresnet.report.plots import learning_curves
from flaxresnet.runs.run_dir import RunDir
from flaxresnet.runtime.errors import UserError
from flaxresnet.training.run_setup import check_same_experiment
from flaxresnet.weights.weight_files import read_weights, write_weights

WEIGHTS = {"weights.h5": "tutorial", "weights.weights.h5": "keras", "weights.keras": "tutorial"}
WEIGHTS |= {"weights.safetensors": "torchvision"}
if find_spec("torch"):
    WEIGHTS["weights.pth"] = "torchvision"
IMAGE_FORMATS = ("png", "jpeg", "webp", "gif", "bmp", "tiff")


def read_data(path: Path) -> None:
    splits = read_hdf5([path], str(path), ReadOptions(input="memory"))
    for split in (splits.train, splits.test):
        if split is not None:
            split.class_counts()
            np.asarray(split.images[0]).sum()


def read_metrics(path: Path) -> None:
    """Reads `metrics.jsonl` and computes the values that a report needs."""
    rows = RunDir(path.parent).read_metrics()
    if rows:
        learning_curves(rows, "light")
        sum(row["seconds"] + row["images_per_second"] for row in rows)


def read_run(path: Path) -> None:
    """Reads `config.json` as prediction, evaluation and resuming do, except for the data."""
    info = RunDir(path.parent).read_metadata()
    size = info.preprocessing.height, info.preprocessing.width
    jax.eval_shape(info.model().init, jax.random.key(0), jax.ShapeDtypeStruct((1, *size, 3), jnp.float32))
    info.preprocessing.preprocess_uint8(np.zeros((1, 2, 2, 3), np.uint8))
    info.config.check()
    check_same_experiment(info, info, len)
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(UserError):
        patch.setattr("flaxresnet.evaluation.open_dataset", lambda *_, **__: Splits(None, None, "none"))
        patch.setattr("flaxresnet.evaluation.load_default_signs", lambda: Splits(None, None, "none"))
        load_training_data(path.parent, "test")


READERS = {
    "data.h5": read_data,
    "packed.h5": read_data,
    **dict.fromkeys(WEIGHTS, read_weights),
    "config.json": read_run,
    "metrics.jsonl": read_metrics,
    **{f"image.{suffix}": decode for suffix in IMAGE_FORMATS},
}


def write_valid_weights(path: Path) -> None:
    """Writes a small file of weights. A `.pth` file imports PyTorch, which takes seconds."""
    write_weights(random_weights("resnet14", WEIGHTS[path.name], width=4, image=32, classes=3), path)


def write_valid_files(folder: Path, data_folder: Path, finished_run: Path) -> None:
    """Writes a small valid file for each reader, except for `weights.pth`."""
    for name in WEIGHTS.keys() - {"weights.pth"}:
        write_valid_weights(folder / name)
    with h5py.File(folder / "packed.h5", "w") as file:
        data = blobs(9, seed=3)
        file.create_dataset("train_set_x", data=data.images, chunks=(2, 32, 32, 3), compression="gzip")
        file["train_set_y"] = data.labels
        file["list_classes"] = np.array([b"a", b"b", b"c"])
    image = Image.fromarray(blobs(1, seed=4).images[0])
    for suffix in IMAGE_FORMATS:
        image.save(folder / f"image.{suffix}")
    shutil.copy(data_folder / "test.h5", folder / "data.h5")
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(finished_run / name, folder)
