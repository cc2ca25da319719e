"""Batch norm: flax's layer and a formula in NumPy are the references."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from starts import started

from flaxresnet.models.batch_norm import BatchNorm, normalize_batch

SETTINGS = {"momentum": 0.8, "epsilon": 1e-3}


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    variables = {
        "params": {"scale": rng.normal(size=5), "bias": rng.normal(size=5)},
        "batch_stats": {"mean": rng.normal(size=5), "var": rng.uniform(0.5, 2, size=5)},
    }
    return variables, rng.normal(1, 3, size=(4, 3, 2, 5)), rng.normal(size=(4, 3, 2, 5))


def test_in_training_it_is_flaxs_layer_with_its_statistics_and_gradients_in_float64(case):
    @functools.partial(jax.jit, static_argnums=0)
    def outputs(layer, variables, x, g):
        def call(params, x):
            return layer.apply({**variables, "params": params}, x, use_running_average=False, mutable=["batch_stats"])

        y, pull, new = jax.vjp(call, variables["params"], x, has_aux=True)
        return y, new, pull(g)

    with jax.enable_x64(True):
        mine, theirs = (outputs(layer(**SETTINGS), *case) for layer in (BatchNorm, nn.BatchNorm))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), mine, theirs)


def test_second_derivatives_are_those_of_flaxs_layer_in_float64(case):
    @functools.partial(jax.jit, static_argnums=0)
    def steepness(layer, variables, x, g):
        def loss(x, scale):
            params = {**variables["params"], "scale": scale}
            given = {**variables, "params": params}
            return (jnp.tanh(layer.apply(given, x, use_running_average=False, mutable=["batch_stats"])[0]) * g).sum()

        both = jax.grad(loss, argnums=(0, 1))
        squares = jax.grad(lambda x, scale: sum((part**2).sum() for part in both(x, scale)), argnums=(0, 1))
        return squares(x, variables["params"]["scale"])

    with jax.enable_x64(True):
        mine, theirs = (steepness(layer(**SETTINGS), *case) for layer in (BatchNorm, nn.BatchNorm))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), mine, theirs)


def test_the_gradients_are_those_of_the_formula_in_numpy(case):
    variables, x, g = case
    scale, bias = variables["params"]["scale"], variables["params"]["bias"]

    def objective(x, scale, bias):
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return (((x - mean) / np.sqrt(var + 1e-3) * scale + bias) * g).sum()

    with jax.enable_x64(True):
        _, pull = jax.vjp(lambda *a: normalize_batch(*a, 1e-3)[0], x, scale, bias)
        gradients = [np.asarray(gradient) for gradient in pull(jnp.asarray(g))]
    arguments = [x, scale, bias]
    for place, gradient in enumerate(gradients):
        direction = np.random.default_rng(place).normal(size=arguments[place].shape)
        ahead, behind = (
            objective(*(a + side * direction if i == place else a for i, a in enumerate(arguments)))
            for side in (1e-5, -1e-5)
        )
        np.testing.assert_allclose((gradient * direction).sum(), (ahead - behind) / 2e-5, rtol=1e-7)


def test_in_inference_it_uses_the_running_statistics_and_leaves_them(case):
    variables, x, _ = case
    with jax.enable_x64(True):
        y, new = BatchNorm(**SETTINGS).apply(variables, x, use_running_average=True, mutable=["batch_stats"])
    params, stats = variables["params"], variables["batch_stats"]
    expected = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-3) * params["scale"] + params["bias"]
    np.testing.assert_allclose(y, expected, rtol=1e-12)
    jax.tree.map(np.testing.assert_array_equal, new["batch_stats"], stats)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_groups_are_flaxs_layer_on_each_with_the_mean_of_their_statistics(group, case):
    variables, x, g = case

    def by_flax(params, x):
        layer, outputs = nn.BatchNorm(**SETTINGS), []
        for part in x.reshape(-1, group, *x.shape[1:]):
            call = layer.apply(
                {**variables, "params": params}, part, use_running_average=False, mutable=["batch_stats"]
            )
            outputs.append(call)
        return jnp.concatenate([y for y, _ in outputs]), jax.tree.map(
            lambda *a: sum(a) / len(a), *(s for _, s in outputs)
        )

    def by_ours(params, x):
        layer = BatchNorm(**SETTINGS, group=group)
        return layer.apply({**variables, "params": params}, x, use_running_average=False, mutable=["batch_stats"])

    @functools.partial(jax.jit, static_argnums=0)
    def outputs(call, params, x, g):
        y, pull, new = jax.vjp(call, params, x, has_aux=True)
        return y, new, pull(g)

    with jax.enable_x64(True):
        mine, theirs = (outputs(call, variables["params"], x, g) for call in (by_ours, by_flax))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11), mine, theirs)


@pytest.mark.parametrize("group", [None, 3, 8])
def test_a_batch_that_groups_do_not_divide_is_one_group(group, case):
    variables, x, _ = case
    with jax.enable_x64(True):
        mine, theirs = (
            BatchNorm(**SETTINGS, **field).apply(variables, x, use_running_average=False, mutable=["batch_stats"])
            for field in ({"group": group}, {})
        )
    jax.tree.map(np.testing.assert_array_equal, mine, theirs)


def test_it_starts_as_flaxs_layer_does():
    x = jnp.ones((2, 4, 4, 3))
    options = {"scale_init": nn.initializers.constant(0.5), "bias_init": nn.initializers.normal()}
    key = jax.random.key(3)
    mine, theirs = (
        jax.jit(functools.partial(layer(**options).init, use_running_average=False))(key, x)
        for layer in (BatchNorm, nn.BatchNorm)
    )
    jax.tree.map(np.testing.assert_array_equal, mine, theirs)


def test_half_precision_goes_in_and_out_and_statistics_stay_float32():
    x = jnp.asarray(np.random.default_rng(0).normal(100, size=(8, 4, 4, 3)), jnp.bfloat16)
    layer = BatchNorm(dtype=jnp.bfloat16)
    variables = started(layer, x, use_running_average=False)
    apply = functools.partial(layer.apply, use_running_average=False, mutable=["batch_stats"])
    y, new = jax.jit(apply)(variables, x)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, new))} == {jnp.dtype(jnp.float32)}
    slope = jax.eval_shape(jax.grad(lambda x: normalize_batch(x, jnp.ones(3), jnp.zeros(3), 1e-3)[0].sum()), x)
    assert slope.dtype == jnp.bfloat16
    mean = np.asarray(x, np.float64).mean((0, 1, 2))
    np.testing.assert_allclose(new["batch_stats"]["mean"], 0.01 * mean, rtol=1e-5)


def test_constant_images_give_no_nan():
    x = jnp.full((2, 3, 3, 4), 1234.5)
    y, mean, var = normalize_batch(x, jnp.ones(4), jnp.zeros(4), 1e-3)
    assert np.isfinite(y).all()
    assert (np.asarray(var) >= 0).all()
    np.testing.assert_allclose(mean, 1234.5)
