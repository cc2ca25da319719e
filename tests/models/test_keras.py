"""Tests of the network against Keras: logits, and in training mode loss, gradients and running statistics.

A small network with every kind of layer runs in the parity tier. ResNet-50 takes a minute to compile and runs in the
campaign tier.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flaxresnet as fr

keras = pytest.importorskip("keras", reason="install keras (the `test` extra) to compare with it")
from keras_network import block, keras_resnet50  # noqa: E402 - it imports Keras

pytestmark = pytest.mark.parity
TINY_CONFIG = {"stage_sizes": (2, 1), "width": 8}
# Keras's names of variables → linen's collections and names.
NAMES = {"gamma": ("params", "scale"), "beta": ("params", "bias"), "kernel": ("params", "kernel"),
         "bias": ("params", "bias"), "moving_mean": ("batch_stats", "mean"),
         "moving_variance": ("batch_stats", "var")}  # fmt: skip


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).random((4, 64, 64, 3), np.float32)


def small_network():
    """Returns the tutorials' network with three blocks in Keras: projections with and without a stride, an identity."""
    layers = keras.layers
    inputs = keras.Input((64, 64, 3))
    x = layers.Conv2D(8, 7, strides=2, name="conv1")(layers.ZeroPadding2D(3)(inputs))
    x = layers.ReLU()(layers.BatchNormalization(name="bn_conv1")(x))
    x = layers.MaxPooling2D(3, strides=2)(x)
    x = block(x, 8, "2a", 1, project=True)
    x = block(x, 8, "2b", 1, project=False)
    x = block(x, 16, "3a", 2, project=True)
    x = layers.Flatten()(layers.AveragePooling2D(2)(x))
    return keras.Model(inputs, layers.Dense(6, name="fc6")(x))


@pytest.fixture(scope="module", params=["small", pytest.param("resnet50", marks=pytest.mark.campaign)])
def models(request):
    """Returns Keras's network, with random parameters so that each one affects the result, and ours.

    The last scale of each residual branch is small, as in a trained network. With initial scales, the blocks amplify
    rounding so much that float32 gradients of any two programs differ by two percent.
    """
    keras.utils.set_random_seed(0)
    model = small_network() if request.param == "small" else keras_resnet50()
    ours = fr.ResNet(num_classes=6, **(TINY_CONFIG if request.param == "small" else {}))
    rng = np.random.default_rng(2)
    for layer in model.layers:
        for variable in layer.variables:
            if variable.name != "kernel":
                spread = rng.normal(scale=0.1, size=variable.shape)
                center = 1 if variable.name in ("gamma", "moving_variance") else 0
                damping = 0.1 if variable.name == "gamma" and layer.name.endswith("branch2c") else 1
                variable.assign(damping * (np.abs(center + spread) if center else spread))
    return model, ours


def from_keras(model, values) -> dict:
    """Returns pairs of Keras's variables and values as linen variables: {"params": …, "batch_stats": …}."""
    owner = {id(v): layer.name for layer in model.layers for v in layer.variables}
    tree: dict = {"params": {}, "batch_stats": {}}
    for variable, value in values:
        layer = owner[id(variable)]
        label = layer.removeprefix("res").removeprefix("bn").split("_")[0]
        layers = tree[NAMES[variable.name][0]]
        if layer not in ("conv1", "bn_conv1", "fc6"):
            layers = layers.setdefault(f"res{label}", {})
        layers.setdefault(layer, {})[NAMES[variable.name][1]] = jnp.asarray(value)
    return tree


def test_inference_logits_match_keras(models, images):
    model, ours = models
    variables = from_keras(model, [(v, v.value) for v in model.variables])
    shapes = jax.eval_shape(ours.init, jax.random.key(0), images)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    trainable = [v.value for v in model.trainable_variables]
    rest = [v.value for v in model.non_trainable_variables]
    expected, _ = jax.jit(partial(model.stateless_call, training=False))(trainable, rest, images)
    got = jax.jit(ours.apply)(variables, images)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_training_step_matches_keras(models, images):
    model, ours = models
    labels = np.array([0, 5, 2, 3])
    trainable = [v.value for v in model.trainable_variables]
    rest = [v.value for v in model.non_trainable_variables]

    def keras_loss(trainable):
        logits, updated = model.stateless_call(trainable, rest, images, training=True)
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, logits), updated

    (expected, updated), gradients = jax.jit(jax.value_and_grad(keras_loss, has_aux=True))(trainable)
    stats = from_keras(model, zip(model.non_trainable_variables, updated, strict=True))["batch_stats"]
    keras_gradients = from_keras(model, zip(model.trainable_variables, gradients, strict=True))["params"]

    variables = from_keras(model, [(v, v.value) for v in model.variables])

    def our_loss(params):
        logits, new = ours.apply(variables | {"params": params}, images, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new["batch_stats"]

    (loss, new_stats), got = jax.jit(jax.value_and_grad(our_loss, has_aux=True))(variables["params"])
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), new_stats, stats)
    # The gradient of a bias before batch norm is only rounding noise, so the tolerance scales with all gradients.
    scale = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(keras_gradients)))
    paths = jax.tree_util.tree_leaves_with_path(jax.tree.map(lambda a, b: np.linalg.norm(a - b), got, keras_gradients))
    norms = jax.tree.leaves(jax.tree.map(np.linalg.norm, keras_gradients))
    for (path, difference), norm in zip(paths, norms, strict=True):
        assert difference <= 1e-3 * norm + 1e-6 * scale, (jax.tree_util.keystr(path), difference, norm)
