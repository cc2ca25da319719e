"""Kinds of change, where the result is known."""

import numpy as np
import pytest

from flaxresnet.data.hand_signs.render import render_signs
from flaxresnet.reliability import corruption_ops as ops

RNG = np.random.default_rng(0)


def test_a_quarter_turn_is_one():
    photo = render_signs(1, seed=3)[0][0]
    turned = ops.rotation(photo, 90, RNG)
    either = [np.rot90(photo, quarter) for quarter in (1, 3)]
    assert min(np.abs(turned.astype(float) - other).max() for other in either) <= 1


def test_twice_as_far_is_half_as_large():
    photo = np.full((40, 40, 3), 250, np.uint8)
    photo[10:30, 12:28] = 10
    sizes = {int((ops.scale(photo, 2.0, np.random.default_rng(seed))[..., 0] < 128).sum()) for seed in range(8)}
    assert len(sizes) == 2
    assert min(sizes) == pytest.approx(80, abs=8)
    assert max(sizes) == pytest.approx(1280, abs=16)


def test_light_on_one_grey():
    grey = np.full((8, 8, 3), 100, np.uint8)
    found = {round(float(ops.brightness(grey, 2.0, np.random.default_rng(seed)).mean())) for seed in range(8)}
    assert found == {200, 50}
    exponents = {round(float(ops.gamma(grey, 2.0, np.random.default_rng(seed)).mean()), 1) for seed in range(8)}
    assert exponents == {39.2, 159.7}
    falling = ops.light_gradient(grey, 0.6, RNG)
    assert (falling.min(), falling.max()) == pytest.approx((40, 100))
    dark = ops.shadow(grey, 0.5, RNG)
    assert (dark.min(), dark.max()) == pytest.approx((50, 100))


def test_a_box_of_the_share_is_covered():
    black = np.zeros((60, 60, 3), np.uint8)
    for seed in range(5):
        covered = ops.occlusion(black, 0.1, np.random.default_rng(seed)).any(axis=-1)
        assert covered.mean() == pytest.approx(0.1, abs=0.015)
