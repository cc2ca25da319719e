"""Tests blur and noise against SciPy, and the ranges and frequencies of the draws."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import gaussian_filter1d

from flaxresnet.augment.blur_noise import BLUR, NOISE, blur_and_noise, gaussian_matrices, uniform_noise

KEY = jax.random.key(7)
compiled_blur_and_noise = jax.jit(blur_and_noise)
compiled_gaussian_matrices = jax.jit(gaussian_matrices, static_argnums=0)


def recompiled_blur_and_noise(*arguments):
    """Calls `blur_and_noise`, compiled with the module's constants as a test has set them."""
    return np.asarray(jax.jit(lambda *traced: blur_and_noise(*traced))(*arguments), np.float64)


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


def test_gaussian_matrices_match_scipy():
    row = random_images(40).astype(np.float64)
    deviations = (0.5, 1.3, 3.0)
    matrices = compiled_gaussian_matrices(40, jnp.array(deviations, jnp.float32))
    for deviation, matrix in zip(deviations, matrices, strict=True):
        weight = gaussian_filter1d(np.ones(40), deviation, mode="constant", truncate=12)
        expected = gaussian_filter1d(row, deviation, mode="constant", truncate=12) / weight
        np.testing.assert_allclose(np.asarray(matrix, np.float64) @ row, expected, atol=1e-5, err_msg=str(deviation))


def test_deviation_0_gives_identity():
    np.testing.assert_array_equal(compiled_gaussian_matrices(9, jnp.zeros(1))[0], np.eye(9))


def test_strength_0_changes_nothing():
    images = random_images(64, 6, 9, 3)
    np.testing.assert_allclose(compiled_blur_and_noise(KEY, images, 0.0), images, rtol=0, atol=1e-6)


def test_blur_affects_half_of_images(monkeypatch):
    monkeypatch.setattr("flaxresnet.augment.blur_noise.NOISE", 0.0)
    dots = np.zeros((1000, 33, 33, 3), np.float32)
    dots[:, 16, 16] = 1.0
    images = recompiled_blur_and_noise(KEY, dots, 2.0)
    sharp = images[:, 16, 16, 0] > 0.999
    assert 0.45 < sharp.mean() < 0.6
    squared_distance = (np.arange(33) - 16) ** 2
    vertical = np.sqrt((images[..., 0].sum(axis=2) * squared_distance).sum(axis=1))
    horizontal = np.sqrt((images[..., 0].sum(axis=1) * squared_distance).sum(axis=1))
    np.testing.assert_allclose([vertical.max(), horizontal.max()], BLUR * 2 * 33 / 64, rtol=0.05)
    assert np.abs(vertical - horizontal).max() > 0.5
    np.testing.assert_allclose(images.sum(axis=(1, 2)), 1, atol=1e-4)


def test_noise_is_uniform_and_independent():
    noise = np.asarray(jax.jit(uniform_noise, static_argnums=1)(KEY, (8, 50, 50, 3)), np.float64)
    assert abs(noise.mean()) < 0.01
    np.testing.assert_allclose(noise.std(), 1, atol=0.01)
    np.testing.assert_allclose(np.abs(noise).max(), np.sqrt(3), atol=0.02)
    assert np.abs(np.corrcoef(noise.reshape(-1, 3).T) - np.eye(3)).max() < 0.03


def test_noise_affects_half_of_images(monkeypatch):
    monkeypatch.setattr("flaxresnet.augment.blur_noise.BLUR", 0.0)
    images = recompiled_blur_and_noise(KEY, np.full((500, 16, 16, 3), 0.5, np.float32), 1.0)
    deviation = images.std(axis=(1, 2, 3))
    assert 0.42 < (deviation < 1e-6).mean() < 0.58
    np.testing.assert_allclose(deviation.max(), NOISE, rtol=0.08)


def test_black_and_white_stay_in_range():
    images = np.asarray(compiled_blur_and_noise(KEY, np.round(random_images(64, 6, 9, 3)), 2.0))
    assert images.min() >= 0
    assert images.max() <= 1
