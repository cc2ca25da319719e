"""Tests corruption operations that have a known result."""

import numpy as np
import pytest

from flaxresnet.data.hand_signs.render import render_signs
from flaxresnet.reliability import corruption_ops as ops

RNG = np.random.default_rng(0)
SEEDS = range(8)  # enough to draw both a factor and its inverse


def test_rotation_by_90_degrees_matches_rot90():
    photo = render_signs(1, seed=3)[0][0]
    rotated = ops.rotation(photo, 90, RNG).astype(float)
    assert min(np.abs(rotated - np.rot90(photo, quarter)).max() for quarter in (1, 3)) <= 1


def test_scale_changes_area():
    photo = np.full((40, 40, 3), 250, np.uint8)
    photo[10:30, 12:28] = 10
    areas = {int((ops.scale(photo, 2.0, np.random.default_rng(seed))[..., 0] < 128).sum()) for seed in SEEDS}
    assert len(areas) == 2
    assert min(areas) == pytest.approx(80, abs=8)
    assert max(areas) == pytest.approx(1280, abs=16)


def test_light_ops_on_constant_photo():
    gray = np.full((8, 8, 3), 100, np.uint8)
    levels = {round(float(ops.brightness(gray, 2.0, np.random.default_rng(seed)).mean())) for seed in SEEDS}
    assert levels == {200, 50}
    levels = {round(float(ops.gamma(gray, 2.0, np.random.default_rng(seed)).mean()), 1) for seed in SEEDS}
    assert levels == {39.2, 159.7}
    gradient = ops.light_gradient(gray, 0.6, RNG)
    assert (gradient.min(), gradient.max()) == pytest.approx((40, 100))
    shadow = ops.shadow(gray, 0.5, RNG)
    assert (shadow.min(), shadow.max()) == pytest.approx((50, 100))


def test_occlusion_covers_requested_area():
    black = np.zeros((60, 60, 3), np.uint8)
    for seed in range(5):
        covered = ops.occlusion(black, 0.1, np.random.default_rng(seed)).any(axis=-1)
        assert covered.mean() == pytest.approx(0.1, abs=0.015)
