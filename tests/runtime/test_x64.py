"""Runs are the same with and without JAX's 64-bit mode, as `JAX_ENABLE_X64=1` sets it."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY_CONFIG, blobs

import flaxresnet as fr
from flaxresnet.runtime.x64 import x64_disabled


@pytest.fixture
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def test_x64_mode_is_restored(x64):
    with x64_disabled():
        assert jnp.zeros(1).dtype == jnp.float32
    assert jnp.zeros(1).dtype == jnp.float64
    jax.config.update("jax_enable_x64", False)
    with jax.enable_x64(True):
        with x64_disabled():
            assert jnp.zeros(1).dtype == jnp.float32
        assert jnp.zeros(1).dtype == jnp.float64
    assert jnp.zeros(1).dtype == jnp.float32


def test_x64_mode_changes_no_prediction(finished_run, x64):
    images = blobs(4, seed=9).images
    with jax.enable_x64(False):
        expected = fr.Classifier.load(finished_run).probabilities(images)
    classifier = fr.Classifier.load(finished_run)
    np.testing.assert_array_equal(classifier.probabilities(images), expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(classifier.variables)} == {jnp.dtype("float32")}


def test_x64_run_resumes_without_it(data_folder, tmp_path, x64):
    config = fr.TrainConfig(data=data_folder, workdir=tmp_path / "run", epochs=2, **TINY_CONFIG)
    fr.fit(config, quiet=True)
    jax.config.update("jax_enable_x64", False)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    fr.fit(fr.TrainConfig(data=data_folder, workdir=tmp_path / "run", epochs=3, **TINY_CONFIG), quiet=True)
    jax.config.update("jax_enable_x64", True)
    fr.fit(fr.TrainConfig(data=data_folder, workdir=tmp_path / "copy", epochs=3, **TINY_CONFIG), quiet=True)
    weights = [fr.Classifier.load(tmp_path / run).variables for run in ("run", "copy")]
    jax.tree.map(np.testing.assert_array_equal, *weights)
