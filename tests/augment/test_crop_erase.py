"""Tests random resized crops and random erasing: sizes and proportions, crops inside the image, frequencies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxresnet.augment.crop_erase import (
    CROP_ASPECTS,
    ERASED_AREAS,
    ERASED_ASPECTS,
    box_mask,
    erase,
    random_box_sizes,
    random_resized_crop,
)
from flaxresnet.augment.geometric import augment

KEY = jax.random.key(7)
compiled_erase = jax.jit(erase)
compiled_box_sizes = jax.jit(random_box_sizes, static_argnames="count")
compiled_augment = jax.jit(augment, static_argnames="crop_min_area")


@jax.jit
def crop_and_flip(images, hflip):
    return augment(KEY, images, None, hflip, crop_min_area=0.2)


@pytest.mark.parametrize("image_aspect", [1.0, 0.75, 1.5])
@pytest.mark.parametrize(("areas", "aspects"), [((0.08, 1.0), CROP_ASPECTS), (ERASED_AREAS, ERASED_ASPECTS)])
def test_box_sizes_fill_their_ranges(image_aspect, areas, aspects):
    sizes = np.asarray(compiled_box_sizes(KEY, 4000, image_aspect, areas, aspects), np.float64)
    assert sizes.max() <= 1
    area = sizes.prod(axis=1)
    aspect = sizes[:, 1] / sizes[:, 0] * image_aspect
    fits = sizes.max(axis=1) < 1  # in a long image no box of these aspects has the largest areas
    assert fits.mean() > 0.75
    assert areas[0] * (1 - 1e-5) <= area.min() < areas[0] + 0.01
    max_area = min(areas[1], aspects[1] / image_aspect, image_aspect / aspects[0])  # of the boxes that fit
    assert max_area - 0.05 < area[fits].max() <= max_area * (1 + 1e-5)
    assert aspects[0] * (1 - 1e-5) <= aspect[fits].min() < aspects[0] * 1.05
    assert aspects[1] / 1.05 < aspect[fits].max() <= aspects[1] * (1 + 1e-5)
    if image_aspect == 1:
        assert area.mean() == pytest.approx(sum(areas) / 2, rel=0.05)
        assert np.log(aspect).mean() == pytest.approx(0, abs=0.05)


def test_crop_stays_inside_image():
    scale, offset = jax.jit(random_resized_crop)(KEY, jnp.zeros((4000, 8, 8, 3)), 0.08)
    ends = np.abs(np.asarray(offset, np.float64)) + scale
    assert ends.max() <= 1 + 1e-6
    assert ends.max() > 0.999
    assert ends.min() < 0.5


def test_crop_shows_drawn_area():
    # Each pixel holds its own position, so two opposite corners of a crop give its height and width.
    y, x = np.meshgrid(np.linspace(-1, 1, 9), np.linspace(-1, 1, 9), indexing="ij")
    images = np.stack([y, x, 0 * y], axis=-1)[None].repeat(400, axis=0) / 2 + 0.5
    crops = np.asarray(crop_and_flip(images.astype(np.float32), False))[:50] * 2 - 1
    area = np.prod(crops[:, -1, -1, :2] - crops[:, 0, 0, :2], axis=-1) / 4
    assert 0.2 - 1e-3 <= area.min() < 0.35
    assert area.max() <= 1 + 1e-3
    assert np.abs(crops[:, 4, 4, 0]).max() > 0.2  # some crops are off center


def test_crop_preserves_other_draws():
    images = np.random.default_rng(0).random((4, 8, 8, 3), np.float32)
    uncropped = compiled_augment(KEY, images)
    program = jax.make_jaxpr(lambda key, images: augment(key, images, crop_min_area=1.0))(KEY, images)
    assert str(program) == str(jax.make_jaxpr(augment)(KEY, images))
    # A crop of nearly the full image shows the same image as no crop.
    cropped = compiled_augment(KEY, images, crop_min_area=0.99999)
    np.testing.assert_allclose(cropped, uncropped, atol=1e-3)
    assert not np.array_equal(cropped, uncropped)


def test_crop_mirrors_half_of_images():
    ramp = np.tile(np.linspace(0, 1, 9, dtype=np.float32)[None, None, :, None], (400, 9, 1, 3))
    crops = np.asarray(crop_and_flip(ramp, True))
    mirrored = crops[:, 0, 0, 0] > crops[:, 0, -1, 0]
    assert 140 < mirrored.sum() < 260
    unflipped = np.asarray(crop_and_flip(ramp, False))
    assert (unflipped[:, 0, 0, 0] < unflipped[:, 0, -1, 0]).all()


def test_box_mask_covers_box():
    expected = np.zeros((5, 7), bool)
    expected[1:3, 2:6] = True
    compiled_box_mask = jax.jit(box_mask, static_argnums=0)
    np.testing.assert_array_equal(compiled_box_mask((5, 7), np.array([1, 2]), np.array([3, 6])), expected)
    np.testing.assert_array_equal(compiled_box_mask((5, 7), np.array([[1, 2]]), np.array([[3, 6]])), expected[None])


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_erase_fills_one_box(probability):
    images = np.full((1000, 16, 16, 3), 2.0, np.float32)  # noise never has this value
    changed = np.asarray(compiled_erase(KEY, images, probability))
    erased = (changed != 2.0).all(axis=-1)
    np.testing.assert_array_equal(erased, (changed != 2.0).any(axis=-1))
    has_box = erased.any(axis=(1, 2))
    assert has_box.mean() == pytest.approx(probability, abs=0.07 if 0 < probability < 1 else 0)
    if probability:
        noise = changed[erased]
        assert 0 <= noise.min() < 0.01 < 0.99 < noise.max() <= 1
        for mask in erased[has_box][:50]:
            rows = mask.any(axis=1)
            np.testing.assert_array_equal(mask, rows[:, None] & mask.any(axis=0))
            assert np.ptp(np.flatnonzero(rows)) == rows.sum() - 1
        areas = erased[has_box].mean(axis=(1, 2))
        assert areas.min() < 0.05
        assert 0.3 < areas.max() < 0.45


def test_erase_depends_on_key_alone():
    images = np.random.default_rng(0).random((1000, 16, 16, 3), np.float32)
    changed = np.asarray(compiled_erase(KEY, images, 1.0))
    np.testing.assert_array_equal(compiled_erase(KEY, images, 1.0), changed)
    assert (np.asarray(compiled_erase(jax.random.key(8), images, 1.0)) != changed).any()
