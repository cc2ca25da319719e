"""Folded batch norm: the same logits, no batch norm left, nothing changed in place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import flaxresnet as fr
from flaxresnet.models import conv
from flaxresnet.models.fold import fold_batch_norm
from flaxresnet.models.resnet import VARIANTS


@pytest.mark.parametrize("large", [10**6, 100], ids=["small kernels", "large kernels"])
@pytest.mark.parametrize(
    "fields",
    [{"stem_relu": True}, {"stem_relu": False}, {"bottleneck": False}, {"groups": 2}, VARIANTS["torchvision"]],
)
def test_a_folded_network_gives_the_same_logits(small_init, monkeypatch, fields, large):
    monkeypatch.setattr(conv, "LARGE_KERNEL", large)
    model = fr.ResNet(**({"num_classes": 4, "stage_sizes": (2, 1), "width": 4, "epsilon": 1e-2} | fields))
    rng = np.random.default_rng(0)
    # Every scale, bias, mean and variance away from its start, so that each one matters.
    variables = jax.tree.map(lambda leaf: leaf + rng.uniform(0.1, 1, leaf.shape).astype(np.float32), small_init(model))
    before = jax.tree.map(np.array, variables)
    images = rng.random((3, 32, 32, 3), np.float32)

    folded, folded_variables = fold_batch_norm(model, variables)
    expected = jax.jit(model.apply)(variables, images)
    np.testing.assert_allclose(jax.jit(folded.apply)(folded_variables, images), expected, rtol=1e-4)

    names = {path[-2] for path in flatten_dict(folded_variables["params"])}
    assert names == {path[-2] for path in flatten_dict(variables["params"]) if not path[-2].startswith("bn")}, (
        "the convolutions and the dense layer stay, batch norm is gone"
    )
    jax.tree.map(np.testing.assert_array_equal, variables, before)


def test_large_kernels_lie_features_first(small_init, monkeypatch):
    monkeypatch.setattr(conv, "LARGE_KERNEL", 400)
    model = fr.ResNet(num_classes=4, stage_sizes=(1,), width=8)
    _, folded = fold_batch_norm(model, small_init(model))
    shapes = {path[-2]: leaf.shape for path, leaf in flatten_dict(folded["params"]).items() if path[-1] == "kernel"}
    assert shapes == {
        "conv1": (8, 7, 7, 3),
        "res2a_branch2a": (1, 1, 8, 8),
        "res2a_branch2b": (8, 3, 3, 8),
        "res2a_branch2c": (1, 1, 8, 32),
        "res2a_branch1": (1, 1, 8, 32),
        "fc4": (shapes["fc4"][0], 4),
    }


@pytest.mark.parametrize("features", [8, 128], ids=["small kernel", "large kernel"])
def test_a_folded_convolution_may_have_no_bias(monkeypatch, features):
    monkeypatch.setattr(conv, "LARGE_KERNEL", 9 * 8 * 128)
    rng = np.random.default_rng(0)
    x, kernel = rng.random((2, 5, 5, 8), np.float32), rng.random((3, 3, 8, features), np.float32)
    expected = conv.Conv(features, (3, 3), use_bias=False).apply({"params": {"kernel": kernel}}, x)
    layer = conv.FoldedConv(features, (3, 3), use_bias=False)
    turned = np.moveaxis(kernel, -1, 0) if conv.lies_features_first(kernel.shape) else kernel
    assert layer.init(jax.random.key(0), x)["params"].keys() == {"kernel"}
    np.testing.assert_allclose(layer.apply({"params": {"kernel": turned}}, x), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("side", "size", "strides", "padding"),
    [
        ((1, 1), (3, 3), (1, 1), "SAME"),  # the kernel's middle alone meets a pixel
        ((1, 4), (3, 3), (1, 1), "SAME"),  # its middle row
        ((2, 2), (3, 3), (2, 2), ((1, 1), (1, 1))),  # its last two rows and columns
        ((1, 2), (5, 4), (2, 1), ((3, 2), (0, 3))),
        ((1, 1), (1, 3), (2, 2), ((1, 0), (1, 1))),  # none of it
    ],
)
def test_a_large_kernel_of_which_few_places_meet_pixels(monkeypatch, side, size, strides, padding):
    monkeypatch.setattr(conv, "LARGE_KERNEL", 1)
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(3, *side, 8)), rng.normal(size=(*size, 8, 6))
    weights = {"params": {"kernel": np.moveaxis(kernel, -1, 0), "bias": np.zeros(6)}}
    with jax.enable_x64(True):
        layer = conv.FoldedConv(6, size, strides=strides, padding=padding)
        padded = np.pad(x, ((0, 0), *padding, (0, 0))) if padding != "SAME" else x
        around = "VALID" if padding != "SAME" else padding
        expected = jax.lax.conv_general_dilated(
            padded, kernel, strides, around, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        np.testing.assert_allclose(layer.apply(weights, x), expected, atol=1e-12)


@pytest.mark.parametrize("images", [1, 2, 16, 17])  # the last is a matrix product, the others are sums
@pytest.mark.parametrize(("dtype", "most"), [(np.float64, 1e-12), (np.float32, 1e-5), (jnp.bfloat16, 1e-2)])
def test_few_rows_by_a_large_kernel(monkeypatch, images, dtype, most):
    monkeypatch.setattr(conv, "LARGE_KERNEL", 1)
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(images, 1, 1, 300)), rng.normal(size=(6, 3, 3, 300))
    with jax.enable_x64(dtype is np.float64):
        weights = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), {"kernel": kernel, "bias": np.zeros(6)})
        found = conv.FoldedConv(6, (3, 3)).apply({"params": weights}, jnp.asarray(x, dtype))
        assert found.dtype == dtype
        exact = [np.asarray(jnp.asarray(leaf, dtype), np.float64) for leaf in (x[:, 0, 0], kernel[:, 1, 1].T)]
    expected = np.matmul(*exact)
    np.testing.assert_allclose(np.asarray(found, np.float64)[:, 0, 0], expected, atol=most * abs(expected).max())


@pytest.mark.parametrize(("images", "is_product"), [(4, False), (5, True)])  # of 2×2 pixels: 16 rows, and 20
def test_few_rows_are_sums_and_more_are_a_product(images, is_product):
    weights = {"params": {"kernel": np.ones((512, 3, 3, 512), np.float32), "bias": np.zeros(512, np.float32)}}
    x = np.ones((images, 2, 2, 512), np.float32)
    text = jax.jit(conv.FoldedConv(512, (3, 3)).apply).lower(weights, x).as_text()
    assert ("dot_general" in text) is is_product


def test_places_of_a_kernel_that_meet_no_pixel_are_not_read():
    weights = {"params": {"kernel": np.ones((512, 3, 3, 512), np.float32), "bias": np.zeros(512, np.float32)}}
    text = jax.jit(conv.FoldedConv(512, (3, 3)).apply).lower(weights, np.ones((1, 1, 1, 512), np.float32)).as_text()
    assert "tensor<512x512xf32>" in text
    assert "x4608xf32>" not in text  # nine places of 512 channels


def test_elsewhere_than_on_cpu_the_convolution_is_xlas_own():
    layer = conv.FoldedConv(512, (3, 3))
    x, kernel = np.zeros((1, 2, 2, 512), np.float32), np.zeros((512, 3, 3, 512), np.float32)
    traced = jax.jit(layer.apply).trace({"params": {"kernel": kernel, "bias": np.zeros(512, np.float32)}}, x)
    assert "stablehlo.convolution" not in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "stablehlo.convolution" in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_the_folded_convolution_goes_by_the_rule_of_inference():
    x, kernel, bias = np.zeros((32, 4, 4, 256), np.float32), np.zeros((3, 3, 256, 256), np.float32), np.zeros(256)
    weights, folded = ({"params": {"kernel": k, "bias": bias}} for k in (kernel, np.moveaxis(kernel, -1, 0)))
    products = "tensor<36x"  # of Winograd's tiles of 4×4
    assert products in jax.jit(conv.Conv(256, (3, 3)).apply).lower(weights, x).as_text()
    assert products not in jax.jit(conv.FoldedConv(256, (3, 3)).apply).lower(folded, x).as_text()
