"""Tests of figures that are computed without building the network, against the network itself."""

from functools import partial

import jax
import numpy as np
import pytest

from flaxresnet.models.layer_graph import count_convolutions, feature_map_size, graph
from flaxresnet.models.resnet import SIZES, VARIANTS, ResNet, resnet
from flaxresnet.weights.flat_params import shapes_of

VARIANT_AND_BLOCKS = [(variant, bottleneck) for variant in VARIANTS for bottleneck in (False, True)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_feature_map_size_matches_network(variant):
    fields = VARIANTS[variant] | {"num_classes": 2, "width": 4, "bottleneck": False}
    model = ResNet(**fields, stage_sizes=(1, 1, 1))
    for side in (32, 33, 64, 65, 96, 127, 224, 230, 512):
        images = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
        init = partial(model.init_with_output, features=True)
        features, _ = jax.eval_shape(init, jax.random.key(0), images)
        assert feature_map_size(model, side) == features["stage4"].shape[1], side


@pytest.mark.parametrize(("variant", "bottleneck"), VARIANT_AND_BLOCKS)
def test_count_convolutions_of_small_networks(variant, bottleneck):
    fields = VARIANTS[variant] | {"num_classes": 2, "width": 4, "bottleneck": bottleneck}
    for stages in ((1,), (2, 1), (1, 3, 2)):
        model = ResNet(**fields, stage_sizes=stages)
        assert count_convolutions(model) == convolutions_of(model), stages


@pytest.mark.parametrize(("bottleneck", "strided"), [(False, "a"), (True, "b")])
def test_graph_of_torchvision_variant_strides(bottleneck, strided):
    model = ResNet(**VARIANTS["torchvision"], num_classes=2, stage_sizes=(1, 1), width=4, bottleneck=bottleneck)
    strides = {layer.name: layer.options.get("strides") for layer in graph(model, (32, 32))}
    for letter in "ab":
        assert strides[f"res3a_branch2{letter}"] == ([2, 2] if letter == strided else [1, 1])


@pytest.mark.campaign
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", SIZES)
def test_count_convolutions_of_every_size(variant, size):
    model = resnet(size, variant, num_classes=2, width=32)
    assert count_convolutions(model) == convolutions_of(model)


def convolutions_of(model):
    """Returns the number of convolution kernels in a network's parameters."""
    return len([shape for shape in shapes_of(model, (64, 64)).values() if len(shape) == 4])
