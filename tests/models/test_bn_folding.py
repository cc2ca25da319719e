"""Tests of folded batch norm: equal logits, and the layout and algorithms of the folded convolutions."""

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
def test_folded_network_gives_same_logits(monkeypatch, fields):
    model = fr.ResNet(**({"num_classes": 4, "stage_sizes": (1, 1), "width": 4, "epsilon": 1e-2} | fields))
    rng = np.random.default_rng(0)
    images = rng.random((3, 32, 32, 3), np.float32)
    # Scales, biases, means and variances are not the initial ones, so that each affects the logits.
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = jax.tree_util.tree_map_with_path(partial(random_values, rng), shapes)
    before = jax.tree.map(np.array, variables)
    names = []

    @jax.jit  # one program for all
    def all_logits(variables, images):
        logits = [model.apply(variables, images)]
        for elements in (10**6, 100):
            monkeypatch.setattr(conv, "MIN_OHWI_ELEMENTS", elements)
            folded, folded_variables = fold_batch_norm(model, variables)
            names.append({path[-2] for path in flatten_dict(folded_variables["params"])})
            logits.append(folded.apply(folded_variables, images))
        return logits

    expected, small, large = all_logits(variables, images)
    np.testing.assert_allclose(small, expected, rtol=1e-4, err_msg="small kernels")
    np.testing.assert_allclose(large, expected, rtol=1e-4, err_msg="large kernels")
    layers = {path[-2] for path in flatten_dict(variables["params"]) if not path[-2].startswith("bn")}
    assert names == [layers, layers]
    jax.tree.map(np.testing.assert_array_equal, variables, before)


def random_values(rng, path, leaf):
    """Returns random values of a parameter or a statistic."""
    initial = {"scale": 1.0, "var": 1.0}.get(path[-1].key, 0.0)
    values = initial + rng.uniform(0.1, 1, leaf.shape)
    if path[-1].key == "kernel":
        values += rng.uniform(-1, 1, leaf.shape) * np.sqrt(6 / np.prod(leaf.shape[:-1]))
    return values.astype(np.float32)


def test_fold_stores_large_kernels_as_ohwi(monkeypatch):
    monkeypatch.setattr(conv, "MIN_OHWI_ELEMENTS", 400)
    model = fr.ResNet(num_classes=4, stage_sizes=(1,), width=8)
    variables = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    folded = jax.eval_shape(lambda variables: fold_batch_norm(model, variables)[1], variables)
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
def test_folded_conv_without_bias(monkeypatch, features):
    monkeypatch.setattr(conv, "MIN_OHWI_ELEMENTS", 9 * 8 * 128)
    rng = np.random.default_rng(0)
    x = rng.random((2, 5, 5, 8), np.float32)
    kernel = rng.random((3, 3, 8, features), np.float32)
    expected = conv.Conv(features, (3, 3), use_bias=False).apply({"params": {"kernel": kernel}}, x)
    layer = conv.FoldedConv(features, (3, 3), use_bias=False)
    assert layer.init(jax.random.key(0), x)["params"].keys() == {"kernel"}
    if conv.use_ohwi_layout(kernel.shape):
        kernel = np.moveaxis(kernel, -1, 0)
    np.testing.assert_allclose(layer.apply({"params": {"kernel": kernel}}, x), expected, rtol=1e-5)


# Size of the images, size of the kernel, strides and padding.
CROPPED_KERNEL_CASES = [
    ((1, 1), (3, 3), (1, 1), "SAME"),  # only the kernel's center multiplies a pixel
    ((1, 4), (3, 3), (1, 1), "SAME"),  # its center row
    ((2, 2), (3, 3), (2, 2), ((1, 1), (1, 1))),  # its last two rows and columns
    ((1, 2), (5, 4), (2, 1), ((3, 2), (0, 3))),
    ((1, 1), (1, 3), (2, 2), ((1, 0), (1, 1))),  # no part of it
]


def test_folded_conv_crops_kernel(monkeypatch):
    monkeypatch.setattr(conv, "MIN_OHWI_ELEMENTS", 1)
    rng = np.random.default_rng(0)
    arrays = [(rng.normal(size=(3, *case[0], 8)), rng.normal(size=(*case[1], 8, 6))) for case in CROPPED_KERNEL_CASES]

    @jax.jit  # one program for all cases
    def convolve_both(arrays):
        results = []
        for (x, kernel), (_, size, strides, padding) in zip(arrays, CROPPED_KERNEL_CASES, strict=True):
            weights = {"params": {"kernel": jnp.moveaxis(kernel, -1, 0), "bias": jnp.zeros(6)}}
            result = conv.FoldedConv(6, size, strides=strides, padding=padding).apply(weights, x)
            if padding != "SAME":
                x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
                padding = "VALID"
            layout = ("NHWC", "HWIO", "NHWC")
            expected = jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=layout)
            results.append((result, expected))
        return results

    with jax.enable_x64(True):
        results = convolve_both(arrays)
    for case, (result, expected) in zip(CROPPED_KERNEL_CASES, results, strict=True):
        np.testing.assert_allclose(result, expected, atol=1e-12, err_msg=str(case))


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5), (jnp.bfloat16, 1e-2)])
def test_folded_conv_with_few_rows(monkeypatch, dtype, tolerance):
    monkeypatch.setattr(conv, "MIN_OHWI_ELEMENTS", 1)
    rng = np.random.default_rng(0)
    counts = (1, 2, 16, 17)  # only the last is a matrix product
    x = rng.normal(size=(17, 1, 1, 300))
    kernel = rng.normal(size=(6, 3, 3, 300))

    @jax.jit
    def all_outputs(weights, x):
        return [conv.FoldedConv(6, (3, 3)).apply({"params": weights}, x[:images]) for images in counts]

    with jax.enable_x64(dtype is np.float64):
        weights = {"kernel": jnp.asarray(kernel, dtype), "bias": jnp.zeros(6, dtype)}
        outputs = all_outputs(weights, jnp.asarray(x, dtype))
        exact = [np.asarray(jnp.asarray(leaf, dtype), np.float64) for leaf in (x[:, 0, 0], kernel[:, 1, 1].T)]
    expected = np.matmul(*exact)
    for images, output in zip(counts, outputs, strict=True):
        assert output.dtype == dtype
        result = np.asarray(output, np.float64)[:, 0, 0]
        atol = tolerance * abs(expected[:images]).max()
        np.testing.assert_allclose(result, expected[:images], atol=atol, err_msg=f"{images} images")


@pytest.mark.parametrize(("images", "is_product"), [(4, False), (5, True)])  # 2×2 pixels each: 16 and 20 rows
def test_folded_conv_product_threshold(images, is_product):
    weights = {"params": {"kernel": np.ones((512, 3, 3, 512), np.float32), "bias": np.zeros(512, np.float32)}}
    x = np.ones((images, 2, 2, 512), np.float32)
    text = jax.jit(conv.FoldedConv(512, (3, 3)).apply).lower(weights, x).as_text()
    assert ("dot_general" in text) is is_product


def test_folded_conv_skips_padding_offsets():
    weights = {"params": {"kernel": np.ones((512, 3, 3, 512), np.float32), "bias": np.zeros(512, np.float32)}}
    text = jax.jit(conv.FoldedConv(512, (3, 3)).apply).lower(weights, np.ones((1, 1, 1, 512), np.float32)).as_text()
    assert "tensor<512x512xf32>" in text
    assert "x4608xf32>" not in text  # nine offsets of 512 channels


def test_folded_conv_on_gpu():
    layer = conv.FoldedConv(512, (3, 3))
    weights = {"kernel": np.zeros((512, 3, 3, 512), np.float32), "bias": np.zeros(512, np.float32)}
    traced = jax.jit(layer.apply).trace({"params": weights}, np.zeros((1, 2, 2, 512), np.float32))
    assert "stablehlo.convolution" not in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "stablehlo.convolution" in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_folded_conv_uses_inference_heuristic():
    x = np.zeros((32, 4, 4, 256), np.float32)
    weights = {"params": {"kernel": np.zeros((256, 3, 3, 256), np.float32), "bias": np.zeros(256)}}
    products = "tensor<36x"  # of Winograd's 4×4 tiles
    assert products not in jax.jit(conv.FoldedConv(256, (3, 3)).apply).lower(weights, x).as_text()
    weights["params"]["kernel"] = np.zeros((3, 3, 256, 256), np.float32)
    assert products in jax.jit(conv.Conv(256, (3, 3)).apply).lower(weights, x).as_text()
