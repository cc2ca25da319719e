"""Tests color jitter and shadows: the ranges and frequencies of the draws, and the pixels that must stay unchanged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxresnet.augment import color_jitter
from flaxresnet.augment.color_jitter import jitter_colors, random_shadow

KEY = jax.random.key(7)
# Compiled in one piece: op by op, each new shape takes seconds.
compiled_jitter_colors = jax.jit(jitter_colors)
compiled_random_shadow = jax.jit(random_shadow)


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


def recompiled_jitter_colors(images, strength=1.0):
    """Calls `jitter_colors`, compiled with the module's constants as a test has set them."""
    return np.asarray(jax.jit(lambda *traced: jitter_colors(*traced))(KEY, images, strength), np.float64)


def disable_all_except(monkeypatch, *names):
    """Sets the ranges of all other changes of color to 0."""
    ranges = {"LOG_CONTRAST", "BRIGHTNESS", "LOG_CHANNEL_GAIN", "SATURATION", "LOG_MIDTONES", "GRAYSCALE"}
    for name in ranges - set(names):
        monkeypatch.setattr(color_jitter, name, 0.0)


@pytest.mark.parametrize("change", [compiled_jitter_colors, compiled_random_shadow])
def test_strength_0_changes_nothing(change):
    images = random_images(64, 6, 9, 3)
    np.testing.assert_allclose(change(KEY, images, 0.0), images, rtol=0, atol=1e-6)


@pytest.mark.parametrize("change", [compiled_jitter_colors, compiled_random_shadow])
def test_black_and_white_stay_in_range(change):
    changed = np.asarray(change(KEY, np.round(random_images(64, 6, 9, 3)), 2.0))
    assert np.isfinite(changed).all()
    assert changed.min() >= 0
    assert changed.max() <= 1


def test_brightness_and_gains_fill_their_ranges(monkeypatch):
    disable_all_except(monkeypatch, "BRIGHTNESS", "LOG_CHANNEL_GAIN")
    pixels = recompiled_jitter_colors(jnp.full((4000, 1, 1, 3), 0.5))[:, 0, 0]
    max_gain = color_jitter.LOG_CHANNEL_GAIN
    between_channels = np.log(pixels[:, 0] / pixels[:, 1]) / (2 * max_gain)
    assert 0.9 < np.abs(between_channels).max() <= 1.001
    low = 0.3 * np.exp(-max_gain)
    high = 0.7 * np.exp(max_gain)
    assert low - 1e-5 <= pixels.min() < low + 0.02
    assert high - 0.04 < pixels.max() <= high + 1e-5


def test_contrast_preserves_mean(monkeypatch):
    disable_all_except(monkeypatch, "LOG_CONTRAST")
    image = jnp.broadcast_to(jnp.array([0.48, 0.52])[:, None], (4000, 1, 2, 3))
    images = recompiled_jitter_colors(image)
    np.testing.assert_allclose(images.mean(axis=2), 0.5, atol=1e-6)
    spread = np.log(np.diff(images, axis=2)[:, 0, 0] / 0.04)
    np.testing.assert_allclose([spread.min(), spread.max()], [-0.35, 0.35], atol=0.01)


def test_saturation_preserves_channel_mean(monkeypatch):
    disable_all_except(monkeypatch, "SATURATION")
    color = jnp.broadcast_to(jnp.array([0.4, 0.5, 0.6]), (4000, 1, 1, 3))
    pixels = recompiled_jitter_colors(color)[:, 0, 0]
    np.testing.assert_allclose(pixels.mean(axis=-1), 0.5, atol=1e-6)
    factor = (pixels[:, 2] - pixels[:, 0]) / 0.2
    np.testing.assert_allclose([factor.min(), factor.max(), factor.mean()], [0.6, 1.4, 1.0], atol=0.02)


def test_midtones_preserve_black_and_white(monkeypatch):
    disable_all_except(monkeypatch, "LOG_MIDTONES")
    ramp = jnp.broadcast_to(jnp.linspace(0, 1, 9)[:, None], (2000, 1, 9, 3))
    levels = recompiled_jitter_colors(ramp)[:, 0, :, 0]
    np.testing.assert_allclose(levels[:, [0, -1]], [[0, 1]] * 2000, atol=1e-6)
    assert np.all(np.diff(levels, axis=1) > 0)
    np.testing.assert_allclose([levels[:, 4].min(), levels[:, 4].max()], [0.4, 0.6], atol=0.01)


def test_grayscale_affects_one_in_twenty(monkeypatch):
    disable_all_except(monkeypatch, "GRAYSCALE", "LOG_CHANNEL_GAIN")
    color = jnp.broadcast_to(jnp.array([0.2, 0.5, 0.8]), (4000, 1, 1, 3))
    is_gray = np.ptp(recompiled_jitter_colors(color), axis=-1) < 1e-6
    assert 0.035 < is_gray.mean() < 0.065
    assert np.ptp(recompiled_jitter_colors(color, 0.0), axis=-1).min() > 0.5


def test_shadow_affects_half_of_images():
    images = np.asarray(compiled_random_shadow(KEY, jnp.full((2000, 12, 12, 3), 0.8), 1.0), np.float64) / 0.8
    changed = images.min(axis=(1, 2, 3)) < 1 - 1e-6
    assert 0.45 < changed.mean() < 0.55
    assert 0.6 - 1e-6 <= images.min() < 0.63
    assert images.max() <= 1 + 1e-6
    np.testing.assert_allclose(images.std(axis=-1), 0, atol=1e-6)  # the shadow is neutral


def test_shadow_has_one_direction(monkeypatch):
    """All gradients of an image are multiples of one vector, which differs from image to image."""
    monkeypatch.setattr(color_jitter, "EDGE_WIDTHS", (1.5, 1.5))
    recompiled = jax.jit(lambda *traced: random_shadow(*traced))  # with the constant set above
    images = np.asarray(recompiled(KEY, np.full((200, 24, 24, 3), 0.8, np.float32), 2.0), np.float64)[..., 0]
    changed = images[np.ptp(images, axis=(1, 2)) > 0.1]
    gradients = np.stack(np.gradient(changed, axis=(1, 2)), axis=-1)[:, 1:-1, 1:-1].reshape(len(changed), -1, 2)
    singular_values = np.linalg.svd(gradients, compute_uv=False)
    assert (singular_values[:, 1] / singular_values[:, 0]).max() < 0.05
    means = gradients.mean(axis=1)
    directions = means / np.linalg.norm(means, axis=1, keepdims=True)
    assert np.abs(directions.mean(axis=0)).max() < 0.3
