"""Tests of the compilation of a run's functions."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY_CONFIG

import flaxresnet as fr
from flaxresnet import fitting
from flaxresnet.training import compiled_steps


@pytest.fixture(scope="module")
def gradient():
    """Returns the lowered gradient of a small network's logits, and its arguments."""
    model, images = fr.ResNet(num_classes=3, stage_sizes=(2,), width=8), jnp.ones((16, 64, 64, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)

    def objective(params, images):
        return model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])[0].sum()

    arguments = variables["params"], images
    return jax.jit(jax.grad(objective)).lower(*arguments), arguments


def scratch_bytes(program):
    return program.memory_analysis().temp_size_in_bytes


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the options exist in XLA for CPUs only")
def test_low_memory_compilation_saves_memory(gradient):
    lowered, arguments = gradient
    low_memory = compiled_steps.compile_low_memory(lowered)
    default = lowered.compile()
    assert scratch_bytes(low_memory) < 0.8 * scratch_bytes(default)
    actual = jax.tree.leaves(low_memory(*arguments))
    expected = jax.tree.leaves(default(*arguments))
    # The gradient of a bias before batch norm is rounding noise, so the tolerance scales with the full gradient.
    scale = np.sqrt(sum(float((leaf**2).sum()) for leaf in expected))
    for leaf, expected_leaf in zip(actual, expected, strict=True):
        assert np.linalg.norm(leaf - expected_leaf) <= 1e-3 * np.linalg.norm(expected_leaf) + 1e-6 * scale


def test_compilation_ignores_unknown_options(gradient, monkeypatch):
    lowered, arguments = gradient
    monkeypatch.setattr(compiled_steps, "LOW_MEMORY_FLAGS", {"xla_no_such_option": True})
    assert jax.tree.leaves(compiled_steps.compile_low_memory(lowered)(*arguments))


def test_resumed_run_has_no_initial_state(finished_run, data_folder, tmp_path, monkeypatch):
    copy = shutil.copytree(finished_run, tmp_path / "copy")
    monkeypatch.setattr(fitting, "init_or_restore", lambda session, *_: session.steps.create())
    config = fr.TrainConfig(data=data_folder, workdir=copy, epochs=4, **TINY_CONFIG)
    with pytest.raises(ValueError, match="there is no initial state: the run resumes"):
        fr.fit(config, quiet=True)
