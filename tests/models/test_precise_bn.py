"""Tests of measured batch-norm statistics against NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from starts import initial_variables

import flaxresnet as fr
from flaxresnet.models.precise_bn import pool_batch_stats

MODEL = fr.ResNet(num_classes=3, stage_sizes=(1,), bottleneck=False, width=4)
IMAGES = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
measure = jax.jit(fr.measure_batch_stats, static_argnums=0)


def test_pool_batch_stats_matches_numpy():
    values = np.random.default_rng(0).normal(2.0, 3.0, size=(5, 40, 7))
    stacked = {"bn": {"mean": jnp.asarray(values.mean(axis=1)), "var": jnp.asarray(values.var(axis=1))}}
    pooled = pool_batch_stats(stacked)["bn"]
    np.testing.assert_allclose(pooled["mean"], values.mean(axis=(0, 1)), rtol=1e-5)
    np.testing.assert_allclose(pooled["var"], values.var(axis=(0, 1)), rtol=1e-5)


def test_stem_statistics_match_numpy():
    batches = np.random.default_rng(1).random((3, 4, 32, 32, 3), np.float32)
    variables = initial_variables(MODEL, IMAGES)
    measured = measure(MODEL, variables["params"], batches)
    assert jax.tree.map(jnp.shape, measured) == jax.tree.map(jnp.shape, variables["batch_stats"])

    kernel = np.asarray(variables["params"]["conv1"]["kernel"], np.float64).reshape(-1, 4)  # bias is 0 at the start
    padded = np.pad(np.asarray(batches, np.float64).reshape(-1, 32, 32, 3), ((0, 0), (3, 3), (3, 3), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (7, 7), axis=(1, 2))[:, ::2, ::2]
    values = np.moveaxis(windows, 3, -1).reshape(-1, 7 * 7 * 3) @ kernel
    np.testing.assert_allclose(measured["bn_conv1"]["mean"], values.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(measured["bn_conv1"]["var"], values.var(axis=0), rtol=1e-4)


def test_precise_bn_ignores_ghost_batches():
    batches = np.random.default_rng(1).random((2, 4, 32, 32, 3), np.float32)
    params = initial_variables(MODEL, IMAGES)["params"]
    ghost_model = MODEL.clone(ghost_batch_size=2)
    jax.tree.map(np.testing.assert_array_equal, measure(ghost_model, params, batches), measure(MODEL, params, batches))
    training = jax.jit(
        lambda model: model.apply({"params": params}, batches[0], train=True, mutable=["batch_stats"])[0],
        static_argnums=0,
    )
    assert not np.allclose(training(ghost_model), training(MODEL))


def test_precise_bn_matches_training_batch():
    images = np.random.default_rng(1).random((8, 32, 32, 3), np.float32)
    params = initial_variables(MODEL, IMAGES)["params"]
    measured = measure(MODEL, params, images[None])
    variables = {"params": params, "batch_stats": measured}
    trained, _ = jax.jit(partial(MODEL.apply, train=True, mutable=["batch_stats"]))(variables, images)
    np.testing.assert_allclose(jax.jit(MODEL.apply)(variables, images), trained, rtol=1e-3, atol=1e-4)


def test_precise_bn_ignores_momentum():
    batches = np.random.default_rng(1).random((2, 4, 32, 32, 3), np.float32)
    params = initial_variables(MODEL, IMAGES)["params"]
    expected = measure(MODEL.clone(momentum=0.99), params, batches)
    jax.tree.map(np.testing.assert_array_equal, measure(MODEL.clone(momentum=0.5), params, batches), expected)


def test_precise_bn_prepares_each_batch():
    images = np.random.default_rng(1).random((2, 4, 32, 32, 3), np.float32)
    params = initial_variables(MODEL, IMAGES)["params"]
    factors = jnp.array([0.5, 2.0])
    prepare = jax.jit(partial(fr.measure_batch_stats, MODEL, prepare=lambda batch: batch[0] * batch[1]))
    prepared = prepare(params, (factors, images))
    expected = measure(MODEL, params, factors[:, None, None, None, None] * images)
    jax.tree.map(np.testing.assert_array_equal, prepared, expected)
