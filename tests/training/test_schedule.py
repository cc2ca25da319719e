"""Tests of the schedules against formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxresnet.config.train_config import TrainConfig
from flaxresnet.runtime.errors import UserError
from flaxresnet.training.schedule import augmentation_schedule, make_schedule, steps_for

RATE = 2e-3  # of the recipe `robust`


def rates(config, steps_per_epoch):
    schedule = make_schedule(config, steps_per_epoch)
    return np.array([schedule(step) for step in range(config.epochs * steps_per_epoch)], np.float64)


def expected_rate(step, peak, warmup, total):
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


def test_tutorial_rate_is_constant():
    np.testing.assert_allclose(rates(TrainConfig(recipe="tutorial", epochs=3), 4), np.full(12, 1e-3), rtol=1e-6)


def test_robust_rate_follows_cosine():
    actual = rates(TrainConfig(recipe="robust", epochs=4), 5)
    np.testing.assert_allclose(actual, [expected_rate(s, RATE, 5, 20) for s in range(20)], rtol=1e-5)
    np.testing.assert_allclose(actual[:5], RATE * np.array([0.2, 0.4, 0.6, 0.8, 1]), rtol=1e-6)
    assert actual.max() == pytest.approx(RATE, rel=1e-6)
    assert 0 < actual[-1] < 0.02 * RATE


def test_cosine_ends_at_zero():
    schedule = make_schedule(TrainConfig(epochs=4), 5)
    np.testing.assert_allclose([schedule(20), schedule(25)], 0, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "steps_per_epoch", "warmup"),
    [
        ({"learning_rate": 0.3}, 5, 5),
        ({"warmup_epochs": 0.4}, 5, 2),
        ({"warmup_epochs": 0.2}, 5, 1),
        ({"warmup_epochs": 0}, 5, 0),
        ({"warmup_epochs": 2.5}, 4, 10),
        ({"recipe": "tutorial", "schedule": "cosine", "learning_rate": 1e-3}, 6, 0),
    ],
)
def test_schedule_follows_options(options, steps_per_epoch, warmup):
    config, total = TrainConfig(epochs=4, **options), 4 * steps_per_epoch
    peak = options.get("learning_rate", RATE)
    expected = [expected_rate(step, peak, warmup, total) for step in range(total)]
    np.testing.assert_allclose(rates(config, steps_per_epoch), expected, rtol=1e-5, atol=1e-9)


def test_constant_rate_stays_at_peak():
    actual = rates(TrainConfig(schedule="constant", warmup_epochs=1, learning_rate=0.4, epochs=3), 4)
    np.testing.assert_allclose(actual, [0.1, 0.2, 0.3, *[0.4] * 9], rtol=1e-6)


@pytest.mark.parametrize("warmup_epochs", [2, 5])
def test_long_warmup_only_rises(warmup_epochs):
    actual = rates(TrainConfig(warmup_epochs=warmup_epochs, epochs=2), 5)
    np.testing.assert_allclose(actual, RATE * np.arange(1, 11) / (5 * warmup_epochs), rtol=1e-5)


def test_schedule_works_in_jit():
    schedule = make_schedule(TrainConfig(epochs=4), 5)
    actual = jax.jit(jax.vmap(schedule))(jnp.arange(20))
    np.testing.assert_allclose(actual, [expected_rate(s, RATE, 5, 20) for s in range(20)], rtol=1e-5, atol=1e-9)


def test_augmentation_strength_rises_linearly():
    strength = augmentation_schedule(TrainConfig(aug_strength=0.5, aug_warmup_epochs=1.5), steps_per_epoch=4)
    actual = [float(strength(step)) for step in range(9)]
    np.testing.assert_allclose(actual, [0.5 * min(step / 6, 1) for step in range(9)], rtol=1e-6)


def test_augmentation_without_warmup_is_constant():
    strength = augmentation_schedule(TrainConfig(aug_strength=0.5, aug_warmup_epochs=0), steps_per_epoch=4)
    assert [float(strength(step)) for step in (0, 1, 100)] == [0.5] * 3


@pytest.mark.parametrize("option", ["epochs", "warmup_epochs", "aug_warmup_epochs"])
def test_schedule_rejects_too_many_steps(option):
    config = TrainConfig(**{option: 1_000_000})
    message = (
        rf"--{option.replace('_', '-')} 1000000 is 5e\+09 steps, more than the 2,147,483,647 that can be counted; "
    )
    with pytest.raises(UserError, match=message + "give fewer epochs"):
        make_schedule(config, 5000), augmentation_schedule(config, 5000)
    with pytest.raises(UserError, match="--freeze-backbone-epochs 1000000 is"):
        steps_for("freeze_backbone_epochs", 1_000_000, 5000)
    assert steps_for("freeze_backbone_epochs", 0.5, 5000) == 2500
