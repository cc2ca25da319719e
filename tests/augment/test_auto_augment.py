"""Tests the operations of TrivialAugment and RandAugment against Pillow, and the distribution of the draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from flaxresnet.augment.auto_augment import GEOMETRIC_OPS, OPERATIONS, POLICIES, affine_params, apply_ops, apply_policy

KEY = jax.random.key(3)
TRIVIAL = POLICIES["trivialaugment"]
compiled_apply_ops = jax.jit(apply_ops, static_argnames="policy")
compiled_affine_params = jax.jit(affine_params, static_argnames="policy")
compiled_apply_policy = jax.jit(apply_policy, static_argnames="policy")


def smooth_images(count=3, size=(24, 20)):
    """Returns smooth images with a few hundred levels, uint8."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(20, 236, (count, 5, 4, 3)).astype(np.uint8)
    return with_pillow(lambda image: image.resize(size[::-1], Image.Resampling.BICUBIC), coarse)


def with_pillow(operation, images):
    return np.stack([np.asarray(operation(Image.fromarray(image))) for image in images])


def apply_op(name, level, images=None):
    """Applies an operation of TrivialAugment to uint8 images, and returns float pixels in [0, 255]."""
    images = smooth_images() if images is None else images
    kind = jnp.full(len(images), OPERATIONS.index(name))
    levels = jnp.full(len(images), level, jnp.float32)
    return np.asarray(compiled_apply_ops(jnp.asarray(images, jnp.float32) / 255, kind, levels, TRIVIAL)) * 255


ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "sharpness": ImageEnhance.Sharpness,
}


@pytest.mark.parametrize("level", [-1.0, -0.4, 0.3, 1.0])
@pytest.mark.parametrize("name", ENHANCERS)
def test_enhancement_matches_pillow(name, level):
    expected = with_pillow(lambda image: ENHANCERS[name](image).enhance(1 + 0.99 * level), smooth_images())
    # Pillow rounds the degenerate image and the result to integers.
    np.testing.assert_allclose(apply_op(name, level), expected, atol=2.1)


@pytest.mark.parametrize(("name", "atol"), [("autocontrast", 1.01), ("equalize", 1e-3)])
def test_histogram_op_matches_pillow(name, atol):
    expected = with_pillow(getattr(ImageOps, name), smooth_images())
    np.testing.assert_allclose(apply_op(name, 1.0), expected, atol=atol)


@pytest.mark.parametrize("name", ["autocontrast", "equalize"])
def test_histogram_op_preserves_constant_images(name):
    constant = np.full((3, 24, 20, 3), 77, np.uint8)
    np.testing.assert_allclose(apply_op(name, 1.0, images=constant), constant, atol=1e-3)


@pytest.mark.parametrize(("level", "bits"), [(0.0, 8), (0.5, 5), (-0.5, 5), (1.0, 2)])
def test_posterize_matches_pillow(level, bits):
    expected = with_pillow(lambda image: ImageOps.posterize(image, bits), smooth_images())
    np.testing.assert_allclose(apply_op("posterize", level), expected, atol=1e-3)


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_solarize_matches_pillow(level):
    images = smooth_images()
    images[0, 0, 0] = [0, 128, 255]
    threshold = 255 * (1 - level) + 1e-6
    expected = with_pillow(lambda image: ImageOps.solarize(image, threshold), images)
    np.testing.assert_allclose(apply_op("solarize", level, images=images), expected, atol=1e-3)


ANGLE = 2.35619  # 135 degrees
# From a signed magnitude to the matrix and the translation that map output to input positions, (y, x).
EXPECTED_MAPS = {
    "shear_x": lambda s: ([[1, 0], [0.99 * s, 1]], [0, 0]),
    "shear_y": lambda s: ([[1, 0.99 * s], [0, 1]], [0, 0]),
    "translate_x": lambda s: (np.eye(2), [0, 2 * 32 / 224 * s]),
    "translate_y": lambda s: (np.eye(2), [2 * 32 / 224 * s, 0]),
    "rotate": lambda s: (
        [[np.cos(s * ANGLE), -np.sin(s * ANGLE)], [np.sin(s * ANGLE), np.cos(s * ANGLE)]],
        [0, 0],
    ),
}


@pytest.mark.parametrize("name", GEOMETRIC_OPS)
@pytest.mark.parametrize("level", [-1.0, 0.25])
def test_geometric_op_uses_expected_map(name, level):
    kinds = np.array([OPERATIONS.index(name), 0])
    matrix, translation = compiled_affine_params(kinds, np.full(2, level, np.float32), TRIVIAL)
    expected_matrix, expected_translation = EXPECTED_MAPS[name](level)
    np.testing.assert_allclose(matrix, [expected_matrix, np.eye(2)], atol=1e-5)
    np.testing.assert_allclose(translation, [expected_translation, [0, 0]], atol=1e-6)
    assert np.abs(apply_op(name, level) - smooth_images()).mean() > 2


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"autocontrast", "equalize"}))
def test_op_with_magnitude_0_changes_nothing(name):
    np.testing.assert_allclose(apply_op(name, 0.0), smooth_images(), atol=1e-3)


@pytest.mark.parametrize("name", OPERATIONS)
def test_apply_ops_selects_op_per_image(name):
    images = jnp.asarray(smooth_images(), jnp.float32) / 255
    kind = jnp.array([0, OPERATIONS.index(name), 0])
    changed = np.asarray(compiled_apply_ops(images, kind, jnp.ones(3), TRIVIAL))
    np.testing.assert_allclose(changed[::2], images[::2], atol=1e-6)
    np.testing.assert_allclose(changed[1] * 255, apply_op(name, 1.0)[1], atol=1e-3)


def test_policies_match_their_papers():
    assert (POLICIES["trivialaugment"].num_ops, POLICIES["trivialaugment"].magnitude) == (1, None)
    assert (POLICIES["randaugment"].num_ops, POLICIES["randaugment"].magnitude) == (2, 0.9)
    assert len(OPERATIONS) == 14


SHAPE = 3000, 6, 6, 3  # one shape for all tests of the draws, so that each policy compiles once


@pytest.mark.parametrize("name", POLICIES)
def test_policy_depends_on_key_alone(name):
    images = np.resize(smooth_images(60, (6, 6)), SHAPE).astype(np.float32) / 255
    changed = np.asarray(compiled_apply_policy(KEY, images, POLICIES[name]))
    assert changed.shape == images.shape
    assert 0 <= changed.min() <= changed.max() <= 1
    np.testing.assert_array_equal(compiled_apply_policy(KEY, images, POLICIES[name]), changed)
    assert (np.asarray(compiled_apply_policy(jax.random.key(4), images, POLICIES[name])) != changed).any()


# The expected fraction of unchanged images. TrivialAugment: the identity, or one of the ten operations that change
# nothing at magnitude 0, drawn from 31. The others are the two histogram operations and posterize, which rounds.
# RandAugment: the identity twice, or solarize twice.
@pytest.mark.parametrize(("name", "fraction"), [("trivialaugment", (1 + 10 / 31) / 14), ("randaugment", 2 / 14**2)])
def test_policy_leaves_expected_fraction_unchanged(name, fraction):
    images = np.random.default_rng(1).uniform(0.2, 0.8, (1, *SHAPE[1:])).astype(np.float32).repeat(SHAPE[0], axis=0)
    changed = np.asarray(compiled_apply_policy(KEY, images, POLICIES[name]))
    unchanged = np.abs(changed - images).max(axis=(1, 2, 3)) < 1e-6
    assert unchanged.mean() == pytest.approx(fraction, abs=4 * (fraction / SHAPE[0]) ** 0.5)


def values_of_gray(name):
    """Returns the values that a policy gives a gray of 0.4."""
    return np.asarray(compiled_apply_policy(KEY, np.full(SHAPE, 0.4, np.float32), POLICIES[name]))[:, 0, 0, 0]


def test_trivialaugment_draws_all_magnitudes():
    # Of the operations on gray, brightness gives 0.4 · (1 ± 0.99 · magnitude).
    magnitudes = np.unique(np.round((values_of_gray("trivialaugment") / 0.4 - 1) / 0.99 * 30))
    assert {-30, -15, 15, 29, 30} <= set(magnitudes.tolist())


def test_randaugment_uses_one_magnitude():
    # Gray changes by brightness up or down, posterize and solarize, each of one magnitude: at most 5 · 5 values.
    values = values_of_gray("randaugment")
    assert 4 < len(np.unique(values.round(4))) <= 25
    assert np.abs(values - 0.4 * (1 - 0.9 * 0.9)).min() < 1e-5
