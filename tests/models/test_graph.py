"""What is worked out about a network without making it, against the network itself."""

import jax
import numpy as np
import pytest

from flaxresnet.interop.layers import shapes_of
from flaxresnet.models import graph
from flaxresnet.models.resnet import SIZES, VARIANTS, resnet


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("side", [32, 33, 64, 65, 96, 127, 224, 230, 512])
def test_the_last_side_is_that_of_the_last_features(variant, side):
    model = resnet("resnet18", variant, num_classes=2, width=4)
    images = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    features = jax.eval_shape(lambda v, x: model.apply(v, x, features=True), variables, images)
    assert graph.last_side(model, side) == features["stage5"].shape[1]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", SIZES)
def test_convolutions_are_counted_as_they_are(variant, size):
    model = resnet(size, variant, num_classes=2, width=32)
    kernels = [shape for shape in shapes_of(model, (64, 64)).values() if len(shape) == 4]
    assert graph.count_convolutions(model) == len(kernels)
