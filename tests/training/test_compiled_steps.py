"""Programs that take less memory, from an XLA that knows how and from one that does not."""

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
    """The gradient of a small network's logits, lowered, and its arguments."""
    model, images = fr.ResNet(num_classes=3, stage_sizes=(2,), width=8), jnp.ones((16, 64, 64, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)

    def objective(params, images):
        return model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])[0].sum()

    arguments = variables["params"], images
    return jax.jit(jax.grad(objective)).lower(*arguments), arguments


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the options are those of XLA for CPUs")
def test_a_program_compiled_sparingly_needs_less_memory_and_answers_the_same(gradient):
    lowered, arguments = gradient
    sparing, usual = compiled_steps.compile_low_memory(lowered), lowered.compile()
    needs, needed = (program.memory_analysis().temp_size_in_bytes for program in (sparing, usual))
    assert needs < 0.8 * needed
    found, expected = (jax.tree.leaves(program(*arguments)) for program in (sparing, usual))
    # A bias in front of batch norm has no gradient but rounding noise, so the scale is that of the whole network.
    scale = np.sqrt(sum(float((leaf**2).sum()) for leaf in expected))
    for leaf, expected_leaf in zip(found, expected, strict=True):
        assert np.linalg.norm(leaf - expected_leaf) <= 1e-3 * np.linalg.norm(expected_leaf) + 1e-6 * scale


def test_an_xla_that_does_not_know_the_options_compiles_all_the_same(gradient, monkeypatch):
    lowered, arguments = gradient
    monkeypatch.setattr(compiled_steps, "LOW_MEMORY_FLAGS", {"xla_no_such_option": True})
    assert jax.tree.leaves(compiled_steps.compile_low_memory(lowered)(*arguments))


def test_no_first_state_is_compiled_for_a_run_that_goes_on(finished_run, data_folder, tmp_path, monkeypatch):
    copy = shutil.copytree(finished_run, tmp_path / "copy")
    monkeypatch.setattr(fitting, "init_or_restore", lambda session, *_: session.steps.create())
    config = fr.TrainConfig(data=data_folder, workdir=copy, epochs=4, **TINY_CONFIG)
    with pytest.raises(ValueError, match="there is no initial state: the run resumes"):
        fr.fit(config, quiet=True)
