"""Tests that a run on one device and on many trains alike, and that a checkpoint moves between them."""

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
from conftest import XLA_TEST_FLAGS

import flaxresnet as fr

pytestmark = pytest.mark.parity

# Trains one run after the other; prints (devices, history or error message) of each, then the shardings of leaves.
PROGRAM = """
import sys, json, jax
import numpy as np
sys.path.append(sys.argv[1])
import flaxresnet as fr
from flaxresnet.models.resnet import SIZES
SIZES["resnet14"] = {"stage_sizes": (1,), "bottleneck": False}  # as in the tests' own process
for options in json.loads(sys.argv[2]):
    try:
        outcome = fr.fit(fr.TrainConfig(**options), quiet=True).history
    except fr.UserError as error:
        outcome = str(error)
    print(json.dumps([jax.device_count(), outcome]))
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from flaxresnet.training.compiled_steps import with_sharding
whole = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec())
shapes = {"a": (16, 3), "b": (3, 3, 8), "c": (5,), "d": (), "e": (24,)}
leaves = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}
for divided in (False, True):
    print(json.dumps({name: list(leaf.sharding.spec) for name, leaf in with_sharding(leaves, whole, divided).items()}))
"""
ROOT = str(Path(__file__).parents[2])
LEARNED = ("epoch", "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy")
# At this rate ten steps learn most of the task. Adam's first steps would amplify rounding.
SGD = {"recipe": "fast", "optimizer": "sgd", "learning_rate": 0.01}
PARTS = {
    "recipe": "tutorial",
    "learning_rate": 1e-6,
    "batch_size": 16,
    "grad_accum_steps": 2,
    "epochs": 1,
    "mixup": 0.2,
}
LOSSES = ("train_loss", "test_loss")


def fit_on(devices: int, data_folder: Path, cache: Path, runs: dict[Path, dict], flags: str = XLA_TEST_FLAGS):
    """Trains runs (workdir → options) in one process with CPU devices; returns the outcomes and the shardings."""
    common = {"model": "resnet14", "width": 16, "batch_size": 8, "epochs": 2, "report": False, "data": str(data_folder)}
    options = [common | more | {"workdir": str(workdir)} for workdir, more in runs.items()]
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {flags}",
        "JAX_PLATFORMS": "cpu",
        "XDG_CACHE_HOME": str(cache),
    }
    command = [sys.executable, "-c", PROGRAM, ROOT, json.dumps(options)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith(("[", "{"))]
    outcomes, placements = lines[: len(runs)], lines[len(runs) :]
    assert [count for count, _ in outcomes] == [devices] * len(runs)
    return {workdir: outcome for workdir, (_, outcome) in zip(runs, outcomes, strict=True)}, placements


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def one(data_folder, tmp_path_factory, cache):
    """Returns the folder of the runs on one device, and their histories by name."""
    folder = tmp_path_factory.mktemp("one")
    outcomes, _ = fit_on(1, data_folder, cache, {folder / "run": SGD, folder / "parts": PARTS})
    return folder, {workdir.name: outcome for workdir, outcome in outcomes.items()}


@pytest.fixture(scope="module")
def eight(data_folder, tmp_path_factory, cache, one):
    """Returns the folder of the runs on eight devices, their histories or errors by name, and the shardings."""
    folder = tmp_path_factory.mktemp("eight")
    shutil.copytree(one[0] / "run", folder / "continued")
    runs = {
        "run": SGD | {"input": "stream", "shard_optimizer": True},
        "continued": SGD | {"epochs": 3, "shard_optimizer": True},
        "parts": PARTS,
        "undivided": {"batch_size": 12},
        "undivided parts": {"grad_accum_steps": 2},
    }
    outcomes, placements = fit_on(8, data_folder, cache, {folder / name: options for name, options in runs.items()})
    return folder, {workdir.name: outcome for workdir, outcome in outcomes.items()}, placements


def assert_same_training(rows, workdir, one):
    """Asserts that a run has the losses and weights of the run on one device."""
    folder, histories = one
    for row, expected in zip(rows, histories["run"], strict=True):
        for name in LOSSES:
            assert row[name] == pytest.approx(expected[name], rel=1e-5)
    assert rows[1]["test_loss"] < math.log(3) / 4  # chance is log 3
    weights, expected_weights = (fr.Classifier.load(run).variables for run in (workdir, folder / "run"))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), weights, expected_weights)


def test_eight_devices_train_as_one(eight, one):
    folder, histories, _ = eight
    assert_same_training(histories["run"], folder / "run", one)


@pytest.mark.parametrize(
    "options", [{}, pytest.param({"input": "stream", "workers": 1}, marks=pytest.mark.campaign)], ids=str
)
def test_two_devices_train_as_one(data_folder, tmp_path, cache, one, options):
    outcomes, _ = fit_on(2, data_folder, cache, {tmp_path / "run": SGD | options})
    assert_same_training(outcomes[tmp_path / "run"], tmp_path / "run", one)


def test_eight_devices_continue_the_checkpoint_of_one(eight, one):
    continued = eight[1]["continued"]
    assert [row["epoch"] for row in continued] == [1, 2, 3]
    assert continued[:2] == one[1]["run"]


def test_zero1_divides_optimizer_state(eight):
    replicated, divided = eight[2]
    assert divided == {"a": ["data"], "b": [None, None, "data"], "c": [], "d": [], "e": ["data"]}
    assert set(map(tuple, replicated.values())) == {()}


def test_devices_reject_indivisible_batch(eight):
    histories = eight[1]
    assert "--batch-size 12 is no multiple of 8 devices; give a multiple of 8" in histories["undivided"]
    message = "--batch-size 8 is no multiple of 8 devices × --grad-accum-steps 2; give a multiple of 16"
    assert message in histories["undivided parts"]


def test_accumulated_batch_is_divided(eight, one):
    loss, expected = eight[1]["parts"][0]["train_loss"], one[1]["parts"][0]["train_loss"]
    assert loss == pytest.approx(expected, rel=1e-4)


def test_resumed_run_equals_default_compilation(data_folder, tmp_path, cache):
    """Uses the compiler options of users; `conftest.py` makes all other tests compile faster."""
    recipe = {"recipe": "tutorial"}
    runs = {tmp_path / "whole": recipe | {"epochs": 3}, tmp_path / "two": recipe | {"epochs": 1}}
    outcomes, _ = fit_on(1, data_folder, cache, runs, flags="")
    resumed, _ = fit_on(1, data_folder, cache, {tmp_path / "two": recipe | {"epochs": 3}}, flags="")
    for row, expected in zip(resumed[tmp_path / "two"], outcomes[tmp_path / "whole"], strict=True):
        assert [row[name] for name in LEARNED] == [expected[name] for name in LEARNED]
