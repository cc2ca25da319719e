"""Tests of batch norm against Flax's layer and a formula in NumPy."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from starts import initial_variables

from flaxresnet.models.batch_norm import BatchNorm, normalize_batch

SETTINGS = {"momentum": 0.8, "epsilon": 1e-3}


@pytest.fixture
def case():
    """Returns float64 variables, images and the gradient of the output."""
    rng = np.random.default_rng(0)
    variables = {
        "params": {"scale": rng.normal(size=5), "bias": rng.normal(size=5)},
        "batch_stats": {"mean": rng.normal(size=5), "var": rng.uniform(0.5, 2, size=5)},
    }
    return variables, rng.normal(1, 3, size=(4, 3, 2, 5)), rng.normal(size=(4, 3, 2, 5))


def test_batch_norm_training_matches_flax(case):
    @functools.partial(jax.jit, static_argnums=0)
    def outputs(layer, variables, x, g):
        def call(params, x):
            return layer.apply({**variables, "params": params}, x, use_running_average=False, mutable=["batch_stats"])

        y, pull, new = jax.vjp(call, variables["params"], x, has_aux=True)
        return y, new, pull(g)

    with jax.enable_x64(True):
        ours, expected = (outputs(layer(**SETTINGS), *case) for layer in (BatchNorm, nn.BatchNorm))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), ours, expected)


def test_batch_norm_second_derivatives(case):
    @functools.partial(jax.jit, static_argnums=0)
    def second_derivatives(layer, variables, x, g):
        def loss(x, scale):
            params = {**variables["params"], "scale": scale}
            inputs = {**variables, "params": params}
            y, _ = layer.apply(inputs, x, use_running_average=False, mutable=["batch_stats"])
            return (jnp.tanh(y) * g).sum()

        def squared_norm(x, scale):
            grad_x, grad_scale = jax.grad(loss, argnums=(0, 1))(x, scale)
            return (grad_x**2).sum() + (grad_scale**2).sum()

        return jax.grad(squared_norm, argnums=(0, 1))(x, variables["params"]["scale"])

    with jax.enable_x64(True):
        ours, expected = (second_derivatives(layer(**SETTINGS), *case) for layer in (BatchNorm, nn.BatchNorm))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), ours, expected)


def test_batch_norm_gradients_match_differences(case):
    variables, x, g = case
    arguments = [x, variables["params"]["scale"], variables["params"]["bias"]]

    def objective(x, scale, bias):
        y = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-3) * scale + bias
        return (y * g).sum()

    with jax.enable_x64(True):
        _, pull = jax.vjp(lambda *a: normalize_batch(*a, 1e-3)[0], *arguments)
        gradients = [np.asarray(gradient) for gradient in pull(jnp.asarray(g))]
    for index, gradient in enumerate(gradients):
        step = 1e-5 * np.random.default_rng(index).normal(size=gradient.shape)
        ahead = arguments.copy()
        ahead[index] = ahead[index] + step
        behind = arguments.copy()
        behind[index] = behind[index] - step
        difference = (objective(*ahead) - objective(*behind)) / 2
        np.testing.assert_allclose((gradient * step).sum(), difference, rtol=1e-7)


def test_batch_norm_inference_matches_numpy(case):
    variables, x, _ = case
    with jax.enable_x64(True):
        y, new = BatchNorm(**SETTINGS).apply(variables, x, use_running_average=True, mutable=["batch_stats"])
    params = variables["params"]
    stats = variables["batch_stats"]
    expected = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-3) * params["scale"] + params["bias"]
    np.testing.assert_allclose(y, expected, rtol=1e-12)
    jax.tree.map(np.testing.assert_array_equal, new["batch_stats"], stats)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_ghost_batch_norm_matches_flax(group, case):
    variables, x, g = case

    def apply(layer, params, x):
        return layer.apply({**variables, "params": params}, x, use_running_average=False, mutable=["batch_stats"])

    def apply_flax(params, x):
        results = [apply(nn.BatchNorm(**SETTINGS), params, images) for images in x.reshape(-1, group, *x.shape[1:])]
        outputs, states = zip(*results, strict=True)
        return jnp.concatenate(outputs), jax.tree.map(lambda *a: sum(a) / len(a), *states)

    def apply_ours(params, x):
        return apply(BatchNorm(**SETTINGS, group=group), params, x)

    @functools.partial(jax.jit, static_argnums=0)
    def outputs(call, params, x, g):
        y, pull, new = jax.vjp(call, params, x, has_aux=True)
        return y, new, pull(g)

    with jax.enable_x64(True):
        ours, expected = (outputs(call, variables["params"], x, g) for call in (apply_ours, apply_flax))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11), ours, expected)


@pytest.mark.parametrize("group", [None, 3, 8])
def test_ghost_batch_norm_indivisible_batch(group, case):
    variables, x, _ = case
    with jax.enable_x64(True):
        results = [
            BatchNorm(**SETTINGS, **field).apply(variables, x, use_running_average=False, mutable=["batch_stats"])
            for field in ({"group": group}, {})
        ]
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_batch_norm_init_matches_flax():
    x = jnp.ones((2, 4, 4, 3))
    options = {"scale_init": nn.initializers.constant(0.5), "bias_init": nn.initializers.normal()}
    variables = [
        jax.jit(functools.partial(layer(**options).init, use_running_average=False))(jax.random.key(3), x)
        for layer in (BatchNorm, nn.BatchNorm)
    ]
    jax.tree.map(np.testing.assert_array_equal, *variables)


def test_batch_norm_bfloat16_keeps_float32_statistics():
    x = jnp.asarray(np.random.default_rng(0).normal(100, size=(8, 4, 4, 3)), jnp.bfloat16)
    layer = BatchNorm(dtype=jnp.bfloat16)
    variables = initial_variables(layer, x, use_running_average=False)
    apply = functools.partial(layer.apply, use_running_average=False, mutable=["batch_stats"])
    y, new = jax.jit(apply)(variables, x)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, new))} == {jnp.dtype(jnp.float32)}
    gradient = jax.eval_shape(jax.grad(lambda x: normalize_batch(x, jnp.ones(3), jnp.zeros(3), 1e-3)[0].sum()), x)
    assert gradient.dtype == jnp.bfloat16
    mean = np.asarray(x, np.float64).mean((0, 1, 2))
    np.testing.assert_allclose(new["batch_stats"]["mean"], 0.01 * mean, rtol=1e-5)


def test_batch_norm_of_constant_images():
    x = jnp.full((2, 3, 3, 4), 1234.5)
    y, mean, var = normalize_batch(x, jnp.ones(4), jnp.zeros(4), 1e-3)
    assert np.isfinite(y).all()
    assert (np.asarray(var) >= 0).all()
    np.testing.assert_allclose(mean, 1234.5)
