"""The operations against Pillow, and the draws by their shares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from flaxresnet.augment.auto_augment import OPERATIONS, POLICIES, POSITIONS, affine_params, apply_ops, apply_policy

KEY = jax.random.key(3)
WIDE = POLICIES["trivialaugment"]
compiled = jax.jit(apply_ops, static_argnames="policy")
compiled_positions = jax.jit(affine_params, static_argnames="policy")
draw = jax.jit(apply_policy, static_argnames="policy")


def photos(count=3, size=(24, 20)):
    """Smooth pictures with a few hundred levels, uint8."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(20, 236, (count, 5, 4, 3)).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize(size[::-1], Image.Resampling.BICUBIC)) for one in coarse])


def by_ours(name, level, policy=WIDE, images=None):
    images = photos() if images is None else images
    kind, level = (jnp.full(len(images), value) for value in (OPERATIONS.index(name), level))
    return np.asarray(compiled(jnp.asarray(images, jnp.float32) / 255, kind, level.astype(jnp.float32), policy)) * 255


ENHANCED = {
    "brightness": ImageEnhance.Brightness,
    "colour": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "sharpness": ImageEnhance.Sharpness,
}


@pytest.mark.parametrize("level", [-1.0, -0.4, 0.3, 1.0])
@pytest.mark.parametrize("name", ENHANCED)
def test_enhancements_are_pillows(name, level):
    expected = [ENHANCED[name](Image.fromarray(one)).enhance(1 + 0.99 * level) for one in photos()]
    # Pillow rounds what is plain to whole levels, and the result.
    np.testing.assert_allclose(by_ours(name, level), np.stack([np.asarray(one) for one in expected]), atol=2.1)


@pytest.mark.parametrize("name", ["autocontrast", "equalize"])
def test_stretching_is_pillows(name):
    expected = np.stack([np.asarray(getattr(ImageOps, name)(Image.fromarray(one))) for one in photos()])
    np.testing.assert_allclose(by_ours(name, 1.0), expected, atol=1.01 if name == "autocontrast" else 1e-3)


@pytest.mark.parametrize("name", ["autocontrast", "equalize"])
def test_stretching_leaves_a_picture_of_one_level(name):
    plain = np.full((3, 24, 20, 3), 77, np.uint8)
    np.testing.assert_allclose(by_ours(name, 1.0, images=plain), plain, atol=1e-3)


@pytest.mark.parametrize(("level", "bits"), [(0.0, 8), (0.5, 5), (-0.5, 5), (1.0, 2)])
def test_posterizing_is_pillows(level, bits):
    expected = np.stack([np.asarray(ImageOps.posterize(Image.fromarray(one), bits)) for one in photos()])
    np.testing.assert_allclose(by_ours("posterize", level), expected, atol=1e-3)


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_solarizing_is_pillows(level):
    images = photos()
    images[0, 0, 0] = [0, 128, 255]
    threshold = 255 * (1 - level)
    expected = np.stack([np.asarray(ImageOps.solarize(Image.fromarray(one), threshold + 1e-6)) for one in images])
    np.testing.assert_allclose(by_ours("solarize", level, images=images), expected, atol=1e-3)


# In pixels from the crop_pct, (y, x): where in the image a pixel's value is taken from.
EXPECTED_MAPS = {
    "shear_x": lambda s: ([[1, 0], [0.99 * s, 1]], [0, 0]),
    "shear_y": lambda s: ([[1, 0.99 * s], [0, 1]], [0, 0]),
    "shift_x": lambda s: (np.eye(2), [0, 2 * 32 / 224 * s]),
    "shift_y": lambda s: (np.eye(2), [2 * 32 / 224 * s, 0]),
    "rotate": lambda s: (
        [[np.cos(s * 2.35619), -np.sin(s * 2.35619)], [np.sin(s * 2.35619), np.cos(s * 2.35619)]],
        [0, 0],
    ),
}


@pytest.mark.parametrize("name", POSITIONS)
@pytest.mark.parametrize("level", [-1.0, 0.25])
def test_positions_are_moved_by_these_maps(name, level):
    kinds, levels = np.array([OPERATIONS.index(name), 0]), np.full(2, level, np.float32)
    matrix, shift = compiled_positions(kinds, levels, WIDE)
    expected = EXPECTED_MAPS[name](level)
    np.testing.assert_allclose(matrix, [expected[0], np.eye(2)], atol=1e-5)
    np.testing.assert_allclose(shift, [expected[1], [0, 0]], atol=1e-6)
    moved = by_ours(name, level)
    assert np.abs(moved - photos()).mean() > 2


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"autocontrast", "equalize"}))
def test_strength_0_changes_nothing(name):
    np.testing.assert_allclose(by_ours(name, 0.0), photos(), atol=1e-3)


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_image_has_its_own_operation(name):
    images = jnp.asarray(photos(), jnp.float32) / 255
    kind = jnp.array([0, OPERATIONS.index(name), 0])
    found = np.asarray(compiled(images, kind, jnp.ones(3), WIDE))
    np.testing.assert_allclose(found[[0, 2]], images[np.array([0, 2])], atol=1e-6)
    np.testing.assert_allclose(found[1] * 255, by_ours(name, 1.0)[1], atol=1e-3)


def test_the_policies_are_as_published():
    assert (POLICIES["trivialaugment"].rounds, POLICIES["trivialaugment"].strength) == (1, None)
    assert (POLICIES["randaugment"].rounds, POLICIES["randaugment"].strength) == (2, 0.9)
    assert len(OPERATIONS) == 14


DRAWN = 3000, 6, 6, 3  # the shape of the images that operations are drawn for, so that a policy is compiled once


@pytest.mark.parametrize("name", POLICIES)
def test_images_stay_in_range_and_depend_on_the_key_alone(name):
    images = np.resize(photos(60, (6, 6)), DRAWN).astype(np.float32) / 255
    first = np.asarray(draw(KEY, images, POLICIES[name]))
    assert first.shape == images.shape
    assert 0 <= first.min() <= first.max() <= 1
    np.testing.assert_array_equal(draw(KEY, images, POLICIES[name]), first)
    assert (np.asarray(draw(jax.random.key(4), images, POLICIES[name])) != first).any()


# Images that stay as they are. Two operations of strength 0.9: both nothing, or solarized and back. One of a strength
# drawn from 31: nothing, or one of the ten that do nothing at strength 0. The two that stretch are not among them, nor
# is posterize, which rounds to whole levels.
@pytest.mark.parametrize(("name", "share"), [("trivialaugment", (1 + 10 / 31) / 14), ("randaugment", 2 / 14**2)])
def test_as_many_operations_are_drawn_as_the_policy_says(name, share):
    images = np.random.default_rng(1).uniform(0.2, 0.8, (1, *DRAWN[1:])).astype(np.float32).repeat(DRAWN[0], axis=0)
    same = np.abs(np.asarray(draw(KEY, images, POLICIES[name])) - images).max(axis=(1, 2, 3)) < 1e-6
    assert same.mean() == pytest.approx(share, abs=4 * (share / DRAWN[0]) ** 0.5)


def test_trivials_strengths_are_drawn_evenly_with_either_sign():
    # Brightness alone is looked at, of grey: 0.4 · (1 ± 0.99 · strength).
    values = np.asarray(draw(KEY, np.full(DRAWN, 0.4, np.float32), WIDE))[:, 0, 0, 0]
    strengths = np.unique(np.round((values / 0.4 - 1) / 0.99 * 30))
    assert {-30, -15, 15, 29, 30} <= set(strengths.tolist())


def test_rands_strengths_are_all_alike():
    # Grey is changed by brightness up or down, posterize and solarize, each of one strength: at most 5 · 5 ways.
    values = np.asarray(draw(KEY, np.full(DRAWN, 0.4, np.float32), POLICIES["randaugment"]))[:, 0, 0, 0]
    assert 4 < len(np.unique(values.round(4))) <= 25
    assert np.abs(values - 0.4 * (1 - 0.9 * 0.9)).min() < 1e-5
