"""What files are read by, each by its name, and a valid file of each: what the fuzzers change and try."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
from conftest import blobs
from networks import random_weights
from PIL import Image

from flaxresnet.data.hdf5 import read_hdf5
from flaxresnet.data.pictures import decode
from flaxresnet.interop.files import read_weights, write_weights
from flaxresnet.training.run_folder import RunFolder

WEIGHTS = {"weights.h5": "tutorial", "weights.weights.h5": "keras", "weights.keras": "tutorial"}
WEIGHTS |= {"weights.safetensors": "torchvision"} | ({"weights.pth": "torchvision"} if find_spec("torch") else {})
PICTURES = ("png", "jpeg", "webp", "gif", "bmp", "tiff")


def read_data(path: Path) -> None:
    splits = read_hdf5([path], str(path))
    for split in (splits.train, splits.test):
        if split is not None:
            split.class_counts()
            np.asarray(split.images[0]).sum()


def read_figures(path: Path) -> None:
    for row in RunFolder(path.parent).read_metrics():
        int(row["epoch"])


def read_run(path: Path) -> None:
    RunFolder(path.parent).read_info().model()


READERS = {
    "data.h5": read_data,
    "packed.h5": read_data,
    **dict.fromkeys(WEIGHTS, read_weights),
    "config.json": read_run,
    "metrics.jsonl": read_figures,
    **{f"picture.{kind}": decode for kind in PICTURES},
}


def write_valid_files(folder: Path, data_folder: Path, finished_run: Path) -> None:
    """Writes a small file that is whole for each of the readers."""
    for name, variant in WEIGHTS.items():
        write_weights(random_weights("resnet14", variant, width=4, image=32, classes=3), folder / name)
    with h5py.File(folder / "packed.h5", "w") as file:
        data = blobs(9, seed=3)
        file.create_dataset("train_set_x", data=data.images, chunks=(2, 32, 32, 3), compression="gzip")
        file["train_set_y"], file["list_classes"] = data.labels, np.array([b"a", b"b", b"c"])
    picture = Image.fromarray(blobs(1, seed=4).images[0])
    for kind in PICTURES:
        picture.save(folder / f"picture.{kind}")
    shutil.copy(data_folder / "test.h5", folder / "data.h5")
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(finished_run / name, folder)
