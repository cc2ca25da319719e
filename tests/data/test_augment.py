"""Augmentation: the geometry against SciPy, the draws by their ranges and shares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from flaxresnet.data import augment as augmentation
from flaxresnet.data.augment import augment, random_maps, recolour, sample_bilinear

KEY = jax.random.key(7)
# Compiled whole: an operation at a time, each shape takes seconds.
compiled = jax.jit(augment, static_argnames="flip")
compiled_maps = jax.jit(random_maps, static_argnames=("count", "flip"))
compiled_recolour = jax.jit(recolour)


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


def sampled_by_scipy(images, matrix, shift):
    """The definition in float64: output at p (pixels from the centre) = input at matrix · p + shift · half a side."""
    count, height, width, channels = images.shape
    half = np.array([(height - 1) / 2, (width - 1) / 2])
    out = np.empty(images.shape)
    for n in range(count):
        rows, columns = np.mgrid[:height, :width]
        p = np.stack([rows - half[0], columns - half[1]]).astype(np.float64)
        source = np.einsum("ij,jhw->ihw", matrix[n], p) + (shift[n] * half + half)[:, None, None]
        for c in range(channels):
            out[n, ..., c] = map_coordinates(images[n, ..., c].astype(np.float64), source, order=1, mode="nearest")
    return out


def rotation(degrees):
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[cos, -sin], [sin, cos]])


MAPS = {
    "identity": (np.eye(2), [0, 0]),
    "rotation": (rotation(20), [0, 0]),
    "rotation the other way": (rotation(-33), [0, 0]),
    "zoom in": (np.eye(2) * 0.7, [0, 0]),
    "zoom out": (np.eye(2) * 1.6, [0, 0]),
    "sides apart": (np.diag([0.8, 1.3]), [0, 0]),
    "shift": (np.eye(2), [0.23, -0.31]),
    "shift out of the image": (np.eye(2), [3, 0.5]),
    "mirror": (np.diag([1.0, -1.0]), [0, 0]),
    "all together": (np.diag([0.9, -1.2]) @ rotation(15), [0.1, -0.17]),
}


@pytest.mark.parametrize(("matrix", "shift"), MAPS.values(), ids=MAPS.keys())
@pytest.mark.parametrize("size", [(8, 8), (5, 12), (9, 4), (1, 6)], ids=str)
def test_sampling_agrees_with_scipy(matrix, shift, size):
    images = random_images(2, *size, 3)
    matrix, shift = np.stack([matrix, np.eye(2)]), np.array([shift, [0, 0]])
    sampled = sample_bilinear(jnp.asarray(images), jnp.asarray(matrix, jnp.float32), jnp.asarray(shift, jnp.float32))
    np.testing.assert_allclose(sampled, sampled_by_scipy(images, matrix, shift), rtol=0, atol=1e-5)


def test_sampling_moves_whole_pixels_and_repeats_the_edge():
    row = jnp.asarray([[0.1, 0.2, 0.3, 0.4, 0.5]])[None, ..., None]
    moved = sample_bilinear(row, jnp.eye(2)[None], jnp.array([[0.0, 1.0]]))  # half a side is two pixels
    np.testing.assert_allclose(moved[0, 0, :, 0], [0.3, 0.4, 0.5, 0.5, 0.5], atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 8, 8, 3), (2, 5, 9, 3)], ids=str)
def test_strength_0_without_flip_changes_nothing(shape):
    images = random_images(*shape)
    np.testing.assert_allclose(compiled(KEY, images, strength=0.0, flip=False), images, rtol=0, atol=1e-6)


def test_recolouring_with_strength_0_changes_nothing():
    images = random_images(4, 6, 5, 3)
    np.testing.assert_allclose(compiled_recolour(KEY, images, 0.0), images, rtol=0, atol=1e-6)


def test_flip_mirrors_about_half_of_the_images_left_to_right():
    image = random_images(1, 4, 5, 3)
    images = np.asarray(compiled(KEY, jnp.asarray(image.repeat(1000, axis=0)), strength=0.0, flip=True))
    mirrored = np.abs(images - image[:, :, ::-1]).max(axis=(1, 2, 3)) < 1e-6
    same = np.abs(images - image).max(axis=(1, 2, 3)) < 1e-6
    assert np.all(mirrored ^ same)
    assert 420 < mirrored.sum() < 580  # 5 standard deviations


def test_without_flip_no_image_is_mirrored():
    matrices, _ = compiled_maps(KEY, 1000, 1.0, flip=False)
    assert np.all(np.linalg.det(matrices) > 0)


@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
def test_random_maps_fill_their_ranges_and_stay_within(strength):
    matrices, shifts = (np.asarray(x, np.float64) for x in compiled_maps(KEY, 4000, strength, flip=False))
    rows, columns = np.linalg.norm(matrices[:, 0], axis=1), np.linalg.norm(matrices[:, 1], axis=1)
    drawn = {
        "rotation": np.degrees(np.arctan2(matrices[:, 1, 0], matrices[:, 1, 1])),
        "scale": np.log(rows * columns) / 2,
        "aspect": np.log(rows / columns) / 2,
        "shift down": shifts[:, 0],
        "shift right": shifts[:, 1],
    }
    # As the module's constants say; half a side is the unit of the shift, and a side that of SHIFT.
    width = {"rotation": 20, "scale": 0.2, "aspect": 0.12, "shift down": 0.2, "shift right": 0.2}
    for name, values in drawn.items():
        relative = values / (width[name] * strength)
        assert np.abs(relative).max() <= 1 + 1e-4, name
        np.testing.assert_allclose([relative.min(), relative.max()], [-1, 1], atol=0.01, err_msg=name)
        np.testing.assert_allclose([relative.mean(), relative.var()], [0, 1 / 3], atol=0.05, err_msg=name)
    np.testing.assert_allclose((matrices[:, 0] * matrices[:, 1]).sum(axis=-1), 0, atol=1e-5)  # no shear


def test_brightness_and_channel_gains_fill_their_ranges_and_stay_within():
    grey = jnp.full((4000, 1, 1, 3), 0.5)  # contrast and saturation leave it as it is
    pixels = np.asarray(compiled_recolour(KEY, grey, 1.0), np.float64)[:, 0, 0]
    between_channels = np.log(pixels[:, 0] / pixels[:, 1]) / (2 * augmentation.LOG_COLOUR)
    assert 0.9 < np.abs(between_channels).max() <= 1.001
    low = (0.5 - augmentation.BRIGHTNESS) * np.exp(-augmentation.LOG_COLOUR)
    high = (0.5 + augmentation.BRIGHTNESS) * np.exp(augmentation.LOG_COLOUR)
    assert low - 1e-5 <= pixels.min() < low + 0.02
    assert high - 0.04 < pixels.max() <= high + 1e-5


def test_contrast_spreads_grey_levels_about_their_mean():
    image = jnp.broadcast_to(jnp.array([0.48, 0.52])[:, None], (1, 1, 2, 3))
    images = np.asarray(compiled_recolour(KEY, image.repeat(4000, axis=0), 1.0), np.float64)
    # The middle is the brightness times a channel's gain, the spread the contrast times the same gain.
    spread, middle = np.diff(images, axis=2)[:, 0, 0] / 0.04, images.mean(axis=2)[:, 0]
    np.testing.assert_allclose(spread / spread[:, :1], middle / middle[:, :1], rtol=1e-3)
    widest = augmentation.LOG_CONTRAST + augmentation.LOG_COLOUR
    assert 0.85 * widest < np.abs(np.log(spread)).max() <= 1.001 * widest


def test_saturation_spreads_channels_about_their_grey(monkeypatch):
    for name in ("LOG_CONTRAST", "BRIGHTNESS", "LOG_COLOUR"):
        monkeypatch.setattr(augmentation, name, 0.0)
    colour = jnp.broadcast_to(jnp.array([0.4, 0.5, 0.6]), (4000, 1, 1, 3))
    pixels = np.asarray(recolour(KEY, colour, 1.0), np.float64)[:, 0, 0]
    np.testing.assert_allclose(pixels.mean(axis=-1), 0.5, atol=1e-6)
    factor = (pixels[:, 2] - pixels[:, 0]) / 0.2
    np.testing.assert_allclose([factor.min(), factor.max(), factor.mean()], [0.6, 1.4, 1.0], atol=0.02)


def test_the_same_key_gives_the_same_images_and_another_key_others():
    images = random_images(4, 8, 8, 3)
    first = np.asarray(compiled(KEY, images))
    np.testing.assert_array_equal(compiled(KEY, images), first)
    other = np.asarray(compiled(jax.random.key(8), images))
    assert np.abs(other - first).mean() > 0.02


def test_each_image_has_its_own_draw():
    images = np.asarray(compiled(KEY, jnp.asarray(random_images(1, 8, 8, 3).repeat(6, axis=0))))
    for first in range(6):
        for second in range(first):
            assert np.abs(images[first] - images[second]).mean() > 0.02


@pytest.mark.parametrize("strength", [0.0, 1.0, 2.0])
def test_images_stay_in_range_and_keep_their_shape(strength):
    images = np.round(random_images(64, 6, 9, 3))  # black and white: the ends of the range
    augmented = np.asarray(compiled(KEY, images, strength))
    assert augmented.shape == images.shape
    assert augmented.min() >= 0
    assert augmented.max() <= 1
    assert augmented.std() > 0.1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_images_keep_their_dtype(dtype):
    assert jax.eval_shape(augment, KEY, jnp.zeros((2, 4, 4, 3), dtype)).dtype == dtype


def test_strength_widens_the_changes():
    images = random_images(4, 8, 8, 3)
    little, much = (np.abs(compiled(KEY, images, strength, flip=False) - images).mean() for strength in (0.1, 1.0))
    assert 0 < little < much / 2


def test_augment_gives_the_same_inside_jit():
    images = random_images(4, 8, 8, 3)
    np.testing.assert_allclose(compiled(KEY, images), augment(KEY, images), rtol=0, atol=1e-5)
