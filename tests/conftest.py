"""What tests share: small data, a small network, and compiled programs kept from test to test."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"  # read when Keras is first imported
# A third of the time to compile; what the programs compute stays the same to rounding.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] += " --xla_llvm_disable_expensive_passes=true"
os.environ.setdefault("TERM", "dumb")

import jax
import numpy as np
import pytest
from PIL import Image

import flaxresnet as fr
from flaxresnet.data.hdf5 import write_hdf5
from flaxresnet.models.resnet import SIZES
from flaxresnet.trust.stored import Trust, digest
from flaxresnet.trust.strangeness import normalised

HASTE = os.environ["XLA_FLAGS"]  # for processes that tests start
# A dozen steps have to teach it.
SMALL = {"model": "resnet14", "width": 4, "batch_size": 8, "residual_scale": 1.0, "report": False}
# In this process the smallest network has one stage and not four, for it is compiled some twenty times; what surrounds
# the network does not care. `test_devices.py` gives it two, and the tests of the models use it as it is.
SIZES["resnet14"] = {"stage_sizes": (1,)}


@pytest.fixture(scope="session", autouse=True)
def compiled_programs(tmp_path_factory):
    """Programs compiled by one test serve the others; the user's own cache is neither read nor written."""
    os.environ.setdefault("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder  # the workers' own lie in one
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def blobs(count: int, seed: int, size: int = 32) -> fr.Dataset:
    """Three classes that a small network learns in an epoch or two: noise with one colour channel raised."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int32) % 3
    images = rng.integers(0, 80, (count, size, size, 3))
    images[np.arange(count), :, :, labels] += 160
    return fr.Dataset(images.astype(np.uint8), labels, ("red", "green", "blue"))


def draw_blobs(root: Path, train: int, test: int) -> Path:
    """Makes a folder of so many training and test pictures of the three classes, 32×32."""
    for split, count, seed in (("train", train, 1), ("test", test, 2)):
        data = blobs(count, seed=seed)
        for index, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
            path = root / split / data.class_names[label] / f"{index:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return root


def weights_of(run: Path, stage_sizes: tuple[int, ...]):
    """Parameters and statistics of a run of a `resnet14` with these stages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "resnet14", {"stage_sizes": stage_sizes})
        return fr.Classifier.load(run).variables


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    """A folder with a training file of 44 and a test file of 19 images, 32×32, three classes."""
    folder = tmp_path_factory.mktemp("data")
    write_hdf5(folder / "train.h5", "train", blobs(44, seed=1))
    write_hdf5(folder / "test.h5", "test", blobs(19, seed=2))
    return folder


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, data_folder):
    """The folder of a small run of three epochs. Read it; do not train in it."""
    workdir = tmp_path_factory.mktemp("runs") / "small"
    fr.fit(fr.TrainConfig(data=data_folder, workdir=workdir, epochs=3, augment=0.0, **SMALL), verbose=False)
    return workdir


@pytest.fixture(scope="session")
def knowing_run(tmp_path_factory, finished_run):
    """The run with what it knows of its training images, so that it calls all others strange. Read it only."""
    run = shutil.copytree(finished_run, tmp_path_factory.mktemp("knowing") / "run")
    classifier = fr.Classifier.load(run, calibrated=False)
    embeddings = classifier.see(blobs(40, seed=7).images)[1]
    trust = Trust(digest(classifier.variables["params"]), 1.0, normalised(embeddings).astype(np.float16), 0.0)
    replace(trust, threshold=2 * float(trust.strangeness(embeddings).max())).write(run)
    return run


def small_in_a_corner(index: int) -> np.ndarray:
    """A white photo of 128×160 with one of the classes in its lower right corner, from (64, 96) on."""
    photo = np.full((128, 160, 3), 255, np.uint8)
    photo[64:, 96:] = np.kron(blobs(3, seed=8).images[index], np.ones((2, 2, 1), np.uint8))
    return photo


@pytest.fixture(scope="session")
def small_init():
    """Initial variables of a model for 32×32 images, compiled in one piece: faster than layer by layer."""

    def init(model, seed: int = 0, size: int = 32):
        return jax.jit(lambda key: model.init(key, np.zeros((1, size, size, 3), np.float32)))(jax.random.key(seed))

    return init
