"""A network's layers as they are listed, against the real Keras and published figures."""

import numpy as np
import pytest

import flaxresnet as fr
from flaxresnet.inspection.layers import inspect
from flaxresnet.interop.keras_model import keras_config, keras_layers
from flaxresnet.interop.worlds import WORLDS

# 10⁹ multiplications and additions of convolutions and dense layers for an image of 224×224, and parameters, as
# torchvision's page of each network's weights has them ("GFLOPS", "Num params").
PUBLISHED = {
    "resnet18": (1.81, 11_689_512),
    "resnet34": (3.66, 21_797_672),
    "resnet50": (4.09, 25_557_032),
    "resnet101": (7.80, 44_549_160),
    "resnet152": (11.51, 60_192_808),
    "resnext50_32x4d": (4.23, 25_028_904),
    "wide_resnet50_2": (11.40, 68_883_240),
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_work_and_parameters_are_the_published_ones(size):
    layers = inspect(fr.resnet(size, "torchvision", num_classes=1000), (224, 224))
    products = sum(one.flops for one in layers if one.layer.kind in ("Conv2D", "Dense")) / 2
    work, parameters = PUBLISHED[size]
    assert products / 1e9 == pytest.approx(work, abs=0.006)
    assert sum(one.parameters for one in layers) == parameters


@pytest.mark.parametrize(
    ("size", "variant", "image"),
    [("resnet50", "tutorial", (64, 64)), ("resnet18", "keras", (65, 96)), ("resnet18", "tutorial", (32, 47))],
)
def test_shapes_and_parameters_are_those_of_keras(size, variant, image):
    keras = pytest.importorskip("keras", reason="install keras (the `test` extra)")
    model = fr.resnet(size, variant, num_classes=5, width=4)
    theirs = keras.Model.from_config(keras_config(keras_layers(model, image, WORLDS["tutorial"]), "theirs")["config"])
    layers = inspect(model, image)
    assert len(layers) == len(theirs.layers)
    by_name = {layer.name: layer for layer in theirs.layers}
    for layer, one in zip(keras_layers(model, image, WORLDS["tutorial"]), layers, strict=True):
        assert by_name[layer.name].output.shape == (None, *one.shape), layer.name
        assert by_name[layer.name].count_params() == one.parameters + one.statistics, layer.name


def test_the_tutorials_network_has_the_tutorials_totals():
    layers = inspect(fr.ResNet50(num_classes=6), (64, 64))
    assert sum(one.parameters + one.statistics for one in layers) == 23_600_006
    assert sum(one.parameters for one in layers) == 23_546_886


def test_elementwise_work_is_counted_an_element():
    layers = {one.layer.name: one for one in inspect(fr.ResNet50(num_classes=6), (64, 64))}
    assert layers["bn_conv1"].flops == 2 * 32 * 32 * 64
    assert layers["res2a_add"].flops == layers["res2a_out"].flops == 15 * 15 * 256
    assert layers["pool1_pool"].flops == 9 * 15 * 15 * 64
    assert layers["avg_pool"].flops == 4 * 2048
    assert layers["conv1_pad"].flops == layers["flatten"].flops == 0
    average = inspect(fr.ResNet50(num_classes=6, head="average"), (96, 96))[-2]
    assert (average.layer.name, average.flops, average.shape) == ("avg_pool", 3 * 3 * 2048, (2048,))


def test_every_layer_is_of_its_part_and_learns_unless_frozen():
    layers = inspect(fr.ResNet18(num_classes=2, width=4, frozen=("stem", "stage4")), (32, 32))
    assert list(dict.fromkeys(one.part for one in layers)) == ["stem", "stage2", "stage3", "stage4", "stage5", "head"]
    assert {one.part for one in layers if not one.learns} == {"stem", "stage4"}


def test_no_array_is_made():
    layers = inspect(fr.resnet("resnet152", "torchvision", num_classes=1000, width=64 * 256), (512, 512))
    assert sum(one.parameters for one in layers) * 4 > 10e12  # bytes: more than any machine here has


def test_connections_lead_to_layers_before():
    seen = set()
    for one in inspect(fr.ResNet34(num_classes=2), (64, 64)):
        assert set(one.layer.inputs) <= seen
        assert len(one.layer.inputs) == {"InputLayer": 0, "Add": 2}.get(one.layer.kind, 1)
        assert np.all(np.array(one.shape) > 0)
        seen.add(one.layer.name)
