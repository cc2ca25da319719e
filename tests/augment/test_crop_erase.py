"""Random boxes: their areas and proportions, crops that stay inside, erasing by its shares."""

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
compiled_sides = jax.jit(random_box_sizes, static_argnames="count")
compiled_augment = jax.jit(augment, static_argnames="crop")
# Crops and mirrors alone.
cropped = jax.jit(lambda key, images, flip, crop: augment(key, images, None, flip, crop), static_argnames="crop")


@pytest.mark.parametrize("shape", [1.0, 0.75, 1.5])
@pytest.mark.parametrize(("areas", "aspects"), [((0.08, 1.0), CROP_ASPECTS), (ERASED_AREAS, ERASED_ASPECTS)])
def test_boxes_have_areas_and_aspects_that_fill_their_ranges_and_fit(shape, areas, aspects):
    sides = np.asarray(compiled_sides(KEY, 4000, shape, areas, aspects), np.float64)
    assert sides.max() <= 1
    area, aspect = sides.prod(axis=1), sides[:, 1] / sides[:, 0] * shape
    fits = sides.max(axis=1) < 1  # of a long image the whole is no box of these aspects
    assert fits.mean() > 0.75
    assert areas[0] * (1 - 1e-5) <= area.min() < areas[0] + 0.01
    most = min(areas[1], aspects[1] / shape, shape / aspects[0])  # that fits
    assert most - 0.05 < area[fits].max() <= most * (1 + 1e-5)
    assert aspects[0] * (1 - 1e-5) <= aspect[fits].min() < aspects[0] * 1.05
    assert aspects[1] / 1.05 < aspect[fits].max() <= aspects[1] * (1 + 1e-5)
    if shape == 1:
        assert area.mean() == pytest.approx(sum(areas) / 2, rel=0.05)
        assert np.log(aspect).mean() == pytest.approx(0, abs=0.05)


def test_crops_never_leave_the_image_and_reach_its_edges():
    images = jnp.zeros((4000, 8, 8, 3))
    sides, places = (np.asarray(x, np.float64) for x in jax.jit(random_resized_crop)(KEY, images, 0.08))
    ends = np.abs(places) + sides
    assert ends.max() <= 1 + 1e-6
    assert ends.max() > 0.999
    assert ends.min() < 0.5


def test_a_crop_is_the_part_of_the_image_that_its_map_says():
    rows, columns = np.meshgrid(np.linspace(-1, 1, 9), np.linspace(-1, 1, 9), indexing="ij")
    image = np.stack([rows, columns, 0 * rows], axis=-1)[None].repeat(400, axis=0) / 2 + 0.5
    shown = np.asarray(cropped(KEY, image.astype(np.float32), False, crop=0.2))[:50] * 2 - 1
    # The picture holds each point's own place: opposite corners tell the crop.
    height, width = (shown[:, -1, -1, axis] - shown[:, 0, 0, axis] for axis in (0, 1))
    assert 0.2 - 1e-3 <= (height * width / 4).min() < 0.35
    assert (height * width / 4).max() <= 1 + 1e-3
    assert np.abs(shown[:, 4, 4, 0]).max() > 0.2  # not only the middle


def test_without_a_crop_nothing_changes_and_a_crop_leaves_the_other_draws_alone():
    images = np.random.default_rng(0).random((4, 8, 8, 3), np.float32)
    whole = compiled_augment(KEY, images)
    given = jax.make_jaxpr(lambda key, images: augment(key, images, crop=1.0))(KEY, images)
    assert str(given) == str(jax.make_jaxpr(augment)(KEY, images))  # the same program
    # As good as whole, the crop shows what is drawn without one.
    close = compiled_augment(KEY, images, crop=0.99999)
    np.testing.assert_allclose(close, whole, atol=1e-3)
    assert not np.array_equal(close, whole)


def test_a_crop_mirrors_half_of_the_images():
    image = np.tile(np.linspace(0, 1, 9, dtype=np.float32)[None, None, :, None], (400, 9, 1, 3))
    shown = np.asarray(cropped(KEY, image, True, crop=0.2))
    falls = shown[:, 0, 0, 0] > shown[:, 0, -1, 0]
    assert 140 < falls.sum() < 260
    still = np.asarray(cropped(KEY, image, False, crop=0.2))
    assert (still[:, 0, 0, 0] < still[:, 0, -1, 0]).all()


def test_a_mask_holds_the_pixels_of_its_box():
    expected = np.zeros((5, 7), bool)
    expected[1:3, 2:6] = True
    compiled_box_mask = jax.jit(box_mask, static_argnums=0)
    np.testing.assert_array_equal(compiled_box_mask((5, 7), np.array([1, 2]), np.array([3, 6])), expected)
    np.testing.assert_array_equal(compiled_box_mask((5, 7), np.array([[1, 2]]), np.array([[3, 6]])), expected[None])


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_this_share_of_the_images_loses_one_box_of_noise(probability):
    images = np.full((1000, 16, 16, 3), 2.0, np.float32)  # no noise has this value
    erased = np.asarray(compiled_erase(KEY, images, probability))
    gone = (erased != 2.0).all(axis=-1)
    np.testing.assert_array_equal(gone, (erased != 2.0).any(axis=-1))
    share = gone.any(axis=(1, 2)).mean()
    assert share == pytest.approx(probability, abs=0.07 if 0 < probability < 1 else 0)
    if probability:
        noise = erased[gone]
        assert 0 <= noise.min() < 0.01 < 0.99 < noise.max() <= 1
        for mask in gone[gone.any(axis=(1, 2))][:50]:
            rows, columns = mask.any(axis=1), mask.any(axis=0)
            np.testing.assert_array_equal(mask, rows[:, None] & columns)
            assert np.ptp(np.flatnonzero(rows)) == rows.sum() - 1
        areas = gone.mean(axis=(1, 2))[gone.any(axis=(1, 2))]
        assert areas.min() < 0.05
        assert 0.3 < areas.max() < 0.45


def test_erasing_depends_on_the_key_alone():
    images = np.random.default_rng(0).random((1000, 16, 16, 3), np.float32)
    first = np.asarray(compiled_erase(KEY, images, 1.0))
    np.testing.assert_array_equal(compiled_erase(KEY, images, 1.0), first)
    assert (np.asarray(compiled_erase(jax.random.key(8), images, 1.0)) != first).any()
