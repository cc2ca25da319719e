"""Augmentation: the geometry against SciPy, the draws by their ranges; light, camera, background have own files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from flaxresnet.augment import geometric as augmentation
from flaxresnet.augment.geometric import augment, random_affine_params, sample_bilinear

KEY = jax.random.key(7)
COUNT, HEIGHT, WIDTH = SHAPE = 1000, 5, 9
# Compiled whole, and for images of one shape: to compile takes seconds.
compiled = jax.jit(augment)
unchanged = jax.jit(lambda key, images, flip: augment(key, images, None, flip))


def augmented(images, strength=1.0, flip=True, key=KEY):
    """What becomes of the images; fewer than COUNT are repeated, and so many come back."""
    repeated = np.resize(images, (*SHAPE, 3)).astype(np.float32)
    call = unchanged if strength is None else compiled
    arguments = (key, repeated, flip) if strength is None else (key, repeated, np.float32(strength), flip)
    return np.asarray(call(*arguments))[: len(images)]


def maps(strength=1.0, flip=False):
    return [np.asarray(array, np.float64) for array in random_affine_params(KEY, 4000, strength, flip)]


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


def sampled_by_scipy(images, matrix, shift, tilt=None):
    """The definition in float64: output at p (pixels from the centre) = input at matrix · p + shift · half a side, by
    1 + tilt · p / half a side."""
    count, height, width, channels = images.shape
    half = np.array([(height - 1) / 2, (width - 1) / 2])
    out = np.empty(images.shape)
    for n in range(count):
        rows, columns = np.mgrid[:height, :width]
        p = np.stack([rows - half[0], columns - half[1]]).astype(np.float64)
        source = np.einsum("ij,jhw->ihw", matrix[n], p) + (shift[n] * half)[:, None, None]
        if tilt is not None:
            source /= 1 + sum(tilt[n][axis] * p[axis] / max(half[axis], 0.5) for axis in (0, 1))
        source += half[:, None, None]
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


@pytest.mark.parametrize("size", [(8, 8), (5, 12), (9, 4), (1, 6)], ids=str)
def test_sampling_agrees_with_scipy(size):
    """Each map on an image of its own, without a tilt and with one."""
    count = len(MAPS) + 1
    images = random_images(count, *size, 3)
    matrix = np.stack([*(matrix for matrix, _ in MAPS.values()), np.eye(2)])
    shift = np.array([*(shift for _, shift in MAPS.values()), [0, 0]])
    tilt = np.zeros((count, 2))
    tilt[:2] = [[0.3, 0], [-0.1, 0.15]]
    tilt[-2:] = [[-0.2, 0.25], [0.3, 0]]
    arrays = [np.asarray(array, np.float32) for array in (images, matrix, shift, tilt)]
    both = jax.jit(lambda *arrays: (sample_bilinear(*arrays[:3]), sample_bilinear(*arrays)))(*arrays)
    for sampled, tilts in zip(both, (None, tilt), strict=True):
        expected = sampled_by_scipy(images, matrix, shift, tilts)
        for name, mine, right in zip([*MAPS, "none"], sampled, expected, strict=True):
            np.testing.assert_allclose(mine, right, rtol=0, atol=1e-5, err_msg=f"{name}, tilts {tilts}")


def test_a_tilted_crop_shows_what_the_crop_of_the_tilted_image_shows(monkeypatch):
    """Two samplings, one after another, of a smooth image, where sampling twice loses little."""
    y, x = np.mgrid[:64, :64] / 63
    images = jnp.asarray(np.stack([y, x, (y + x) / 2], axis=-1)[None].repeat(8, axis=0), jnp.float32)
    for name in ("ROTATION", "LOG_SCALE", "LOG_ASPECT", "SHEAR", "SHIFT"):
        monkeypatch.setattr(augmentation, name, 0.0)
    for name in ("random_shadow", "jitter_colors", "blur_and_noise"):
        monkeypatch.setattr(augmentation, name, lambda key, images, strength: images)

    def twice(images):
        geometry = jax.random.split(KEY)[0]
        scale, place = augmentation.random_resized_crop(jax.random.fold_in(geometry, augmentation.CROP), images, 0.3)
        maps = random_affine_params(geometry, 8, 2.0, flip=True)
        return sample_bilinear(sample_bilinear(images, scale[:, :, None] * jnp.eye(2), place), *maps), maps[2]

    expected, tilt = jax.jit(twice)(images)
    once = jax.jit(lambda images: augment(KEY, images, 2.0, crop=0.3))(images)
    inner = np.s_[:, 16:48, 16:48]  # away from the crop's edge, which two samplings repeat and one looks beyond
    np.testing.assert_allclose(once[inner], expected[inner], rtol=0, atol=2e-3)
    assert np.abs(np.asarray(tilt)).max() > 0.1


def test_sampling_moves_whole_pixels_and_repeats_the_edge():
    row = np.array([[0.1, 0.2, 0.3, 0.4, 0.5]], np.float32)[None, ..., None]
    moved = jax.jit(sample_bilinear)(row, np.eye(2, dtype=np.float32)[None], np.array([[0.0, 1.0]], np.float32))
    np.testing.assert_allclose(moved[0, 0, :, 0], [0.3, 0.4, 0.5, 0.5, 0.5], atol=1e-6)  # half a side is two pixels


def test_strength_0_without_flip_changes_nothing():
    images = random_images(*SHAPE, 3)
    np.testing.assert_allclose(augmented(images, 0.0, flip=False), images, rtol=0, atol=1e-6)


def test_without_a_strength_images_are_only_mirrored():
    images = random_images(*SHAPE, 3)
    plain, flipped = (augmented(images, None, flip=flip) for flip in (False, True))
    np.testing.assert_allclose(plain, images, rtol=0, atol=1e-6)
    np.testing.assert_allclose(flipped, augmented(images, 0.0, flip=True), rtol=0, atol=1e-6)


def test_flip_mirrors_about_half_of_the_images_left_to_right():
    image = random_images(1, HEIGHT, WIDTH, 3)
    images = augmented(image.repeat(COUNT, axis=0), 0.0, flip=True)
    mirrored = np.abs(images - image[:, :, ::-1]).max(axis=(1, 2, 3)) < 1e-6
    same = np.abs(images - image).max(axis=(1, 2, 3)) < 1e-6
    assert np.all(mirrored ^ same)
    assert 420 < mirrored.sum() < 580  # 5 standard deviations


def test_without_flip_no_image_is_mirrored():
    assert np.all(np.linalg.det(maps()[0]) > 0)


# As the module's constants say; half a side is the unit of the shift, and a side that of SHIFT.
PARTS = {
    "ROTATION": lambda m, s, t: np.degrees(np.arctan2(m[:, 1, 0], m[:, 1, 1])) / 20,
    "LOG_SCALE": lambda m, s, t: np.log(np.linalg.det(m)) / 2 / 0.2,
    "LOG_ASPECT": lambda m, s, t: np.log(m[:, 0, 0] / m[:, 1, 1]) / 2 / 0.12,
    "SHEAR": lambda m, s, t: m[:, 0, 1] / 0.12,
    "SHIFT": lambda m, s, t: s.T / 0.2,
    "TILT": lambda m, s, t: t.T / 0.075,
}


@pytest.mark.parametrize("strength", [0.5, 2.0])
@pytest.mark.parametrize("part", PARTS)
def test_random_maps_fill_their_ranges_and_stay_within(part, strength, monkeypatch):
    for other in set(PARTS) - {part}:
        monkeypatch.setattr(augmentation, other, 0.0)
    for values in np.atleast_2d(PARTS[part](*maps(strength))):
        relative = values / strength
        assert np.abs(relative).max() <= 1 + 1e-4
        np.testing.assert_allclose([relative.min(), relative.max()], [-1, 1], atol=0.01)
        np.testing.assert_allclose([relative.mean(), relative.var()], [0, 1 / 3], atol=0.05)


def test_maps_turn_what_is_sheared_and_scale_what_is_turned():
    matrix = maps()[0]
    sides = np.linalg.norm(matrix @ np.array([1.0, 0.0]), axis=1)  # of what the shear leaves, unequally scaled
    assert sides.min() >= np.exp(-0.32) - 1e-6
    assert sides.max() <= np.exp(0.32) + 1e-6
    widest = np.linalg.svd(matrix, compute_uv=False)
    shear = np.linalg.svd(np.array([[1, 0.12], [0, 1]]), compute_uv=False)[0]
    assert (widest[:, 0] / widest[:, 1]).max() <= (shear * np.exp(0.12)) ** 2 + 1e-6


def test_the_same_key_gives_the_same_images_and_another_key_others():
    images = random_images(4, HEIGHT, WIDTH, 3)
    first = augmented(images)
    np.testing.assert_array_equal(augmented(images), first)
    other = augmented(images, key=jax.random.key(8))
    assert np.abs(other - first).mean() > 0.02


def test_each_image_has_its_own_draw():
    images = augmented(random_images(1, HEIGHT, WIDTH, 3).repeat(6, axis=0))
    for first in range(6):
        for second in range(first):
            assert np.abs(images[first] - images[second]).mean() > 0.02


@pytest.mark.parametrize("strength", [0.0, 1.0, 2.0])
def test_images_stay_in_range_and_keep_their_shape(strength):
    images = np.round(random_images(*SHAPE, 3))  # black and white: the ends of the range
    changed = augmented(images, strength)
    assert changed.shape == images.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert changed.std() > 0.1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_images_keep_their_dtype(dtype):
    assert jax.eval_shape(augment, KEY, jnp.zeros((2, 4, 4, 3), dtype)).dtype == dtype


def test_strength_widens_the_changes():
    images = random_images(4, HEIGHT, WIDTH, 3)
    little, much = (np.abs(augmented(images, strength, flip=False) - images).mean() for strength in (0.1, 1.0))
    assert 0 < little < much / 2


@pytest.mark.campaign
def test_augment_gives_the_same_inside_jit():
    images = random_images(4, 8, 8, 3)
    np.testing.assert_allclose(compiled(KEY, images), augment(KEY, images), rtol=0, atol=1e-5)
