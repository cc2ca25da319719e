"""Tests of the network: parameters, names, shapes, options and errors."""

import json
from functools import cache, partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from starts import initial_variables

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


def test_resnet50_has_tutorial_parameter_count():
    variables = shapes_of(fr.ResNet50(num_classes=6))
    assert size_of(variables["params"]) == 23_546_886
    assert size_of(variables["batch_stats"]) == 53_120


def test_resnet50_has_tutorial_layer_names():
    paths = flatten_dict(shapes_of(fr.ResNet50(num_classes=6))["params"])
    assert {path[-2] for path in paths} == tutorial_layer_names()


def test_resnet50_parameters_match_golden_file():
    flat = flatten_dict(shapes_of(fr.ResNet50(num_classes=6)), sep="/")
    tree = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in sorted(flat.items())}
    assert tree == json.loads(GOLDEN.read_text()), (
        "the parameter tree changed, so checkpoints of earlier versions no longer load; "
        "if this is intended, record the tree again with `python tests/golden/record_tree.py`"
    )


def narrow(variant="tutorial", **fields):
    """Returns a network of four stages with one block each, which takes a tenth of ResNet-50's time to trace."""
    return fr.ResNet(**(VARIANTS[variant] | {"num_classes": 6, "stage_sizes": (1, 1, 1, 1), "width": 4} | fields))


def test_resnet_takes_any_image_size():
    for size in ((32, 32), (33, 47), (224, 224), (512, 512)):
        images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
        out, _ = jax.eval_shape(narrow().init_with_output, jax.random.key(0), images)
        assert (out.shape, out.dtype) == ((2, 6), jnp.float32), size


@pytest.mark.parametrize("variant", VARIANTS)
def test_resnet_takes_any_class_count(variant):
    images = jax.ShapeDtypeStruct((3, 64, 64, 3), np.float32)
    for classes in (2, 10, 1_000, 10_000) if variant == "tutorial" else (2, 10_000):
        model = narrow(variant, num_classes=classes, width=64)
        logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
        dense = variables["params"][f"fc{classes}"]
        assert (dense["kernel"].shape, dense["bias"].shape) == ((2048, classes), (classes,))
        assert logits.shape == (3, classes)


@pytest.fixture(scope="module")
def small():
    """Returns a small network, its variables and images."""
    model = fr.ResNet(num_classes=4, stage_sizes=(1, 1), width=4)
    images = np.random.default_rng(6).normal(size=(4, 32, 32, 3)).astype(np.float32)
    return model, initial_variables(model, images), images


@pytest.fixture(scope="module")
def expected(small):
    """Returns the logits of the small network."""
    model, variables, images = small
    return np.asarray(jax.jit(model.apply)(variables, images))


def test_resnet_logits_are_not_normalized(expected):
    assert np.isfinite(expected).all()
    assert (expected < 0).any()
    assert not np.allclose(expected.sum(axis=1), 1)


def test_smallest_images_give_finite_logits():
    model = narrow()
    images = np.random.default_rng(1).normal(size=(2, 32, 32, 3)).astype(np.float32)
    logits = jax.jit(model.apply)(initial_variables(model, images), images)
    assert np.isfinite(logits).all()
    assert not np.array_equal(*logits)


def test_resnet_without_stem_relu(small):
    model, variables, images = small
    stem = nn.Conv(4, (7, 7), strides=(2, 2), padding=3)
    x = stem.apply({"params": variables["params"]["conv1"]}, images)
    x = x / np.sqrt(1 + model.epsilon)  # initial batch norm
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::2, ::2]
    pooled = windows.max(axis=(-2, -1))
    assert pooled.min() < 0

    def shortcut(network):  # the first 1×1 convolution of the pooled stem
        record = jax.jit(lambda v, x: network.apply(v, x, capture_intermediates=lambda m, _: m.name == "res2a_branch1"))
        intermediates = record(variables, images)[1]["intermediates"]
        return intermediates["res2a"]["res2a_branch1"]["__call__"][0]

    def expected_shortcut(x):
        layer = variables["params"]["res2a"]["res2a_branch1"]
        return x @ layer["kernel"][0, 0] + layer["bias"]

    np.testing.assert_allclose(shortcut(model.clone(stem_relu=False)), expected_shortcut(pooled), atol=1e-5)
    np.testing.assert_allclose(shortcut(model), expected_shortcut(np.maximum(pooled, 0)), atol=1e-5)


def test_resnet_passes_momentum_and_epsilon(small, expected):
    model, variables, images = small

    def stem_mean(network):
        def mean(v, x):
            _, new = network.apply(v, x, train=True, mutable=["batch_stats"])
            return new["batch_stats"]["bn_conv1"]["mean"]  # XLA drops all later layers

        return jax.jit(mean)(variables, images)

    plain = model.clone(conv=nn.Conv)
    expected_mean = stem_mean(plain.clone(momentum=0.5)) / 2
    np.testing.assert_allclose(stem_mean(plain.clone(momentum=0.75)), expected_mean, rtol=1e-5)
    assert not np.allclose(expected, jax.jit(model.clone(epsilon=0.1).apply)(variables, images))


@pytest.fixture(scope="module")
def zero_init(small_init):
    """Returns a network with zero-initialized residual branches, and its variables from `init`."""
    model = fr.ResNet(num_classes=4, stage_sizes=(2,), width=4, zero_init_residual=True)
    return model, small_init(model)


def test_kernel_init_is_glorot_uniform(zero_init):
    for path, kernel in flatten_dict(zero_init[1]["params"]).items():
        if path[-1] == "kernel":
            area = int(np.prod(kernel.shape[:-2]))
            limit = np.sqrt(6 / (area * (kernel.shape[-2] + kernel.shape[-1])))
            assert np.abs(kernel).max() <= limit, path
            assert np.abs(kernel).max() > 0.8 * limit, path


def test_zero_init_leaves_shortcuts_alone(small, zero_init):
    _, _, images = small
    model, variables = zero_init
    scales = {path[-2]: leaf for path, leaf in flatten_dict(variables["params"]).items() if path[-1] == "scale"}
    assert {name for name, scale in scales.items() if not scale.any()} == {"bn2a_branch2c", "bn2b_branch2c"}
    assert all((scale == 1).all() for name, scale in scales.items() if not name.endswith("2c"))
    # Other kernels and biases in the main path give the same logits.
    main_path = ("res2a_branch2", "res2b_branch2")
    other = jax.tree_util.tree_map_with_path(lambda p, x: x + p[-2].key.startswith(main_path), variables)
    logits = jax.jit(model.apply)
    np.testing.assert_allclose(logits(variables, images), logits(other, images), rtol=1e-5)


def test_freeze_bn_stats_in_training():
    model = fr.ResNet(num_classes=3, stage_sizes=(1,), width=4)
    images = np.random.default_rng(0).random((4, 32, 32, 3), np.float32)
    variables = initial_variables(model, images)
    stats = jax.tree.map(lambda leaf: leaf - 0.05, variables["batch_stats"])  # unlike those of these images

    def gradients_and_stats(network, train):
        def loss(params):
            logits, new = network.apply(
                {"params": params, "batch_stats": stats}, images, train=train, mutable=["batch_stats"]
            )
            return (logits**2).sum(), new["batch_stats"]

        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    frozen, frozen_stats = gradients_and_stats(model.clone(freeze_bn_stats=True), train=True)
    expected, _ = gradients_and_stats(model, train=False)
    trained, trained_stats = gradients_and_stats(model, train=True)
    jax.tree.map(np.testing.assert_array_equal, frozen_stats, stats)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max()), frozen, expected
    )
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(frozen)), "all parameters learn"
    differs = jax.tree.map(lambda a, b: not np.allclose(a, b, rtol=1e-2), frozen, trained)
    assert differs["conv1"]["kernel"]
    assert differs["bn_conv1"]["scale"]
    assert not np.allclose(trained_stats["bn_conv1"]["mean"], stats["bn_conv1"]["mean"])


def test_resnet_dtype_applies_to_layers(small, expected):
    model, variables, images = small
    half = model.clone(dtype=jnp.bfloat16)
    dtypes = {}

    def record(next_method, args, kwargs, context):
        out = next_method(*args, **kwargs)
        if context.module.name and context.method_name == "__call__":
            dtypes[context.module.name] = out.dtype
        return out

    with nn.intercept_methods(record):
        new = jax.eval_shape(lambda v, x: half.apply(v, x, train=True, mutable=["batch_stats"]), variables, images)
    assert {name for name, dtype in dtypes.items() if dtype == jnp.float32} == {"fc4"}
    assert dtypes["bn3a_branch2c"] == dtypes["conv1"] == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype("float32")}
    shapes = jax.eval_shape(half.init, jax.random.key(0), images)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, variables)
    got = jax.jit(half.apply)(variables, images)
    np.testing.assert_allclose(got, expected, atol=0.05 * np.abs(expected).max())
    assert not np.array_equal(got, expected)


# Published parameter counts for 1000 classes. Keras Applications includes the running statistics; torchvision and timm
# do not.
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


def expected_counts(size, variant):
    """Returns the sizes of a network's parameters and statistics for 1000 classes, without building it."""
    fields = {"bottleneck": True, "widen": 1, "groups": 1} | SIZES[size]
    bias = VARIANTS[variant].get("conv_bias", True)
    counts = [0, 0]

    def conv_norm(kernel, channels, features, groups=1):
        counts[0] += kernel**2 * channels // groups * features + bias * features + 2 * features
        counts[1] += 2 * features

    conv_norm(7, 3, 64)
    channels = 64
    for stage, blocks in enumerate(fields["stage_sizes"]):
        planes = 64 * 2**stage
        outer = 4 * planes if fields["bottleneck"] else planes
        inner = planes * fields["widen"]
        for index in range(blocks):
            if fields["bottleneck"]:
                conv_norm(1, channels, inner)
                conv_norm(3, inner, inner, fields["groups"])
                conv_norm(1, inner, outer)
            else:
                conv_norm(3, channels, planes)
                conv_norm(3, planes, planes)
            if channels != outer or (index == 0 and stage):
                conv_norm(1, channels, outer)
            channels = outer
    counts[0] += (channels + 1) * 1000
    return tuple(counts)


def test_expected_counts_match_published_counts():
    for size, published in KERAS_SIZES.items():
        assert sum(expected_counts(size, "keras")) == published, size
    for size, published in TORCHVISION_SIZES.items():
        assert expected_counts(size, "torchvision")[0] == published, size


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
def test_resnet_has_expected_counts(size, variant):
    variables = shapes_of(fr.resnet(size, variant, num_classes=1000))
    counts = size_of(variables["params"]), size_of(variables["batch_stats"])
    assert counts == expected_counts(size, variant)


def test_resnet_features_match_block_outputs(small, expected):
    model, variables, images = small
    apply = jax.jit(model.apply, static_argnames=("features", "capture_intermediates"))
    features = apply(variables, images, features=True)
    assert set(features) == {"stem", "stage2", "stage3", "embedding", "logits"}
    init = partial(narrow().init_with_output, features=True)
    four_stages = jax.eval_shape(init, jax.random.key(0), images)[0]
    assert set(four_stages) == {"stem", "stage2", "stage3", "stage4", "stage5", "embedding", "logits"}
    _, state = apply(variables, images, capture_intermediates=True)
    for stage in (2, 3):
        block = state["intermediates"][f"res{stage}a"]["__call__"][0]
        np.testing.assert_allclose(features[f"stage{stage}"], block, rtol=1e-5, atol=1e-6)
    layer = variables["params"]["fc4"]
    np.testing.assert_allclose(features["embedding"] @ layer["kernel"] + layer["bias"], features["logits"], atol=1e-5)
    np.testing.assert_allclose(features["logits"], expected, rtol=1e-5, atol=1e-6)


def test_average_head_embedding_is_mean():
    model = fr.ResNet(**(VARIANTS["torchvision"] | {"num_classes": 2, "stage_sizes": (1,), "width": 4}))
    images = np.random.default_rng(1).normal(size=(2, 32, 32, 3)).astype(np.float32)
    features = jax.jit(lambda v, x: model.apply(v, x, features=True))(initial_variables(model, images), images)
    np.testing.assert_allclose(features["embedding"], features["stage2"].mean((1, 2)), rtol=1e-5, atol=1e-6)


def test_resnet_rejects_indivisible_width():
    with pytest.raises(ValueError, match=r"width 8 · widen 2 .* 32 groups"):
        shapes_of(fr.resnet("resnext50_32x4d", num_classes=2, width=8))


def test_head_inputs_depend_on_image_size():
    for variant, same in (("tutorial", False), ("keras", True), ("torchvision", True)):
        kernels = []
        for side in (64, 160):
            kernels.append(shapes_of(narrow(variant), side, side)["params"]["fc6"]["kernel"].shape)
        assert (kernels[0] == kernels[1]) is same, variant


def test_block_names_beyond_the_alphabet():
    assert block_names(26)[-1] == "z"
    names = shapes_of(fr.ResNet(num_classes=2, stage_sizes=(27, 3), width=4, bottleneck=False))["params"].keys()
    assert {"res2a", "res2b1", "res2b26", "res3a", "res3c"} <= names
    assert "res2b27" not in names
    assert block_names(36) == ["a", *(f"b{index}" for index in range(1, 36))]


@pytest.mark.campaign
def test_resnet152_block_names():
    names = shapes_of(fr.ResNet152("keras", num_classes=2))["params"].keys()
    assert {"res4a", "res4b1", "res4b35", "res3h"} <= names
    assert "res4b36" not in names


@pytest.mark.parametrize(("size", "variant", "name"), [("resnet51", "keras", "resnet51"), ("resnet50", "tf", "tf")])
def test_resnet_rejects_unknown_names(size, variant, name):
    with pytest.raises(ValueError, match=f"'{name}'"):
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
def test_resnet_rejects_other_images(images, message):
    with pytest.raises(ValueError, match=message):
        fr.ResNet50(num_classes=6).init(jax.random.key(0), images)


def test_tutorial_variant_rejects_another_image_size():
    images = jax.ShapeDtypeStruct((1, 160, 128, 3), jnp.float32)
    with pytest.raises(fr.UserError, match=r"shape \(1, 160, 128, 3\) .* fc6"):
        jax.eval_shape(narrow().apply, shapes_of(narrow()), images)


@pytest.mark.parametrize("function", [fr.ResNet18, fr.ResNet34, fr.ResNet50, fr.ResNet101, fr.ResNet152])
def test_constructors_have_sizes_and_docstrings(function):
    size = function.__name__.lower()
    for variant in VARIANTS:
        assert function(variant, num_classes=3) == fr.resnet(size, variant, num_classes=3)
    assert function(num_classes=3) == fr.resnet(size, num_classes=3)
    assert function.__name__.replace("ResNet", "ResNet-") in function.__doc__


@pytest.mark.parametrize("classes", [1, 0, -1])
def test_resnet_rejects_fewer_than_two_classes(classes):
    with pytest.raises(ValueError, match=f"num_classes is {classes};"):
        shapes_of(fr.ResNet50(num_classes=classes))


def test_tutorial_variant_rejects_other_image_size(small_init):
    model = fr.ResNet(num_classes=3, stage_sizes=(1,), bottleneck=False, width=4)
    variables = small_init(model)
    message = r"images of shape \(1, 64, 64, 3\) give \d+ inputs to fc3, .*; resize the images to"
    with pytest.raises(fr.UserError, match=message):
        model.apply(variables, np.zeros((1, 64, 64, 3), np.float32))


@pytest.mark.parametrize("name", ["stem", "shortcut", "head"])
def test_unknown_choice_raises(name):
    model = fr.ResNet(num_classes=3, stage_sizes=(1,), bottleneck=False, width=4, **{name: "other"})
    with pytest.raises(ValueError, match=rf"{name} is 'other'; give one of \w+, \w+"):
        model.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
