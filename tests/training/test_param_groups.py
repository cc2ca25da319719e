"""Tests of the (pattern, schedule) lists."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxresnet.config.train_config import TrainConfig
from flaxresnet.training.param_groups import (
    find_schedule,
    frozen_groups,
    learning_rate_groups,
    scale_by_groups,
    trainable_params,
    weight_decay_mask,
)

PARAMS = {
    "conv1": {"kernel": jnp.ones((1, 1)), "bias": jnp.ones(1)},
    "bn_conv1": {"scale": jnp.ones(1)},
    "res2a": {"res2a_branch2a": {"kernel": jnp.ones((1, 1))}},
    "res5c": {"res5c_branch2a": {"kernel": jnp.ones((1, 1))}},
    "fc6": {"kernel": jnp.ones((1, 1))},
}


def test_first_matching_pattern_wins():
    full = optax.constant_schedule(1.0)
    half = optax.constant_schedule(0.5)
    groups = [("stage2/.*/kernel", half), ("stage2/", None), (".*", full)]
    assert find_schedule(groups, "stage2/res2a/kernel") is half
    assert find_schedule(groups, "stage2/res2a/bias") is None
    assert find_schedule(groups, "head/fc6/kernel") is full


def test_unmatched_parameter_raises():
    with pytest.raises(ValueError, match=r"no pattern of \['stem/'\] matches the parameter head/fc6/kernel"):
        find_schedule([("stem/", None)], "head/fc6/kernel")


def test_frozen_groups_select_trainable_layers():
    assert set(trainable_params(PARAMS, frozen_groups(("stem", "stage2")))) == {"res5c", "fc6"}
    assert set(trainable_params(PARAMS, frozen_groups(()))) == set(PARAMS)


def test_layer_decay_counts_stages_of_model():
    config = TrainConfig(recipe="tutorial", model="resnet20", layer_decay=0.5)
    groups = learning_rate_groups(config, steps_per_epoch=2)
    rates = {pattern: schedule(0) for pattern, schedule in groups}
    assert rates == {"head/": 1, "stage4/": 1 / 2, "stage3/": 1 / 4, "stage2/": 1 / 8, "stem/": 1 / 16}


def test_weight_decay_mask_selects_kernels():
    assert weight_decay_mask(PARAMS) == {
        "conv1": {"kernel": True, "bias": False},
        "bn_conv1": {"scale": False},
        "res2a": {"res2a_branch2a": {"kernel": True}},
        "res5c": {"res5c_branch2a": {"kernel": True}},
        "fc6": {"kernel": True},
    }


@pytest.mark.parametrize(
    ("options", "multipliers"),  # of stem, stage 2, stage 5 and head, at steps 0 to 3 of two steps per epoch
    [
        ({"layer_decay": 0.5}, [[1 / 32, 1 / 16, 1 / 2, 1]] * 4),
        ({"freeze_backbone_epochs": 1.0}, [[0, 0, 0, 1]] * 2 + [[1, 1, 1, 1]] * 2),
        ({"freeze": "stem,stage2"}, [[0, 0, 1, 1]] * 4),
        (
            {"freeze": "stem", "layer_decay": 0.5, "freeze_backbone_epochs": 0.5},
            [[0, 0, 0, 1], *[[0, 1 / 16, 0.5, 1]] * 3],
        ),
    ],
)
def test_learning_rate_groups_scale_updates(options, multipliers):
    config = TrainConfig(recipe="tutorial", **options)
    scale = scale_by_groups(learning_rate_groups(config, steps_per_epoch=2))
    state = scale.init(PARAMS)
    actual = []
    for _ in multipliers:
        updates, state = jax.jit(scale.update)(PARAMS, state)
        actual.append([jax.tree.leaves(updates[layer])[0].item() for layer in ("conv1", "res2a", "res5c", "fc6")])
    np.testing.assert_allclose(actual, multipliers)
