"""Tests background replacement: segmentation against known masks, and the images that must stay unchanged."""

import jax
import numpy as np
import pytest

from flaxresnet.augment.background import (
    foreground_mask,
    linear_weights,
    otsu_threshold,
    random_backgrounds,
    replace_background,
)
from flaxresnet.data.hand_signs.render import render_signs

KEY = jax.random.key(7)
compiled_replace_background = jax.jit(replace_background)
compiled_foreground_mask = jax.jit(foreground_mask)


def disc(size=40, color=(0.7, 0.45, 0.3), background=(0.8, 0.8, 0.8)):
    """Returns an image of a disc before a background that is brightest in the middle, and the disc's mask."""
    y, x = np.mgrid[:size, :size] / (size - 1) - 0.5
    mask = (y - 0.1) ** 2 + x**2 < 0.09
    light = 1.1 - 0.8 * (y**2 + x**2)
    return (np.where(mask[..., None], color, background) * light[..., None]).astype(np.float32), mask


COLORS = {
    "skin on gray": ((0.7, 0.45, 0.3), (0.8, 0.8, 0.8)),
    "dark on gray": ((0.1, 0.1, 0.1), (0.7, 0.7, 0.7)),
    "skin on green": ((0.8, 0.6, 0.5), (0.2, 0.6, 0.2)),
    "blue on white": ((0.1, 0.2, 0.7), (0.9, 0.9, 0.9)),
}


def test_mask_covers_object_on_plain_background():
    images, expected = zip(*(disc(40, *colors) for colors in COLORS.values()), strict=True)
    masks, plain = compiled_foreground_mask(np.stack(images))
    for index, name in enumerate(COLORS):
        assert plain[index], name
        mask = np.asarray(masks[index]) > 0.5
        assert (mask & expected[index]).sum() / (mask | expected[index]).sum() > 0.93, name


def test_mask_covers_rendered_hands():
    """Most rendered signs have a plain background, and a hand covers a tenth to a half of the image."""
    images, _ = render_signs(24, seed=3)
    masks, plain = compiled_foreground_mask(images / np.float32(255))
    assert np.asarray(plain).mean() > 0.9
    assert 0.1 < np.median(np.asarray(masks).mean(axis=(1, 2))) < 0.5


def test_images_without_plain_background_stay():
    noise = np.random.default_rng(0).random((8, 40, 40, 3))
    for name, images in {"noise": noise, "one color": np.full_like(noise, 0.6), "black": 0 * noise}.items():
        images = images.astype(np.float32)
        changed = compiled_replace_background(KEY, images, 1.0)
        np.testing.assert_allclose(changed, images, rtol=0, atol=1e-6, err_msg=name)


def test_replacement_changes_only_background():
    image, mask = disc()
    images = np.asarray(compiled_replace_background(KEY, image[None].repeat(400, axis=0), 0.3))
    change = np.abs(images - image).mean(axis=-1)
    changed = change[:, ~mask].mean(axis=1) > 0.02
    assert 0.2 < changed.mean() < 0.4
    assert change[~changed].max() < 1e-6
    inner = np.roll(mask, 2, 0) & np.roll(mask, -2, 0) & np.roll(mask, 2, 1) & np.roll(mask, -2, 1)
    assert change[:, inner].max() < 0.05
    assert np.abs(images[changed][0] - images[changed][1]).mean() > 0.05


def test_probability_0_changes_nothing():
    images = disc()[0][None].repeat(24, axis=0)
    np.testing.assert_allclose(compiled_replace_background(KEY, images, 0.0), images, atol=1e-6)


def test_otsu_threshold_maximizes_variance():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0.08, 0.02, 3000), rng.normal(0.4, 0.05, 1096)])
    rng.shuffle(values)
    values = values.reshape(1, 64, 64).astype(np.float32)
    sampled = values[0, ::2, ::2].ravel()
    variances = {}
    for threshold in np.linspace(0.05, 0.6, 16):
        above = sampled > threshold
        if 0 < above.mean() < 1:
            difference = sampled[above].mean() - sampled[~above].mean()
            variances[threshold] = above.mean() * (1 - above.mean()) * difference**2
    assert float(jax.jit(otsu_threshold)(values)[0]) == pytest.approx(max(variances, key=variances.get))


@pytest.mark.parametrize(("side", "count"), [(9, 5), (64, 17), (12, 5)])
def test_linear_weights_interpolate(side, count):
    values = np.random.default_rng(0).random(count)
    expected = np.interp(np.linspace(0, count - 1, side), np.arange(count), values)
    np.testing.assert_allclose(np.asarray(jax.jit(lambda: linear_weights(side, count))()) @ values, expected, atol=1e-5)


def test_backgrounds_differ_between_images():
    backgrounds = np.asarray(jax.jit(random_backgrounds, static_argnums=1)(KEY, (50, 12, 15, 3)))
    assert backgrounds.shape == (50, 12, 15, 3)
    assert 0 <= backgrounds.min() <= backgrounds.max() <= 1
    means = backgrounds.mean(axis=(1, 2))
    assert np.abs(means[:, None] - means).sum(axis=-1)[np.triu_indices(50, 1)].min() > 0.001
    assert means.std(axis=0).min() > 0.15
