"""Random light: the draws by their ranges and shares, and that nothing is left of what is not asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxresnet.augment import color_jitter
from flaxresnet.augment.color_jitter import jitter_colors, random_shadow

KEY = jax.random.key(7)
# Compiled whole: an operation at a time, each shape takes seconds.
compiled_jitter_colors = jax.jit(jitter_colors)
compiled_random_shadow = jax.jit(random_shadow)


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


def recoloured(*arguments):
    """`jitter_colors`, compiled with the module's constants as a test has set them."""
    return jax.jit(lambda *given: jitter_colors(*given))(*arguments)


def only(monkeypatch, *kept):
    """Leaves these changes alone on."""
    for name in {"LOG_CONTRAST", "BRIGHTNESS", "LOG_COLOUR", "SATURATION", "LOG_MIDTONES", "GREY"} - set(kept):
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


def test_brightness_and_channel_gains_fill_their_ranges_and_stay_within(monkeypatch):
    only(monkeypatch, "BRIGHTNESS", "LOG_COLOUR")
    grey = jnp.full((4000, 1, 1, 3), 0.5)
    pixels = np.asarray(recoloured(KEY, grey, 1.0), np.float64)[:, 0, 0]
    between_channels = np.log(pixels[:, 0] / pixels[:, 1]) / (2 * color_jitter.LOG_COLOUR)
    assert 0.9 < np.abs(between_channels).max() <= 1.001
    low, high = 0.3 * np.exp(-color_jitter.LOG_COLOUR), 0.7 * np.exp(color_jitter.LOG_COLOUR)
    assert low - 1e-5 <= pixels.min() < low + 0.02
    assert high - 0.04 < pixels.max() <= high + 1e-5


def test_contrast_spreads_grey_levels_about_their_mean(monkeypatch):
    only(monkeypatch, "LOG_CONTRAST")
    image = jnp.broadcast_to(jnp.array([0.48, 0.52])[:, None], (4000, 1, 2, 3))
    images = np.asarray(recoloured(KEY, image, 1.0), np.float64)
    np.testing.assert_allclose(images.mean(axis=2), 0.5, atol=1e-6)
    spread = np.log(np.diff(images, axis=2)[:, 0, 0] / 0.04)
    np.testing.assert_allclose([spread.min(), spread.max()], [-0.35, 0.35], atol=0.01)


def test_saturation_spreads_channels_about_their_grey(monkeypatch):
    only(monkeypatch, "SATURATION")
    colour = jnp.broadcast_to(jnp.array([0.4, 0.5, 0.6]), (4000, 1, 1, 3))
    pixels = np.asarray(recoloured(KEY, colour, 1.0), np.float64)[:, 0, 0]
    np.testing.assert_allclose(pixels.mean(axis=-1), 0.5, atol=1e-6)
    factor = (pixels[:, 2] - pixels[:, 0]) / 0.2
    np.testing.assert_allclose([factor.min(), factor.max(), factor.mean()], [0.6, 1.4, 1.0], atol=0.02)


def test_mid_tones_move_and_black_and_white_stay(monkeypatch):
    only(monkeypatch, "LOG_MIDTONES")
    ramp = jnp.broadcast_to(jnp.linspace(0, 1, 9)[:, None], (2000, 1, 9, 3))
    found = np.asarray(recoloured(KEY, ramp, 1.0), np.float64)[:, 0, :, 0]
    np.testing.assert_allclose(found[:, [0, -1]], [[0, 1]] * 2000, atol=1e-6)
    assert np.all(np.diff(found, axis=1) > 0)
    np.testing.assert_allclose([found[:, 4].min(), found[:, 4].max()], [0.4, 0.6], atol=0.01)


def test_one_image_in_twenty_is_grey(monkeypatch):
    only(monkeypatch, "GREY", "LOG_COLOUR")
    colour = jnp.broadcast_to(jnp.array([0.2, 0.5, 0.8]), (4000, 1, 1, 3))
    pixels = np.asarray(recoloured(KEY, colour, 1.0), np.float64)[:, 0, 0]
    share = (np.ptp(pixels, axis=-1) < 1e-6).mean()
    assert 0.035 < share < 0.065
    assert (np.ptp(np.asarray(recoloured(KEY, colour, 0.0)), axis=-1) > 0.5).all()


def test_half_of_the_images_are_darker_on_one_side_and_the_others_as_they_were():
    images = np.asarray(compiled_random_shadow(KEY, jnp.full((2000, 12, 12, 3), 0.8), 1.0), np.float64) / 0.8
    changed = images.min(axis=(1, 2, 3)) < 1 - 1e-6
    assert 0.45 < changed.mean() < 0.55
    assert 0.6 - 1e-6 <= images.min() < 0.63
    assert images.max() <= 1 + 1e-6
    np.testing.assert_allclose(images.std(axis=-1), 0, atol=1e-6)  # a lamp's shadow has no colour


def test_light_falls_in_one_direction(monkeypatch):
    """All slopes of the image are multiples of one vector, which differs from image to image."""
    monkeypatch.setattr(color_jitter, "EDGES", (1.5, 1.5))
    anew = jax.jit(lambda *given: random_shadow(*given))  # with the constant set above
    images = np.asarray(anew(KEY, np.full((200, 24, 24, 3), 0.8, np.float32), 2.0), np.float64)[..., 0]
    changed = images[np.ptp(images, axis=(1, 2)) > 0.1]
    slopes = np.stack(np.gradient(changed, axis=(1, 2)), axis=-1)[:, 1:-1, 1:-1].reshape(len(changed), -1, 2)
    values = np.linalg.svd(slopes, compute_uv=False)
    assert (values[:, 1] / values[:, 0]).max() < 0.05
    towards = slopes.mean(axis=1) / np.linalg.norm(slopes.mean(axis=1), axis=1, keepdims=True)
    assert np.abs(towards.mean(axis=0)).max() < 0.3
