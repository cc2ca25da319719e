"""Tests of the training state: the EMA, and the items of a checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flaxresnet as fr
from flaxresnet.training.param_groups import frozen_groups, trainable_params
from flaxresnet.training.train_state import TrainState

MODEL = fr.ResNet(num_classes=3, stage_sizes=(1,), bottleneck=False, width=8, frozen=("stem",))


def create(use_ema):
    make = lambda: TrainState.create(MODEL, optax.sgd(0.1), jax.random.key(0), (32, 32), use_ema)  # noqa: E731
    return jax.jit(make)()


def test_ema_starts_as_copy():
    state = create(use_ema=True)
    assert set(state.ema_params) == set(trainable_params(state.params, frozen_groups(MODEL.frozen))) < set(state.params)
    jax.tree.map(np.testing.assert_array_equal, state.eval_params, state.params)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((state.params, state.ema_params))]
    assert len(set(pointers)) == len(pointers)


def test_state_without_ema():
    state = create(use_ema=False)
    assert state.ema_params == {}
    assert state.eval_params == state.params
    assert set(state.resume_state) == {"step", "batch_stats", "opt_state"}


@pytest.mark.parametrize("use_ema", [True, False])
def test_state_restores_from_items(use_ema):
    state = create(use_ema)
    state = state.replace(ema_params=jax.tree.map(lambda leaf: leaf + 1, state.ema_params), step=jnp.int32(5))
    back = create(use_ema).restored(state.items)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, back, state)
