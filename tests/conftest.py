"""Defines the tiers of tests and the fixtures that tests share: small data, a small network, compiled programs.

`python -m pytest` runs the fast tier: one process, nothing but the `test` extra. CONTRIBUTING.md describes the others.
"""

import os
import random
import shutil
import sys
from dataclasses import replace
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Import the installed package, also in child processes. The clone comes last, for `train.py`.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT] + [str(ROOT)]
os.environ["PYTHONSAFEPATH"] = "1"  # child processes do not import from their working directory

os.environ["KERAS_BACKEND"] = "jax"  # read when Keras is first imported
# Compilation takes a third of the time, and results stay the same except for rounding.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] += " --xla_llvm_disable_expensive_passes=true"
if version("jaxlib").startswith("0.10."):  # 0.12 rejects the flag and ends the process
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("TERM", "dumb")

import jax
import numpy as np
import pytest
from PIL import Image

import flaxresnet as fr
from flaxresnet import fitting
from flaxresnet.data.hdf5 import write_hdf5
from flaxresnet.models.resnet import SIZES
from flaxresnet.reliability.calibration_file import Calibration, digest
from flaxresnet.reliability.ood import normalized_features
from flaxresnet.training import compiled_steps, trainer
from flaxresnet.training.executable_cache import cache_key, open_executable_cache

PACKAGE = Path(fr.__file__).parent
os.environ["PYTHONPATH"] = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
XLA_TEST_FLAGS = os.environ["XLA_FLAGS"]  # for processes that tests start
# A network that learns in a dozen steps. The augmentations that are off take longer to compile than the network.
TINY_CONFIG = {"model": "resnet14", "width": 16, "batch_size": 8, "zero_init_residual": False, "report": False}
TINY_CONFIG |= {"aug_strength": 0.0, "background_prob": 0.0}
# The smallest network has one stage of two convolutions in the tests, because they compile it many times.
SIZES["resnet14"] = {"stage_sizes": (1,), "bottleneck": False}


# Marker → the tests that it adds to the fast tier, and their duration on two cores.
TIERS = {
    "parity": ("tests that need the real Keras, PyTorch, a browser or several processes", "3 minutes more"),
    "campaign": ("kills, fuzzing, every size × variant × format", "an hour or more"),
}
FAST = "5 to 6 minutes on two slow cores"


def pytest_addoption(parser):
    group = parser.getgroup("tiers")
    for name, (tests, duration) in TIERS.items():
        group.addoption(f"--{name}", action="store_true", help=f"also run {tests} ({duration})")
    group.addoption("--shuffle", type=int, metavar="SEED", help="run files, and the tests of a file, in random order")


def require_current_package():
    """Raises UsageError if another version of the package is installed than the clone has."""
    for path in (ROOT / "flaxresnet").rglob("*.py"):
        installed = PACKAGE / path.relative_to(ROOT / "flaxresnet")
        if not installed.exists() or installed.read_bytes() != path.read_bytes():
            raise pytest.UsageError(
                f"the installed package in {PACKAGE} is not this clone's ({path.name} differs): install it again with "
                "`pip install '.[test]'`, or once for all changes with `pip install -e '.[test]'`"
            )


def pytest_configure(config):
    for name, (tests, _) in TIERS.items():
        config.addinivalue_line("markers", f"{name}: {tests}; `--{name}` runs them")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Names the tier, and runs it on all cores if pytest-xdist is installed and no `-n` is given."""
    option = config.option
    require_current_package()
    if hasattr(config, "workerinput") or option.help or option.version or option.collectonly:
        return
    added = [name for name in TIERS if config.getoption(name)]
    durations = ", ".join([FAST, *(f"{name} {TIERS[name][1]}" for name in added)])
    print(f"Tests: {' + '.join(['fast', *added])}. All of them take {durations}.", flush=True)
    if getattr(option, "numprocesses", 0) is None and not option.usepdb:
        option.numprocesses = "auto"
        option.dist = "worksteal"


def pytest_collection_modifyitems(config, items):
    excluded_tiers = [name for name in TIERS if not config.getoption(name)]
    selected = []
    excluded = []
    for item in items:
        if any(item.get_closest_marker(name) for name in excluded_tiers):
            excluded.append(item)
        else:
            selected.append(item)
    config.hook.pytest_deselected(items=excluded)
    if config.getoption("shuffle") is not None:
        selected = shuffled(selected, config.getoption("shuffle"))
    items[:] = selected


def shuffled(items, seed):
    """Returns the files, and the tests within each file, in random order. Fixtures of a file stay shared."""
    rng = random.Random(seed)
    files = [list(tests) for _, tests in groupby(items, key=lambda item: item.path)]
    rng.shuffle(files)
    for tests in files:
        rng.shuffle(tests)
    return [item for tests in files for item in tests]


@pytest.fixture(scope="session", autouse=True)
def compiled_programs(tmp_path_factory):
    """Shares compiled programs between tests and workers, apart from the user's own cache."""
    os.environ.setdefault("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    folder = tmp_path_factory.getbasetemp()
    folder = (
        folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    )  # the common parent of the workers' folders
    folder = os.environ.get("FLAXRESNET_TEST_CACHE", folder / "compiled")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


@pytest.fixture(autouse=True)
def compilation_cache_stays_on():
    """Undoes `--no-compilation-cache`: programs are shared only between runs with the same settings of JAX."""
    yield
    jax.config.update("jax_enable_compilation_cache", True)


MAKERS = ("make_train_step", "make_eval_step", "make_inputs", "measure_batch_stats", "TrainState")


class SharedPrograms:
    """Keeps compiled programs by name in memory, as `ExecutableCache` does on disk."""

    def __init__(self):
        self._programs = {}

    def load(self, name):
        return self._programs.get(name)

    def store(self, name, program):
        self._programs[name] = program


@pytest.fixture(scope="session", autouse=True)
def shared_programs():
    """Shares programs between runs of the same options, network and shapes; tracing takes half of a short run."""
    real = fitting.open_executable_cache
    shared = {}

    def open_executable_cache(info, keep, *shapes):
        if keep or jax.device_count() > 1:
            return real(info, keep, *shapes)
        made_by = tuple(getattr(compiled_steps, name) for name in MAKERS)  # a test may have replaced them
        return shared.setdefault((cache_key(info, *shapes), repr(info.model()), made_by), SharedPrograms())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "open_executable_cache", open_executable_cache)
        patch.setattr(compiled_steps, "FAST_COMPILE_FLAGS", {})  # the test flags are as fast
        # The tests need little memory, and returning it takes longer than a small step.
        for module in (trainer, compiled_steps):
            patch.setattr(module, "malloc_trim", lambda: True)
        yield open_executable_cache


@pytest.fixture
def own_programs(monkeypatch, shared_programs):
    """Has each run trace and compile its own programs."""
    monkeypatch.setattr(fitting, "open_executable_cache", open_executable_cache)


def blobs(count: int, seed: int, size: int = 32) -> fr.Dataset:
    """Returns noise with one color channel raised, in three classes that a small network learns in an epoch or two."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int32) % 3
    images = rng.integers(0, 80, (count, size, size, 3))
    images[np.arange(count), :, :, labels] += 160
    return fr.Dataset(images.astype(np.uint8), labels, ("red", "green", "blue"))


def draw_blobs(root: Path, train: int, test: int) -> Path:
    """Writes an image folder with the given numbers of training and test images, 32×32, of the classes of `blobs`."""
    for split, count, seed in (("train", train, 1), ("test", test, 2)):
        data = blobs(count, seed=seed)
        for index, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
            path = root / split / data.class_names[label] / f"{index:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return root


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    """Returns a folder with HDF5 files of 44 training and 19 test images, 32×32, in three classes."""
    folder = tmp_path_factory.mktemp("data")
    write_hdf5(folder / "train.h5", "train", blobs(44, seed=1))
    write_hdf5(folder / "test.h5", "test", blobs(19, seed=2))
    return folder


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, data_folder):
    """Returns the folder of a small run of three epochs. Tests must not change it."""
    workdir = tmp_path_factory.mktemp("runs") / "small"
    fr.fit(fr.TrainConfig(data=data_folder, workdir=workdir, epochs=3, **TINY_CONFIG), quiet=True)
    return workdir


@pytest.fixture(scope="session")
def calibrated_run(tmp_path_factory, finished_run):
    """Returns a copy of `finished_run` that flags other images as out of distribution. Tests must not change it."""
    run = shutil.copytree(finished_run, tmp_path_factory.mktemp("calibrated") / "run")
    classifier = fr.Classifier.load(run, calibrated=False)
    embeddings = classifier.forward(blobs(40, seed=7).images)[1]
    calibration = Calibration(
        digest(classifier.variables["params"]), 1.0, normalized_features(embeddings).astype(np.float16), 0.0
    )
    replace(calibration, threshold=2 * float(calibration.ood_score(embeddings).max())).write(run)
    return run


def small_in_a_corner(index: int) -> np.ndarray:
    """Returns a white photo, 128×160, with an image of a class in its lower right corner, from (64, 96)."""
    photo = np.full((128, 160, 3), 255, np.uint8)
    photo[64:, 96:] = np.kron(blobs(3, seed=8).images[index], np.ones((2, 2, 1), np.uint8))
    return photo


@pytest.fixture(scope="session")
def small_init():
    """Returns a function that initializes a model for 32×32 images in one jitted call, which is faster."""

    def init(model, seed: int = 0, size: int = 32):
        return jax.jit(lambda key: model.init(key, np.zeros((1, size, size, 3), np.float32)))(jax.random.key(seed))

    return init
