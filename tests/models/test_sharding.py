"""Tests of layers with custom gradients on device meshes, against Flax's layers.

One device is enough, because `jax.shard_map` and explicit axes check types for axes of any size.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from starts import initial_variables

from flaxresnet.models.batch_norm import BatchNorm
from flaxresnet.models.conv import Conv
from flaxresnet.models.pool import max_pool


def batch_norm(layer):
    module = layer(momentum=0.9, epsilon=1e-3)
    return module, lambda v, x: module.apply(v, x, use_running_average=False, mutable=["batch_stats"])[0]


def conv3x3(layer, channels):
    module = layer(channels, (3, 3))
    return module, module.apply


def pooling(layer, *arguments):
    return None, lambda v, x: layer(x, *arguments)


# Shape of the images, our layer and Flax's. The four convolutions use different algorithms.
CASES = {
    "batch norm": ((8, 4, 4, 4), functools.partial(batch_norm, BatchNorm), functools.partial(batch_norm, nn.BatchNorm)),
    "pooling": (
        (4, 9, 9, 3),
        functools.partial(pooling, max_pool, 3, 2),
        functools.partial(pooling, nn.max_pool, (3, 3), (2, 2)),
    ),
} | {
    f"convolution, {side}×{side}": (
        (8, side, side, channels),
        functools.partial(conv3x3, Conv, channels),
        functools.partial(conv3x3, nn.Conv, channels),
    )
    for side, channels in ((1, 8), (2, 8), (8, 8), (16, 32))
}


def images_and_losses(case):
    """Returns images, parameters, and the losses of our layer and of Flax's: (params, images) → a number."""
    shape, *layers = CASES[case]
    images = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    modules, calls = zip(*(layer() for layer in layers), strict=True)
    options = {"use_running_average": False} if case == "batch norm" else {}
    variables = initial_variables(modules[0], images, **options) if modules[0] else {"params": {}}

    def loss(call):
        return lambda params, x: (call({**variables, "params": params}, x) ** 3).mean()

    return images, variables["params"], [loss(call) for call in calls]


def assert_close(ours, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), ours, expected)


@pytest.mark.parametrize("case", CASES)
def test_layer_gradients_inside_shard_map(case):
    images, params, losses = images_and_losses(case)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))

    def gradients(loss):
        grad = jax.grad(lambda params, x: jax.lax.pmean(loss(params, x), "data"), argnums=(0, 1))
        sharded = jax.shard_map(grad, mesh=mesh, in_specs=(P(), P("data")), out_specs=(P(), P("data")))
        return jax.jit(sharded)(params, images)

    assert_close(*map(gradients, losses))


@pytest.mark.parametrize("case", CASES)
def test_layer_gradients_on_explicit_axes(case):
    images, params, losses = images_and_losses(case)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(images, NamedSharding(mesh, P("data")))
        # Gradients of the images only: JAX's convolution has no kernel gradient on explicit axes.
        assert_close(*(jax.jit(jax.value_and_grad(loss, argnums=1))(params, sharded) for loss in losses))
