"""Folded batch norm: the same logits, no batch norm left, nothing changed in place."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import flaxresnet as fr
from flaxresnet.models.fold import fold_batch_norm
from flaxresnet.models.resnet import VARIANTS


@pytest.mark.parametrize(
    "fields", [{"stem_relu": True}, {"stem_relu": False}, {"bottleneck": False}, VARIANTS["torchvision"]]
)
def test_a_folded_network_gives_the_same_logits(small_init, fields):
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
