"""What is worked out about a network without making it, against the network itself."""

from functools import partial

import jax
import numpy as np
import pytest

from flaxresnet.models import layer_graph
from flaxresnet.models.resnet import SIZES, VARIANTS, ResNet, resnet
from flaxresnet.weights.flat_params import shapes_of

VARIANT_AND_BLOCKS = [(variant, bottleneck) for variant in VARIANTS for bottleneck in (False, True)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_last_side_is_that_of_the_last_features(variant):
    fields = VARIANTS[variant] | {"num_classes": 2, "width": 4, "bottleneck": False}
    model = ResNet(**fields, stage_sizes=(1, 1, 1))
    for side in (32, 33, 64, 65, 96, 127, 224, 230, 512):
        images = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
        init = partial(model.init_with_output, features=True)
        features, _ = jax.eval_shape(init, jax.random.key(0), images)
        assert layer_graph.feature_map_size(model, side) == features["stage4"].shape[1], side


@pytest.mark.parametrize(("variant", "bottleneck"), VARIANT_AND_BLOCKS)
def test_convolutions_of_small_networks_are_counted(variant, bottleneck):
    fields = VARIANTS[variant] | {"num_classes": 2, "width": 4, "bottleneck": bottleneck}
    for stages in ((1,), (2, 1), (1, 3, 2)):
        model = ResNet(**fields, stage_sizes=stages)
        assert layer_graph.count_convolutions(model) == convolutions_of(model), stages


@pytest.mark.campaign
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", SIZES)
def test_convolutions_of_every_size_are_counted(variant, size):
    model = resnet(size, variant, num_classes=2, width=32)
    assert layer_graph.count_convolutions(model) == convolutions_of(model)


def convolutions_of(model):
    return len([shape for shape in shapes_of(model, (64, 64)).values() if len(shape) == 4])
