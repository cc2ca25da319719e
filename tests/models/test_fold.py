"""Folded batch norm: the same logits, no batch norm left, nothing changed in place."""

import jax
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


def test_elsewhere_than_on_cpu_the_convolution_is_xlas_own():
    layer = conv.FoldedConv(512, (3, 3))
    x, kernel = np.zeros((1, 2, 2, 512), np.float32), np.zeros((512, 3, 3, 512), np.float32)
    traced = jax.jit(layer.apply).trace({"params": {"kernel": kernel, "bias": np.zeros(512, np.float32)}}, x)
    assert "stablehlo.convolution" not in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "stablehlo.convolution" in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_the_folded_convolution_goes_by_the_rule_of_inference():
    x = np.zeros((32, 4, 4, 256), np.float32)
    weights = {"params": {"kernel": np.zeros((3, 3, 256, 256), np.float32), "bias": np.zeros(256, np.float32)}}
    products = "tensor<36x"  # of Winograd's tiles of 4×4
    assert products in jax.jit(conv.Conv(256, (3, 3)).apply).lower(weights, x).as_text()
    assert products not in jax.jit(conv.FoldedConv(256, (3, 3)).apply).lower(weights, x).as_text()
