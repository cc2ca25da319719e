"""Tests the layer table against Keras and published FLOPs and parameter counts."""

import numpy as np
import pytest

import flaxresnet as fr
from flaxresnet.models.resnet import SIZES
from flaxresnet.visualize.layer_table import inspect
from flaxresnet.weights.keras_config import keras_config, keras_layers
from flaxresnet.weights.key_maps import KEY_FORMATS

# 10⁹ multiply-adds of convolutions and dense layers for a 224×224 image, and parameters, from torchvision's page of
# each network's weights ("GFLOPS", "Num params").
PUBLISHED = {
    "resnet18": (1.81, 11_689_512),
    "resnet34": (3.66, 21_797_672),
    "resnet50": (4.09, 25_557_032),
    "resnet101": (7.80, 44_549_160),
    "resnet152": (11.51, 60_192_808),
    "resnext50_32x4d": (4.23, 25_028_904),
    "wide_resnet50_2": (11.40, 68_883_240),
}
# He et al. 2016, table 1; Xie et al. 2017, table 1; Zagoruyko and Komodakis 2016.
BLOCKS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
    "resnext50_32x4d": (3, 4, 6, 3),
    "wide_resnet50_2": (3, 4, 6, 3),
}
FAST = ("resnet18", "resnext50_32x4d")


@pytest.fixture(scope="module")
def tutorials():
    """Returns the layers of the tutorials' network."""
    return inspect(fr.ResNet50(num_classes=6), (64, 64))


@pytest.mark.parametrize(
    "size", [size if size in FAST else pytest.param(size, marks=pytest.mark.campaign) for size in PUBLISHED]
)
def test_flops_match_published_values(size):
    layers = inspect(fr.resnet(size, "torchvision", num_classes=1000), (224, 224))
    multiply_adds = sum(info.flops for info in layers if info.layer.kind in ("Conv2D", "Dense")) / 2
    expected, parameters = PUBLISHED[size]
    assert multiply_adds / 1e9 == pytest.approx(expected, abs=0.006)
    assert sum(info.parameters for info in layers) == parameters


def test_sizes_have_published_blocks():
    for size, blocks in BLOCKS.items():
        config = SIZES[size]
        assert config["stage_sizes"] == blocks, size
        assert config.get("bottleneck", True) == (size not in ("resnet18", "resnet34")), size
        assert config.get("widen", 1) == (2 if size in ("resnext50_32x4d", "wide_resnet50_2") else 1), size
        assert config.get("groups", 1) == (32 if size == "resnext50_32x4d" else 1), size


# Networks, image sizes, and the shape and number of values of some layers in Keras.
KERAS_LAYERS = [
    (
        fr.ResNet(num_classes=5, stage_sizes=(1, 1), width=4, bottleneck=False, pool_padding=1, head="average"),
        (65, 96),
        {
            "conv1_pad": ((71, 102, 3), 0),
            "conv1": ((33, 48, 4), 592),
            "pool1_pad": ((35, 50, 4), 0),
            "pool1_pool": ((17, 24, 4), 0),
            "res2a_branch2b": ((17, 24, 4), 148),
            "res3a_branch2a_pad": ((19, 26, 4), 0),
            "res3a_branch1": ((9, 12, 8), 40),
            "bn3a_branch1": ((9, 12, 8), 32),
            "res3a_out": ((9, 12, 8), 0),
            "avg_pool": ((8,), 0),
            "fc5": ((5,), 45),
        },
    ),
    (
        fr.ResNet(num_classes=5, stage_sizes=(1, 1), width=4),
        (32, 47),
        {
            "conv1": ((16, 24, 4), 592),
            "pool1_pool": ((7, 11, 4), 0),
            "res2a_branch1": ((7, 11, 16), 80),
            "res3a_branch2a": ((4, 6, 8), 136),
            "res3a_add": ((4, 6, 32), 0),
            "avg_pool": ((2, 3, 32), 0),
            "flatten": ((192,), 0),
            "fc5": ((5,), 965),
        },
    ),
]


def test_odd_image_sizes_match_keras():
    for model, image, expected in KERAS_LAYERS:
        layers = {info.layer.name: (info.shape, info.parameters + info.statistics) for info in inspect(model, image)}
        assert {name: layers[name] for name in expected} == expected


def layers_of_keras(model, image):
    """Returns the layers of the same network, built by Keras."""
    keras = pytest.importorskip("keras", reason="install keras (the `peers` extra)")
    config = keras_config(keras_layers(model, image, KEY_FORMATS["tutorial"]), "expected")
    return keras.Model.from_config(config["config"]).layers


@pytest.mark.parity
@pytest.mark.parametrize(
    ("size", "variant", "image"),
    [
        pytest.param("resnet50", "tutorial", (64, 64), marks=pytest.mark.campaign),
        ("resnet18", "keras", (65, 96)),
        ("resnet26", "tutorial", (32, 47)),
    ],
)
def test_layers_match_keras(size, variant, image):
    model = fr.resnet(size, variant, num_classes=5, width=4)
    by_name = {layer.name: layer for layer in layers_of_keras(model, image)}
    layers = inspect(model, image)
    assert len(layers) == len(by_name)
    for layer, info in zip(keras_layers(model, image, KEY_FORMATS["tutorial"]), layers, strict=True):
        assert by_name[layer.name].output.shape == (None, *info.shape), layer.name
        assert by_name[layer.name].count_params() == info.parameters + info.statistics, layer.name


@pytest.mark.parity
def test_recorded_shapes_match_keras():
    for model, image, expected in KERAS_LAYERS:
        layers = {layer.name: layer for layer in layers_of_keras(model, image)}
        for name, (shape, count) in expected.items():
            assert layers[name].output.shape == (None, *shape), name
            assert layers[name].count_params() == count, name


def test_tutorial_network_has_keras_totals(tutorials):
    assert sum(info.parameters + info.statistics for info in tutorials) == 23_600_006
    assert sum(info.parameters for info in tutorials) == 23_546_886


def test_elementwise_flops_count_elements(tutorials):
    layers = {info.layer.name: info for info in tutorials}
    assert layers["bn_conv1"].flops == 2 * 32 * 32 * 64
    assert layers["res2a_add"].flops == layers["res2a_out"].flops == 15 * 15 * 256
    assert layers["pool1_pool"].flops == 9 * 15 * 15 * 64
    assert layers["avg_pool"].flops == 4 * 2048
    assert layers["conv1_pad"].flops == layers["flatten"].flops == 0
    average = inspect(fr.ResNet(num_classes=6, stage_sizes=(1, 1, 1, 1), head="average"), (96, 96))[-2]
    assert (average.layer.name, average.flops, average.shape) == ("avg_pool", 3 * 3 * 2048, (2048,))


def test_frozen_parts_do_not_learn():
    model = fr.ResNet(num_classes=2, stage_sizes=(1, 1, 1, 1), width=4, bottleneck=False, frozen=("stem", "stage4"))
    layers = inspect(model, (32, 32))
    assert list(dict.fromkeys(info.part for info in layers)) == ["stem", "stage2", "stage3", "stage4", "stage5", "head"]
    assert {info.part for info in layers if not info.learns} == {"stem", "stage4"}


def test_inspect_allocates_no_arrays():
    layers = inspect(fr.ResNet(num_classes=1000, stage_sizes=(1,), width=2**19), (64, 64))
    assert sum(info.parameters for info in layers) * 4 > 10e12  # bytes, more than fit into memory


def test_inputs_precede_their_layer(tutorials):
    earlier = set()
    for info in tutorials:
        assert set(info.layer.inputs) <= earlier
        assert len(info.layer.inputs) == {"InputLayer": 0, "Add": 2}.get(info.layer.kind, 1)
        assert np.all(np.array(info.shape) > 0)
        earlier.add(info.layer.name)
