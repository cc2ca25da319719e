"""Backgrounds: what is taken for the thing, against masks that are known, and what stays as it is."""

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
compiled = jax.jit(replace_background)
compiled_foreground_mask = jax.jit(foreground_mask)


def disc(size=40, thing=(0.7, 0.45, 0.3), wall=(0.8, 0.8, 0.8)):
    """An image with a disc on a wall that is lit from the middle, and where the disc is."""
    y, x = np.mgrid[:size, :size] / (size - 1) - 0.5
    inside = (y - 0.1) ** 2 + x**2 < 0.09
    light = 1.1 - 0.8 * (y**2 + x**2)
    return (np.where(inside[..., None], thing, wall) * light[..., None]).astype(np.float32), inside


THINGS = {
    "skin on grey": ((0.7, 0.45, 0.3), (0.8, 0.8, 0.8)),
    "dark on grey": ((0.1, 0.1, 0.1), (0.7, 0.7, 0.7)),
    "skin on green": ((0.8, 0.6, 0.5), (0.2, 0.6, 0.2)),
    "blue on white": ((0.1, 0.2, 0.7), (0.9, 0.9, 0.9)),
}


def test_a_thing_on_a_plain_wall_is_found():
    images, inside = zip(*(disc(thing=thing, wall=wall) for thing, wall in THINGS.values()), strict=True)
    covers, plain = compiled_foreground_mask(np.stack(images))
    for name, cover, is_plain, thing in zip(THINGS, covers, plain, inside, strict=True):
        assert is_plain, name
        found = np.asarray(cover) > 0.5
        assert (found & thing).sum() / (found | thing).sum() > 0.93, name


def test_drawn_hands_are_found():
    """Most of them have a plain wall, and a hand takes a tenth to a half of the picture."""
    images, _ = render_signs(24, seed=3)
    cover, plain = compiled_foreground_mask(images / np.float32(255))
    assert np.asarray(plain).mean() > 0.9
    size = np.asarray(cover).mean(axis=(1, 2))
    assert 0.1 < np.median(size) < 0.5


def test_images_without_a_plain_border_or_a_thing_stay_as_they_are():
    rng = np.random.default_rng(0)
    kinds = [rng.random((8, 40, 40, 3)), np.full((8, 40, 40, 3), 0.6), np.zeros((8, 40, 40, 3))]
    images = np.concatenate(kinds).astype(np.float32)
    changed = compiled(KEY, images, 1.0)
    for index, name in enumerate(("noise", "one color", "black")):
        part = slice(8 * index, 8 * index + 8)
        np.testing.assert_allclose(changed[part], images[part], rtol=0, atol=1e-6, err_msg=name)


def test_the_thing_stays_and_the_wall_changes_in_a_share_of_the_images():
    image, inside = disc()
    images = np.asarray(compiled(KEY, image[None].repeat(400, axis=0), 0.3))
    change = np.abs(images - image).mean(axis=-1)
    changed = change[:, ~inside].mean(axis=1) > 0.02
    assert 0.2 < changed.mean() < 0.4
    assert change[~changed].max() < 1e-6
    core = np.roll(inside, 2, 0) & np.roll(inside, -2, 0) & np.roll(inside, 2, 1) & np.roll(inside, -2, 1)
    assert change[:, core].max() < 0.05
    assert np.abs(images[changed][0] - images[changed][1]).mean() > 0.05


def test_probability_0_changes_nothing():
    images = disc()[0][None].repeat(24, axis=0)
    np.testing.assert_allclose(compiled(KEY, images, 0.0), images, atol=1e-6)


def test_the_threshold_is_the_one_with_the_most_variance_between_the_sides():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0.08, 0.02, 3000), rng.normal(0.4, 0.05, 1096)])
    rng.shuffle(values)
    values = values.reshape(1, 64, 64).astype(np.float32)
    seen, tried = values[0, ::2, ::2].ravel(), np.linspace(0.05, 0.6, 16)
    between = [
        (seen > t).mean() * (seen <= t).mean() * (seen[seen > t].mean() - seen[seen <= t].mean()) ** 2
        for t in tried
        if 0 < (seen > t).mean() < 1
    ]
    assert float(jax.jit(otsu_threshold)(values)[0]) == pytest.approx(tried[np.argmax(between)])


@pytest.mark.parametrize(("side", "count"), [(9, 5), (64, 17), (12, 5)])
def test_values_between_are_interpolated_linearly(side, count):
    values = np.random.default_rng(0).random(count)
    expected = np.interp(np.linspace(0, count - 1, side), np.arange(count), values)
    np.testing.assert_allclose(np.asarray(jax.jit(lambda: linear_weights(side, count))()) @ values, expected, atol=1e-5)


def test_walls_differ_and_stay_in_range():
    drawn = np.asarray(jax.jit(random_backgrounds, static_argnums=1)(KEY, (50, 12, 15, 3)))
    assert drawn.shape == (50, 12, 15, 3)
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    means = drawn.mean(axis=(1, 2))
    assert np.abs(means[:, None] - means).sum(axis=-1)[np.triu_indices(50, 1)].min() > 0.001
    assert means.std(axis=0).min() > 0.15
