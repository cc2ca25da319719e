"""Faults of a camera against SciPy, and by their ranges and shares."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import gaussian_filter1d

from flaxresnet.augment.blur_noise import BLUR, NOISE, blur_and_noise, gaussian_matrices, uniform_noise

KEY = jax.random.key(7)
compiled = jax.jit(blur_and_noise)


def traced_anew(*arguments):
    """`blur_and_noise`, compiled with the module's constants as a test has set them."""
    return jax.jit(lambda *given: blur_and_noise(*given))(*arguments)


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


def test_a_blur_agrees_with_scipy():
    row = random_images(40).astype(np.float64)
    deviations = (0.5, 1.3, 3.0)
    blurs = jax.jit(gaussian_matrices, static_argnums=0)(40, jnp.array(deviations, jnp.float32))
    for deviation, blur in zip(deviations, blurs, strict=True):
        weight = gaussian_filter1d(np.ones(40), deviation, mode="constant", truncate=12)
        expected = gaussian_filter1d(row, deviation, mode="constant", truncate=12) / weight
        np.testing.assert_allclose(np.asarray(blur, np.float64) @ row, expected, atol=1e-5, err_msg=str(deviation))


def test_no_deviation_is_no_blur():
    np.testing.assert_array_equal(jax.jit(gaussian_matrices, static_argnums=0)(9, jnp.zeros(1))[0], np.eye(9))


def test_strength_0_changes_nothing():
    images = random_images(64, 6, 9, 3)
    np.testing.assert_allclose(compiled(KEY, images, 0.0), images, rtol=0, atol=1e-6)


def test_half_of_the_images_are_blurred_up_to_the_widest(monkeypatch):
    monkeypatch.setattr("flaxresnet.augment.blur_noise.NOISE", 0.0)
    dot = np.zeros((1000, 33, 33, 3), np.float32)
    dot[:, 16, 16] = 1.0
    images = np.asarray(traced_anew(KEY, dot, 2.0), np.float64)
    sharp = images[:, 16, 16, 0] > 0.999
    assert 0.45 < sharp.mean() < 0.6
    place = np.arange(33) - 16
    found = [np.sqrt((images[..., 0].sum(axis=axis) * place**2).sum(axis=1)) for axis in (2, 1)]
    for deviation in found:  # down, across
        np.testing.assert_allclose(deviation.max(), BLUR * 2 * 33 / 64, rtol=0.05)
    assert np.abs(found[0] - found[1]).max() > 0.5
    np.testing.assert_allclose(images.sum(axis=(1, 2)), 1, atol=1e-4)


def test_noise_is_even_and_independent_in_every_value():
    noise = np.asarray(jax.jit(uniform_noise, static_argnums=1)(KEY, (8, 50, 50, 3)), np.float64)
    assert abs(noise.mean()) < 0.01
    np.testing.assert_allclose(noise.std(), 1, atol=0.01)
    np.testing.assert_allclose(np.abs(noise).max(), np.sqrt(3), atol=0.02)
    assert np.abs(np.corrcoef(noise.reshape(-1, 3).T) - np.eye(3)).max() < 0.03


def test_half_of_the_images_are_noisy_up_to_the_most(monkeypatch):
    monkeypatch.setattr("flaxresnet.augment.blur_noise.BLUR", 0.0)
    images = np.asarray(traced_anew(KEY, np.full((500, 16, 16, 3), 0.5, np.float32), 1.0), np.float64)
    deviation = images.std(axis=(1, 2, 3))
    assert 0.42 < (deviation < 1e-6).mean() < 0.58
    np.testing.assert_allclose(deviation.max(), NOISE, rtol=0.08)


def test_black_and_white_stay_in_range():
    images = np.asarray(compiled(KEY, np.round(random_images(64, 6, 9, 3)), 2.0))
    assert images.min() >= 0
    assert images.max() <= 1
