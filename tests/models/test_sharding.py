"""Layers with gradients of their own on meshes of devices, where flax's layers work: they have to, and alike.

One device is enough: `jax.shard_map` and explicit axes check types, whatever the size of an axis.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from starts import started

from flaxresnet.models.batch_norm import BatchNorm
from flaxresnet.models.conv import Conv
from flaxresnet.models.pool import max_pool


def normalised(layer):
    module = layer(momentum=0.9, epsilon=1e-3)
    return module, lambda v, x: module.apply(v, x, use_running_average=False, mutable=["batch_stats"])[0]


def convolved(layer, channels):
    module = layer(channels, (3, 3))
    return module, module.apply


def pooled(layer, *arguments):
    return None, lambda v, x: layer(x, *arguments)


# Images' shapes, and the pairs of layers, ours first. The four convolutions take different forms.
CASES = {
    "batch norm": ((8, 4, 4, 4), functools.partial(normalised, BatchNorm), functools.partial(normalised, nn.BatchNorm)),
    "pooling": (
        (4, 9, 9, 3),
        functools.partial(pooled, max_pool, 3, 2),
        functools.partial(pooled, nn.max_pool, (3, 3), (2, 2)),
    ),
} | {
    f"convolution, {side}×{side}": (
        (8, side, side, channels),
        functools.partial(convolved, Conv, channels),
        functools.partial(convolved, nn.Conv, channels),
    )
    for side, channels in ((1, 8), (2, 8), (8, 8), (16, 32))
}


def images_and_losses(case):
    """Images, variables, and a loss of each of the pair: (params, images) → a number."""
    shape, *pair = CASES[case]
    images = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    modules, calls = zip(*(layer() for layer in pair), strict=True)
    given = {"use_running_average": False} if case == "batch norm" else {}
    variables = started(modules[0], images, **given) if modules[0] else {"params": {}}

    def loss(call):
        return lambda params, x: (call({**variables, "params": params}, x) ** 3).mean()

    return images, variables["params"], [loss(call) for call in calls]


def assert_alike(mine, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), mine, theirs)


@pytest.mark.parametrize("case", CASES)
def test_gradients_inside_a_shard_map_are_those_of_flaxs_layers(case):
    images, params, losses = images_and_losses(case)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))

    def gradients(loss):
        by_all = jax.grad(lambda params, x: jax.lax.pmean(loss(params, x), "data"), argnums=(0, 1))
        shared = jax.shard_map(by_all, mesh=mesh, in_specs=(P(), P("data")), out_specs=(P(), P("data")))
        return jax.jit(shared)(params, images)

    assert_alike(*map(gradients, losses))


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_by_images_on_a_mesh_with_explicit_axes_are_those_of_flaxs_layers(case):
    images, params, losses = images_and_losses(case)  # by kernels JAX's own convolution cannot be differentiated there
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        divided = jax.device_put(images, NamedSharding(mesh, P("data")))
        assert_alike(*(jax.jit(jax.value_and_grad(loss, argnums=1))(params, divided) for loss in losses))
