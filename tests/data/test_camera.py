"""Faults of a camera against SciPy, and by their ranges and shares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from flaxresnet.data.camera import BLUR, NOISE, gaussians, grains, photographed

KEY = jax.random.key(7)
compiled = jax.jit(photographed)


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


@pytest.mark.parametrize("deviation", [0.5, 1.3, 3.0])
def test_a_blur_agrees_with_scipy(deviation):
    row = random_images(40).astype(np.float64)
    blurred = np.asarray(gaussians(40, jnp.array([deviation], jnp.float32))[0], np.float64) @ row
    weight = gaussian_filter1d(np.ones(40), deviation, mode="constant", truncate=12)
    expected = gaussian_filter1d(row, deviation, mode="constant", truncate=12) / weight
    np.testing.assert_allclose(blurred, expected, atol=1e-5)


def test_no_deviation_is_no_blur():
    np.testing.assert_array_equal(gaussians(9, jnp.zeros(1))[0], np.eye(9))


@pytest.mark.parametrize("size", [(8, 8), (5, 12)], ids=str)
def test_strength_0_changes_nothing(size):
    images = random_images(4, *size, 3)
    np.testing.assert_allclose(compiled(KEY, images, 0.0), images, rtol=0, atol=1e-6)


def test_half_of_the_images_are_blurred_up_to_the_widest(monkeypatch):
    monkeypatch.setattr("flaxresnet.data.camera.NOISE", 0.0)
    dot = jnp.zeros((1000, 33, 33, 3)).at[:, 16, 16].set(1.0)
    images = np.asarray(photographed(KEY, dot, 2.0), np.float64)
    sharp = images[:, 16, 16, 0] > 0.999
    assert 0.45 < sharp.mean() < 0.6
    place = np.arange(33) - 16
    found = [np.sqrt((images[..., 0].sum(axis=axis) * place**2).sum(axis=1)) for axis in (2, 1)]
    for deviation in found:  # down, across
        np.testing.assert_allclose(deviation.max(), BLUR * 2 * 33 / 64, rtol=0.05)
    assert np.abs(found[0] - found[1]).max() > 0.5
    np.testing.assert_allclose(images.sum(axis=(1, 2)), 1, atol=1e-4)


def test_noise_is_even_and_independent_in_every_value():
    noise = np.asarray(grains(KEY, (8, 50, 50, 3)), np.float64)
    assert abs(noise.mean()) < 0.01
    np.testing.assert_allclose(noise.std(), 1, atol=0.01)
    np.testing.assert_allclose(np.abs(noise).max(), np.sqrt(3), atol=0.02)
    assert np.abs(np.corrcoef(noise.reshape(-1, 3).T) - np.eye(3)).max() < 0.03


def test_half_of_the_images_are_noisy_up_to_the_most(monkeypatch):
    monkeypatch.setattr("flaxresnet.data.camera.BLUR", 0.0)
    images = np.asarray(photographed(KEY, jnp.full((500, 16, 16, 3), 0.5), 1.0), np.float64)
    deviation = images.std(axis=(1, 2, 3))
    assert 0.42 < (deviation < 1e-6).mean() < 0.58
    np.testing.assert_allclose(deviation.max(), NOISE, rtol=0.08)


def test_black_and_white_stay_in_range():
    images = np.asarray(compiled(KEY, np.round(random_images(64, 6, 9, 3)), 2.0))
    assert images.min() >= 0
    assert images.max() <= 1
