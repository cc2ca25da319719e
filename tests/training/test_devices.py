"""The same run on one device and on many, and a checkpoint carried from one to the other."""

import ast
import json
import math
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import HASTE, weights_of

PROGRAM = """
import sys, json, jax
sys.path.insert(0, sys.argv[1])
import flaxresnet as fr
from flaxresnet.models.resnet import SIZES
SIZES["resnet14"] = {"stage_sizes": (1, 1)}  # compiled six times
options = json.loads(sys.argv[2])
try:
    run = fr.fit(fr.TrainConfig(**options), verbose=False)
    print(json.dumps([jax.device_count(), run.history]))
except fr.UserError as error:
    print(json.dumps([jax.device_count(), str(error)]))
"""
ROOT = str(Path(__file__).parents[2])


def fit_on(devices: int, cache, flags: str = HASTE, **options):
    """`fit` in a process of its own that sees this many CPU devices: (devices, history or the error's text)."""
    options = {"model": "resnet14", "width": 4, "batch_size": 8, "epochs": 2, "report": False} | options
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {flags}",
        "JAX_PLATFORMS": "cpu",
        "XDG_CACHE_HOME": str(cache),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, ROOT, json.dumps(options)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


# At this rate the ten steps learn most of what there is. Adam's first ones divide rounding by rounding.
SGD = {"recipe": "fast", "optimizer": "sgd", "learning_rate": 0.01}
LOSSES = ("train_loss", "test_loss")


@pytest.fixture(scope="module")
def one_device(data_folder, tmp_path_factory, cache):
    """The folder and the history of a run on one device."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    devices, history = fit_on(1, cache, data=str(data_folder), workdir=str(workdir), **SGD)
    assert devices == 1
    return workdir, history


@pytest.mark.parametrize(
    ("devices", "options"),
    [(2, {}), (8, {}), (2, {"input": "stream", "workers": 1}), (8, {"input": "stream", "shard_optimizer": True})],
    ids=str,
)
def test_any_number_of_devices_gives_the_losses_of_one(data_folder, tmp_path, cache, one_device, devices, options):
    workdir = str(tmp_path / "run")
    found, history = fit_on(devices, cache, data=str(data_folder), workdir=workdir, **SGD, **options)
    assert found == devices
    for count, rows in ((1, one_device[1]), (devices, history)):  # `-s` shows them
        print(f"{count} device(s)", options, *(f"{name} {row[name]:.8f}" for row in rows for name in LOSSES))
    for mine, theirs in zip(history, one_device[1], strict=True):
        for name in LOSSES:
            assert mine[name] == pytest.approx(theirs[name], rel=1e-5)
    assert history[1]["test_loss"] < math.log(3) / 4  # it learns: at chance it would be log 3
    mine, theirs = (weights_of(run, (1, 1)) for run in (workdir, one_device[0]))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), mine, theirs)


def test_eight_devices_continue_the_checkpoint_of_one(data_folder, tmp_path, cache, one_device):
    workdir = shutil.copytree(one_device[0], tmp_path / "run")
    options = {"data": str(data_folder), "workdir": str(workdir), "epochs": 3, "shard_optimizer": True}
    _, continued = fit_on(8, cache, **options, **SGD)
    assert [row["epoch"] for row in continued] == [1, 2, 3]
    assert continued[:2] == one_device[1]


def test_the_optimisers_state_is_divided_and_nothing_else():
    program = """
import sys, jax
sys.path.insert(0, sys.argv[1])
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from flaxresnet.training.programs import placed
mesh = Mesh(np.array(jax.devices()), ("data",))
shapes = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in
          {"a": (16, 3), "b": (3, 3, 8), "c": (5,), "d": (), "e": (24,)}.items()}
whole = NamedSharding(mesh, PartitionSpec())
print({name: tuple(leaf.sharding.spec) for name, leaf in placed(shapes, whole, divided=True).items()})
print({name: tuple(leaf.sharding.spec) for name, leaf in placed(shapes, whole).items()})
"""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", program, ROOT], env=environment, capture_output=True, text=True, check=True
    )
    divided, whole = map(ast.literal_eval, done.stdout.splitlines())
    assert divided == {"a": ("data",), "b": (None, None, "data"), "c": (), "d": (), "e": ("data",)}
    assert set(whole.values()) == {()}


def test_a_batch_that_cannot_be_divided_over_the_devices_is_refused(data_folder, tmp_path, cache):
    _, message = fit_on(8, cache, data=str(data_folder), workdir=str(tmp_path / "run"), batch_size=12)
    assert "--batch-size 12 cannot be divided over 8 devices" in message


def test_the_parts_of_a_batch_are_divided_over_the_devices_too(data_folder, tmp_path, cache):
    options = {"recipe": "tutorial", "learning_rate": 1e-6, "accumulate": 2, "epochs": 1, "mixup": 0.2}
    data = str(data_folder)
    (_, history), (_, same) = (
        fit_on(devices, cache, data=data, workdir=str(tmp_path / str(devices)), **options) for devices in (1, 4)
    )
    assert history[0]["train_loss"] == pytest.approx(same[0]["train_loss"], rel=1e-4)
    _, message = fit_on(8, cache, data=data, workdir=str(tmp_path / "run"), accumulate=2)
    assert "--batch-size 8 cannot be divided over 8 devices in 2 parts (--accumulate); give a multiple of 16" in message


def test_a_resumed_run_repeats_the_whole_one_in_the_programs_that_users_run(data_folder, tmp_path, cache):
    # `conftest.py` makes this process compile faster and less thoroughly; here nothing is changed.
    options = {"data": str(data_folder), "recipe": "tutorial"}
    _, whole = fit_on(1, cache, "", workdir=str(tmp_path / "whole"), epochs=3, **options)
    fit_on(1, cache, "", workdir=str(tmp_path / "two"), epochs=1, **options)
    _, resumed = fit_on(1, cache, "", workdir=str(tmp_path / "two"), epochs=3, **options)
    for mine, theirs in zip(whole, resumed, strict=True):
        for name in ("epoch", "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy"):
            assert mine[name] == theirs[name]
