"""Folded batch norm: the same logits, no batch norm left, nothing changed in place."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import flaxresnet as fr
from flaxresnet.models import conv
from flaxresnet.models.bn_folding import fold_batch_norm
from flaxresnet.models.resnet import VARIANTS

FIELDS = [
    {"stage_sizes": (2, 1)},
    {"stem_relu": False, "stage_sizes": (1,)},
    {"bottleneck": False},
    {"groups": 2, "stage_sizes": (1,)},
    VARIANTS["torchvision"],
]


@pytest.mark.parametrize("fields", FIELDS)
def test_a_folded_network_gives_the_same_logits(monkeypatch, fields):
    model = fr.ResNet(**({"num_classes": 4, "stage_sizes": (1, 1), "width": 4, "epsilon": 1e-2} | fields))
    rng = np.random.default_rng(0)
    images = rng.random((3, 32, 32, 3), np.float32)
    # Kernels as at the start, and every scale, bias, mean and variance away from it, so that each one matters.
    variables = jax.tree_util.tree_map_with_path(
        partial(drawn, rng), jax.eval_shape(model.init, jax.random.key(0), images)
    )
    before = jax.tree.map(np.array, variables)
    names = []

    @jax.jit  # one program for all
    def answers(variables, images):
        logits = [model.apply(variables, images)]
        for large in (10**6, 100):
            monkeypatch.setattr(conv, "LARGE_KERNEL", large)
            folded, folded_variables = fold_batch_norm(model, variables)
            names.append({path[-2] for path in flatten_dict(folded_variables["params"])})
            logits.append(folded.apply(folded_variables, images))
        return logits

    expected, small, large = answers(variables, images)
    np.testing.assert_allclose(small, expected, rtol=1e-4, err_msg="small kernels")
    np.testing.assert_allclose(large, expected, rtol=1e-4, err_msg="large kernels")
    # The convolutions and the dense layer stay, batch norm is gone.
    left = {path[-2] for path in flatten_dict(variables["params"]) if not path[-2].startswith("bn")}
    assert names == [left, left]
    jax.tree.map(np.testing.assert_array_equal, variables, before)


def drawn(rng, path, leaf):
    """Values of a parameter or a statistic."""
    start = {"scale": 1.0, "var": 1.0}.get(path[-1].key, 0.0)
    values = start + rng.uniform(0.1, 1, leaf.shape)
    if path[-1].key == "kernel":
        values += rng.uniform(-1, 1, leaf.shape) * np.sqrt(6 / np.prod(leaf.shape[:-1]))
    return values.astype(np.float32)


def test_large_kernels_lie_features_first(monkeypatch):
    monkeypatch.setattr(conv, "LARGE_KERNEL", 400)
    model = fr.ResNet(num_classes=4, stage_sizes=(1,), width=8)
    start = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    folded = jax.eval_shape(lambda variables: fold_batch_norm(model, variables)[1], start)
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
    turned = np.moveaxis(kernel, -1, 0) if conv.use_ohwi_layout(kernel.shape) else kernel
    assert layer.init(jax.random.key(0), x)["params"].keys() == {"kernel"}
    np.testing.assert_allclose(layer.apply({"params": {"kernel": turned}}, x), expected, rtol=1e-5)


# Sides of images, size of the kernel, strides and padding.
MET_CASES = [
    ((1, 1), (3, 3), (1, 1), "SAME"),  # the kernel's middle alone meets a pixel
    ((1, 4), (3, 3), (1, 1), "SAME"),  # its middle row
    ((2, 2), (3, 3), (2, 2), ((1, 1), (1, 1))),  # its last two rows and columns
    ((1, 2), (5, 4), (2, 1), ((3, 2), (0, 3))),
    ((1, 1), (1, 3), (2, 2), ((1, 0), (1, 1))),  # none of it
]


def test_a_large_kernel_of_which_few_places_meet_pixels(monkeypatch):
    monkeypatch.setattr(conv, "LARGE_KERNEL", 1)
    rng = np.random.default_rng(0)
    arrays = [(rng.normal(size=(3, *case[0], 8)), rng.normal(size=(*case[1], 8, 6))) for case in MET_CASES]

    @jax.jit  # one program for all cases
    def both(arrays):
        results = []
        for (x, kernel), (_, size, strides, padding) in zip(arrays, MET_CASES, strict=True):
            weights = {"params": {"kernel": jnp.moveaxis(kernel, -1, 0), "bias": jnp.zeros(6)}}
            found = conv.FoldedConv(6, size, strides=strides, padding=padding).apply(weights, x)
            padded = jnp.pad(x, ((0, 0), *padding, (0, 0))) if padding != "SAME" else x
            around = "VALID" if padding != "SAME" else padding
            layout = ("NHWC", "HWIO", "NHWC")
            expected = jax.lax.conv_general_dilated(padded, kernel, strides, around, dimension_numbers=layout)
            results.append((found, expected))
        return results

    with jax.enable_x64(True):
        results = both(arrays)
    for case, (found, expected) in zip(MET_CASES, results, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-12, err_msg=str(case))


@pytest.mark.parametrize(("dtype", "most"), [(np.float64, 1e-12), (np.float32, 1e-5), (jnp.bfloat16, 1e-2)])
def test_few_rows_by_a_large_kernel(monkeypatch, dtype, most):
    monkeypatch.setattr(conv, "LARGE_KERNEL", 1)
    rng = np.random.default_rng(0)
    counts = (1, 2, 16, 17)  # the last is a matrix product, the others are sums
    x, kernel = rng.normal(size=(17, 1, 1, 300)), rng.normal(size=(6, 3, 3, 300))

    @jax.jit
    def answers(weights, x):
        return [conv.FoldedConv(6, (3, 3)).apply({"params": weights}, x[:images]) for images in counts]

    with jax.enable_x64(dtype is np.float64):
        weights = {"kernel": jnp.asarray(kernel, dtype), "bias": jnp.zeros(6, dtype)}
        results = answers(weights, jnp.asarray(x, dtype))
        exact = [np.asarray(jnp.asarray(leaf, dtype), np.float64) for leaf in (x[:, 0, 0], kernel[:, 1, 1].T)]
    expected = np.matmul(*exact)
    for images, found in zip(counts, results, strict=True):
        assert found.dtype == dtype
        right = expected[:images]
        result = np.asarray(found, np.float64)[:, 0, 0]
        np.testing.assert_allclose(result, right, atol=most * abs(right).max(), err_msg=f"{images} images")


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
