"""The network's parameters, names, shapes and what it refuses."""

import json
from functools import cache, partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from starts import started

import flaxresnet as fr
from flaxresnet.models.resnet import SIZES, VARIANTS, block_names

GOLDEN = Path(__file__).parent.parent / "golden" / "resnet50_tree.json"


@cache
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


def narrow(variant="tutorial", **fields):
    """A network of four stages, one block each, which is traced in a tenth of the time of ResNet-50."""
    return fr.ResNet(**(VARIANTS[variant] | {"num_classes": 6, "stage_sizes": (1, 1, 1, 1), "width": 4} | fields))


def test_any_image_of_32_pixels_or_more_gives_logits():
    for size in ((32, 32), (33, 47), (224, 224), (512, 512)):
        images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
        out, _ = jax.eval_shape(narrow().init_with_output, jax.random.key(0), images)
        assert (out.shape, out.dtype) == ((2, 6), jnp.float32), size


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_number_of_classes_gives_as_many_logits(variant):
    images = jax.ShapeDtypeStruct((3, 64, 64, 3), np.float32)
    for classes in (2, 10, 1_000, 10_000) if variant == "tutorial" else (2, 10_000):
        model = narrow(variant, num_classes=classes, width=64)
        logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
        dense = variables["params"][f"fc{classes}"]
        assert (dense["kernel"].shape, dense["bias"].shape) == ((2048, classes), (classes,))
        assert logits.shape == (3, classes)


@pytest.fixture(scope="module")
def small():
    """A small network, its variables and images."""
    model = fr.ResNet(num_classes=4, stage_sizes=(1, 1), width=4)
    images = np.random.default_rng(6).normal(size=(4, 32, 32, 3)).astype(np.float32)
    return model, started(model, images), images


@pytest.fixture(scope="module")
def expected(small):
    """What the small network answers."""
    model, variables, images = small
    return np.asarray(jax.jit(model.apply)(variables, images))


def test_logits_are_not_softmaxed(expected):
    assert np.isfinite(expected).all()
    assert (expected < 0).any()
    assert not np.allclose(expected.sum(axis=1), 1)


def test_smallest_image_gives_finite_logits():
    model, images = narrow(), np.random.default_rng(1).normal(size=(2, 32, 32, 3)).astype(np.float32)
    logits = jax.jit(model.apply)(started(model, images), images)
    assert np.isfinite(logits).all()
    assert not np.array_equal(*logits)


def test_the_stem_without_relu_passes_negative_values_to_the_pooling(small):
    model, variables, images = small
    without = model.clone(stem_relu=False)
    stem = nn.Conv(4, (7, 7), strides=(2, 2), padding=3)
    x = stem.apply({"params": variables["params"]["conv1"]}, images) / np.sqrt(
        1 + model.epsilon
    )  # batch norm at its start
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::2, ::2]
    pooled = windows.max(axis=(-2, -1))
    assert pooled.min() < 0

    def block_inputs(network):
        record = jax.jit(lambda v, x: network.apply(v, x, capture_intermediates=lambda m, _: m.name == "res2a_branch1"))
        seen = record(variables, images)[1]["intermediates"]
        return seen["res2a"]["res2a_branch1"]["__call__"][0]  # the shortcut's 1×1 convolution of the pooled stem

    def shortcut(x):
        layer = variables["params"]["res2a"]["res2a_branch1"]
        return x @ layer["kernel"][0, 0] + layer["bias"]

    np.testing.assert_allclose(block_inputs(without), shortcut(pooled), atol=1e-5)
    np.testing.assert_allclose(block_inputs(model), shortcut(np.maximum(pooled, 0)), atol=1e-5)


def test_fields_reach_the_layers(small, expected):
    model, variables, images = small

    def trained(network):
        def first_mean(v, x):
            _, new = network.apply(v, x, train=True, mutable=["batch_stats"])
            return new["batch_stats"]["bn_conv1"]["mean"]  # the rest is not computed, and not compiled

        return jax.jit(first_mean)(variables, images)

    plain = model.clone(conv=nn.Conv, momentum=0.5)
    mean = trained(plain)
    slower = trained(plain.clone(momentum=0.75))
    np.testing.assert_allclose(slower, mean / 2, rtol=1e-5)
    assert not np.allclose(expected, jax.jit(model.clone(epsilon=0.1).apply)(variables, images))


@pytest.fixture(scope="module")
def unscaled(small_init):
    """A network whose residual branches start at nothing, and its variables, by its own `init`."""
    model = fr.ResNet(num_classes=4, stage_sizes=(2,), width=4, zero_init_residual=True)
    return model, small_init(model)


def test_kernels_start_glorot_uniform(unscaled):
    for path, kernel in flatten_dict(unscaled[1]["params"]).items():
        if path[-1] == "kernel":
            area = int(np.prod(kernel.shape[:-2]))
            limit = np.sqrt(6 / (area * (kernel.shape[-2] + kernel.shape[-1])))
            assert np.abs(kernel).max() <= limit, path
            assert np.abs(kernel).max() > 0.8 * limit, path


def test_a_residual_scale_of_zero_leaves_the_shortcuts_alone(small, unscaled):
    _, _, images = small
    model, start = unscaled
    scales = {path[-2]: leaf for path, leaf in flatten_dict(start["params"]).items() if path[-1] == "scale"}
    assert {name for name, scale in scales.items() if not scale.any()} == {"bn2a_branch2c", "bn2b_branch2c"}
    assert all((scale == 1).all() for name, scale in scales.items() if not name.endswith("2c"))
    # Whatever the main path holds, the answer does not change.
    other = jax.tree_util.tree_map_with_path(lambda p, x: x + ("res" in p[-2].key and "branch2" in p[-2].key), start)
    logits = jax.jit(model.apply)
    np.testing.assert_allclose(logits(start, images), logits(other, images), rtol=1e-5)


def test_kept_statistics_are_used_in_training_as_in_evaluation_and_learned_around():
    model = fr.ResNet(num_classes=3, stage_sizes=(1,), width=4)
    images = np.random.default_rng(0).random((4, 32, 32, 3), np.float32)
    variables = started(model, images)
    moved = jax.tree.map(lambda leaf: leaf - 0.05, variables["batch_stats"])  # not those of these images

    def slope(network, train):
        def loss(params):
            there = {"params": params, "batch_stats": moved}
            logits, new = network.apply(there, images, train=train, mutable=["batch_stats"])
            return (logits**2).sum(), new["batch_stats"]

        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    kept, after = slope(model.clone(freeze_bn_stats=True), train=True)
    evaluated, _ = slope(model, train=False)
    usual, moving = slope(model, train=True)
    jax.tree.map(np.testing.assert_array_equal, after, moved)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max()), kept, evaluated)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(kept)), "all parameters learn"
    differs = jax.tree.map(lambda a, b: not np.allclose(a, b, rtol=1e-2), kept, usual)
    assert differs["conv1"]["kernel"]
    assert differs["bn_conv1"]["scale"]
    assert not np.allclose(moving["bn_conv1"]["mean"], moved["bn_conv1"]["mean"])


def test_bfloat16_is_the_arithmetic_of_the_layers_and_of_nothing_else(small, expected):
    model, variables, images = small
    half = model.clone(dtype=jnp.bfloat16)
    seen = {}

    def record(next_method, args, kwargs, context):
        out = next_method(*args, **kwargs)
        if context.module.name and context.method_name == "__call__":
            seen[context.module.name] = out.dtype
        return out

    with nn.intercept_methods(record):
        new = jax.eval_shape(lambda v, x: half.apply(v, x, train=True, mutable=["batch_stats"]), variables, images)
    assert {name for name, dtype in seen.items() if dtype == jnp.float32} == {"fc4"}
    assert seen["bn3a_branch2c"] == seen["conv1"] == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype("float32")}
    assert jax.tree.map(jnp.shape, jax.eval_shape(half.init, jax.random.key(0), images)) == jax.tree.map(
        jnp.shape, variables
    )
    got = jax.jit(half.apply)(variables, images)
    np.testing.assert_allclose(got, expected, atol=0.05 * np.abs(expected).max())
    assert not np.array_equal(got, expected)


# Without and with the running statistics, as the worlds' own pages and packages give them, for 1000 classes.
# Keras Applications counts both; torchvision and timm the parameters alone.
KERAS_SIZES = {"resnet50": 25_636_712, "resnet101": 44_707_176, "resnet152": 60_419_944}
TORCHVISION_SIZES = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "wide_resnet50_2": 68_883_240,
}


def parameters_of(size, variant):
    """Numbers in the parameters and in the statistics of a network for 1000 classes, counted by hand."""
    fields = {"bottleneck": True, "widen": 1, "groups": 1} | SIZES[size]
    biased = VARIANTS[variant].get("conv_bias", True)
    counts = [0, 0]

    def conv_norm(kernel, channels, features, groups=1):
        counts[0] += kernel**2 * channels // groups * features + biased * features + 2 * features
        counts[1] += 2 * features

    conv_norm(7, 3, 64)
    channels = 64
    for stage, blocks in enumerate(fields["stage_sizes"]):
        planes = 64 * 2**stage
        outside = 4 * planes if fields["bottleneck"] else planes
        inside = planes * fields["widen"]
        for index in range(blocks):
            if fields["bottleneck"]:
                conv_norm(1, channels, inside)
                conv_norm(3, inside, inside, fields["groups"])
                conv_norm(1, inside, outside)
            else:
                conv_norm(3, channels, planes)
                conv_norm(3, planes, planes)
            if channels != outside or (index == 0 and stage):
                conv_norm(1, channels, outside)
            channels = outside
    counts[0] += (channels + 1) * 1000
    return tuple(counts)


def test_sizes_have_the_published_parameters():
    for size, published in KERAS_SIZES.items():
        assert sum(parameters_of(size, "keras")) == published, size
    for size, published in TORCHVISION_SIZES.items():
        assert parameters_of(size, "torchvision")[0] == published, size


def counted(size, variant):
    variables = shapes_of(fr.resnet(size, variant, num_classes=1000))
    return size_of(variables["params"]), size_of(variables["batch_stats"])


@pytest.mark.parametrize(
    ("size", "variant"),
    [
        ("resnet18", "torchvision"),
        ("resnet50", "keras"),
        ("resnext50_32x4d", "torchvision"),
        *(
            pytest.param(size, variant, marks=pytest.mark.campaign)
            for variant, sizes in (("keras", KERAS_SIZES), ("torchvision", TORCHVISION_SIZES))
            for size in sizes
        ),
    ],
)
def test_networks_have_the_parameters_counted_by_hand(size, variant):
    assert counted(size, variant) == parameters_of(size, variant)


def test_features_are_what_the_blocks_return(small, expected):
    model, variables, images = small
    apply = jax.jit(model.apply, static_argnames=("features", "capture_intermediates"))
    features = apply(variables, images, features=True)
    assert set(features) == {"stem", "stage2", "stage3", "embedding", "logits"}
    init = partial(narrow().init_with_output, features=True)
    of_four = jax.eval_shape(init, jax.random.key(0), images)[0]
    assert set(of_four) == {"stem", "stage2", "stage3", "stage4", "stage5", "embedding", "logits"}
    _, seen = apply(variables, images, capture_intermediates=True)
    for stage in (2, 3):
        block = seen["intermediates"][f"res{stage}a"]["__call__"][0]
        np.testing.assert_allclose(features[f"stage{stage}"], block, rtol=1e-5, atol=1e-6)
    layer = variables["params"]["fc4"]
    np.testing.assert_allclose(features["embedding"] @ layer["kernel"] + layer["bias"], features["logits"], atol=1e-5)
    np.testing.assert_allclose(features["logits"], expected, rtol=1e-5, atol=1e-6)


def test_the_pooled_embedding_of_the_other_variants_is_the_average():
    model = fr.ResNet(**(VARIANTS["torchvision"] | {"num_classes": 2, "stage_sizes": (1,), "width": 4}))
    images = np.random.default_rng(1).normal(size=(2, 32, 32, 3)).astype(np.float32)
    features = jax.jit(lambda v, x: model.apply(v, x, features=True))(started(model, images), images)
    np.testing.assert_allclose(features["embedding"], features["stage2"].mean((1, 2)), rtol=1e-5, atol=1e-6)


def test_groups_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="width 8 · widen 2 cannot be divided into 32 groups"):
        shapes_of(fr.resnet("resnext50_32x4d", num_classes=2, width=8))


def test_only_the_tutorials_head_is_tied_to_a_size_of_images():
    for variant, same in (("tutorial", False), ("keras", True), ("torchvision", True)):
        kernels = []
        for side in (64, 160):
            kernels.append(shapes_of(narrow(variant), side, side)["params"]["fc6"]["kernel"].shape)
        assert (kernels[0] == kernels[1]) is same, variant


def test_a_stage_of_more_blocks_than_letters_numbers_them():
    assert block_names(26)[-1] == "z"
    names = shapes_of(fr.ResNet(num_classes=2, stage_sizes=(27, 3), width=4, bottleneck=False))["params"].keys()
    assert {"res2a", "res2b1", "res2b26", "res3a", "res3c"} <= names
    assert "res2b27" not in names
    assert block_names(36) == ["a", *(f"b{index}" for index in range(1, 36))]


@pytest.mark.campaign
def test_blocks_of_resnet152_are_named():
    names = shapes_of(fr.ResNet152("keras", num_classes=2))["params"].keys()
    assert {"res4a", "res4b1", "res4b35", "res3h"} <= names
    assert "res4b36" not in names


@pytest.mark.parametrize(("size", "variant", "wrong"), [("resnet51", "keras", "resnet51"), ("resnet50", "tf", "tf")])
def test_an_unknown_size_or_variant_is_refused(size, variant, wrong):
    with pytest.raises(ValueError, match=f"there is no '{wrong}'; choose from "):
        fr.resnet(size, variant, num_classes=2)


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


@pytest.mark.parametrize("classes", [1, 0, -1])
def test_fewer_than_two_classes_are_refused(classes):
    with pytest.raises(ValueError, match=f"num_classes is {classes}; a classifier needs two or more"):
        shapes_of(fr.ResNet50(num_classes=classes))
