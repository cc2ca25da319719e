"""The network's parameters, names, shapes and what it refuses."""

import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import flaxresnet as fr

GOLDEN = Path(__file__).parent.parent / "golden" / "resnet50_tree.json"


def shapes_of(model, height=64, width=64):
    images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


def size_of(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def tutorial_layer_names() -> set[str]:
    blocks = [
        f"{stage}{letter}"
        for stage, letters in zip("2345", ("abc", "abcd", "abcdef", "abc"), strict=True)
        for letter in letters
    ]
    names = {"conv1", "bn_conv1", "fc6"}
    for block in blocks:
        branches = ("2a", "2b", "2c", "1") if block[1] == "a" else ("2a", "2b", "2c")
        names |= {f"{kind}{block}_branch{branch}" for kind in ("res", "bn") for branch in branches}
    return names


def test_resnet50_has_the_tutorials_number_of_parameters():
    variables = shapes_of(fr.ResNet50(num_classes=6))
    assert size_of(variables["params"]) == 23_546_886
    assert size_of(variables["batch_stats"]) == 53_120


def test_every_layer_is_found_under_the_tutorials_name():
    paths = flatten_dict(shapes_of(fr.ResNet50(num_classes=6))["params"])
    assert {path[-2] for path in paths} == tutorial_layer_names()


def test_the_parameter_tree_is_the_recorded_one():
    flat = flatten_dict(shapes_of(fr.ResNet50(num_classes=6)), sep="/")
    found = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in sorted(flat.items())}
    assert found == json.loads(GOLDEN.read_text()), (
        "the parameter tree changed, so checkpoints of earlier versions no longer load; "
        "if that is meant, record it anew with `python tests/golden/record_tree.py`"
    )


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 64), (65, 96), (224, 224)])
def test_any_image_of_32_pixels_or_more_gives_logits(size):
    out, _ = jax.eval_shape(
        fr.ResNet50(num_classes=6).init_with_output, jax.random.key(0), jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    )
    assert (out.shape, out.dtype) == ((2, 6), jnp.float32)


def test_logits_are_not_softmaxed_and_the_smallest_image_works():
    model = fr.ResNet(num_classes=4, stage_sizes=(1, 1, 1, 1), width=4)
    logits, _ = model.init_with_output(jax.random.key(0), jax.random.normal(jax.random.key(1), (2, 32, 32, 3)))
    assert np.isfinite(logits).all()
    assert (np.asarray(logits) < 0).any()
    assert not np.allclose(logits.sum(axis=1), 1)


def test_the_stem_without_relu_lets_negative_values_through():
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    with_relu = fr.ResNet(num_classes=4, stage_sizes=(1, 1, 1, 1), width=4)
    variables = with_relu.init(jax.random.key(0), images)

    def input_of_stage_2(model):
        _, seen = model.apply(variables, images, capture_intermediates=lambda m, _: m.name == "bn_conv1")
        stem = seen["intermediates"]["bn_conv1"]["__call__"][0]
        return nn.max_pool(jax.nn.relu(stem) if model.stem_relu else stem, (3, 3), strides=(2, 2))

    without = with_relu.clone(stem_relu=False)
    assert input_of_stage_2(without).min() < 0 <= input_of_stage_2(with_relu).min()
    assert not np.allclose(with_relu.apply(variables, images), without.apply(variables, images))


def test_fields_reach_the_layers():
    images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
    model = fr.ResNet(num_classes=4, stage_sizes=(1, 1, 1, 1), width=4, conv=nn.Conv, momentum=0.5, epsilon=1e-5)
    variables = model.init(jax.random.key(0), images)
    _, new = model.apply(variables, images, train=True, mutable=["batch_stats"])
    _, slower = model.clone(momentum=0.75).apply(variables, images, train=True, mutable=["batch_stats"])
    mean = new["batch_stats"]["bn_conv1"]["mean"]
    np.testing.assert_allclose(slower["batch_stats"]["bn_conv1"]["mean"], mean / 2, rtol=1e-5)
    assert not np.allclose(model.apply(variables, images), model.clone(epsilon=0.1).apply(variables, images))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (jnp.zeros((1, 31, 64, 3)), r"shape \(1, 31, 64, 3\).*height and width at least 32"),
        (jnp.zeros((64, 64, 3)), r"shape \(64, 64, 3\)"),
        (jnp.zeros((1, 64, 64, 1)), r"shape \(1, 64, 64, 1\)"),
        (jnp.zeros((1, 64, 64, 3), jnp.uint8), r"uint8; scale them to floats in \[0, 1\]"),
    ],
)
def test_images_of_another_form_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        fr.ResNet50(num_classes=6).init(jax.random.key(0), images)
