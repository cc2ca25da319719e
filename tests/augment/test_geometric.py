"""Tests the geometry against SciPy, and the ranges of the draws; color, blur and backgrounds have their own tests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from flaxresnet.augment import geometric
from flaxresnet.augment.geometric import augment, random_affine_params, sample_bilinear

KEY = jax.random.key(7)
COUNT = 1000
HEIGHT = 5
WIDTH = 9
SHAPE = (COUNT, HEIGHT, WIDTH, 3)  # of all images here, because each shape takes seconds to compile
compiled_augment = jax.jit(augment)


@jax.jit
def flip_only(key, images, hflip):
    return augment(key, images, None, hflip)


def augmented(images, strength=1.0, hflip=True, key=KEY):
    """Augments the images, repeated to COUNT, and returns the first len(images) results."""
    repeated = np.resize(images, SHAPE).astype(np.float32)
    if strength is None:
        result = flip_only(key, repeated, hflip)
    else:
        result = compiled_augment(key, repeated, np.float32(strength), hflip)
    return np.asarray(result)[: len(images)]


def affine_params(strength=1.0):
    return [np.asarray(array, np.float64) for array in random_affine_params(KEY, 4000, strength, False)]


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


def sampled_by_scipy(images, matrix, shift, tilt):
    """Computes the definition of `sample_bilinear` in float64; `tilt` may be None."""
    height, width = images.shape[1:3]
    half = np.array([(height - 1) / 2, (width - 1) / 2])
    position = np.stack(np.mgrid[:height, :width] - half[:, None, None]).astype(np.float64)
    result = np.empty(images.shape)
    for n in range(len(images)):
        source = np.einsum("ij,jhw->ihw", matrix[n], position) + (shift[n] * half)[:, None, None]
        if tilt is not None:
            source /= 1 + np.einsum("i,ihw->hw", tilt[n] / np.maximum(half, 0.5), position)
        source += half[:, None, None]
        for c in range(3):
            result[n, ..., c] = map_coordinates(images[n, ..., c].astype(np.float64), source, order=1, mode="nearest")
    return result


def rotation(degrees):
    cos = np.cos(np.radians(degrees))
    sin = np.sin(np.radians(degrees))
    return np.array([[cos, -sin], [sin, cos]])


MAPS = {
    "identity": (np.eye(2), [0, 0]),
    "rotation": (rotation(20), [0, 0]),
    "opposite rotation": (rotation(-33), [0, 0]),
    "zoom in": (np.eye(2) * 0.7, [0, 0]),
    "zoom out": (np.eye(2) * 1.6, [0, 0]),
    "aspect": (np.diag([0.8, 1.3]), [0, 0]),
    "shift": (np.eye(2), [0.23, -0.31]),
    "shift out of the image": (np.eye(2), [3, 0.5]),
    "mirror": (np.diag([1.0, -1.0]), [0, 0]),
    "composition": (np.diag([0.9, -1.2]) @ rotation(15), [0.1, -0.17]),
    "tilt": (np.eye(2), [0, 0]),
}


@pytest.mark.parametrize("size", [(8, 8), (5, 12), (9, 4), (1, 6)], ids=str)
def test_sample_bilinear_matches_scipy(size):
    """Samples one image per map, once without tilts and once with them."""
    images = random_images(len(MAPS), *size, 3)
    matrix = np.stack([matrix for matrix, _ in MAPS.values()])
    shift = np.array([shift for _, shift in MAPS.values()])
    tilt = np.zeros((len(MAPS), 2))
    tilt[:2] = [[0.3, 0], [-0.1, 0.15]]
    tilt[-2:] = [[-0.2, 0.25], [0.3, 0]]
    arrays = [np.asarray(array, np.float32) for array in (images, matrix, shift, tilt)]
    results = jax.jit(lambda *arrays: (sample_bilinear(*arrays[:3]), sample_bilinear(*arrays)))(*arrays)
    for result, tilts in zip(results, (None, tilt), strict=True):
        expected = sampled_by_scipy(images, matrix, shift, tilts)
        for index, name in enumerate(MAPS):
            message = f"{name}, tilts {tilts}"
            np.testing.assert_allclose(result[index], expected[index], rtol=0, atol=1e-5, err_msg=message)


def test_crop_composes_with_tilt(monkeypatch):
    """Compares with two samplings in sequence, on smooth images, which lose little when sampled twice."""
    y, x = np.mgrid[:64, :64] / 63
    images = jnp.asarray(np.stack([y, x, (y + x) / 2], axis=-1)[None].repeat(8, axis=0), jnp.float32)
    for name in ("ROTATION", "LOG_SCALE", "LOG_ASPECT", "SHEAR", "SHIFT"):
        monkeypatch.setattr(geometric, name, 0.0)
    for name in ("random_shadow", "jitter_colors", "blur_and_noise"):
        monkeypatch.setattr(geometric, name, lambda key, images, strength: images)

    def sample_twice(images):
        geometry_key = jax.random.split(KEY)[0]
        crop_key = jax.random.fold_in(geometry_key, geometric.CROP_STREAM)
        scale, offset = geometric.random_resized_crop(crop_key, images, 0.3)
        maps = random_affine_params(geometry_key, 8, 2.0, True)
        return sample_bilinear(sample_bilinear(images, scale[:, :, None] * jnp.eye(2), offset), *maps), maps[2]

    expected, tilt = jax.jit(sample_twice)(images)
    result = jax.jit(lambda images: augment(KEY, images, 2.0, crop_min_area=0.3))(images)
    inner = np.s_[:, 16:48, 16:48]  # two samplings repeat the crop's edge; one sampling sees beyond it
    np.testing.assert_allclose(result[inner], expected[inner], rtol=0, atol=2e-3)
    assert np.abs(np.asarray(tilt)).max() > 0.1


def test_sample_bilinear_repeats_edge():
    row = np.array([[0.1, 0.2, 0.3, 0.4, 0.5]], np.float32)[None, ..., None]
    shift = np.array([[0.0, 1.0]], np.float32)  # half a side is two pixels
    shifted = jax.jit(sample_bilinear)(row, np.eye(2, dtype=np.float32)[None], shift)
    np.testing.assert_allclose(shifted[0, 0, :, 0], [0.3, 0.4, 0.5, 0.5, 0.5], atol=1e-6)


@pytest.mark.parametrize("strength", [0.0, None])
def test_strength_0_only_flips(strength):
    images = random_images(*SHAPE)
    np.testing.assert_allclose(augmented(images, strength, hflip=False), images, rtol=0, atol=1e-6)
    flipped = augmented(images, strength)
    mirrored = np.abs(flipped - images[:, :, ::-1]).max(axis=(1, 2, 3)) < 1e-6
    same = np.abs(flipped - images).max(axis=(1, 2, 3)) < 1e-6
    assert np.all(mirrored ^ same)
    assert 420 < mirrored.sum() < 580  # 5 standard deviations
    np.testing.assert_allclose(flipped, augmented(images, 0.0), rtol=0, atol=1e-6)


def test_affine_params_without_hflip_never_mirror():
    assert np.all(np.linalg.det(affine_params()[0]) > 0)


# From matrix, shift and tilt to the draw, relative to the constant's value in the module.
DRAWS = {
    "ROTATION": lambda m, s, t: np.degrees(np.arctan2(m[:, 1, 0], m[:, 1, 1])) / 20,
    "LOG_SCALE": lambda m, s, t: np.log(np.linalg.det(m)) / 2 / 0.2,
    "LOG_ASPECT": lambda m, s, t: np.log(m[:, 0, 0] / m[:, 1, 1]) / 2 / 0.12,
    "SHEAR": lambda m, s, t: m[:, 0, 1] / 0.12,
    "SHIFT": lambda m, s, t: s.T / 0.2,  # SHIFT is a fraction of the side, and s of half a side
    "TILT": lambda m, s, t: t.T / 0.075,
}


@pytest.mark.parametrize("strength", [0.5, 2.0])
@pytest.mark.parametrize("name", DRAWS)
def test_affine_params_fill_their_ranges(name, strength, monkeypatch):
    for other in set(DRAWS) - {name}:
        monkeypatch.setattr(geometric, other, 0.0)
    for values in np.atleast_2d(DRAWS[name](*affine_params(strength))):
        relative = values / strength
        assert np.abs(relative).max() <= 1 + 1e-4
        np.testing.assert_allclose([relative.min(), relative.max()], [-1, 1], atol=0.01)
        np.testing.assert_allclose([relative.mean(), relative.var()], [0, 1 / 3], atol=0.05)


def test_affine_params_compose_in_order():
    """The shear comes first, then the rotation, then the scale."""
    matrix = affine_params()[0]
    lengths = np.linalg.norm(matrix @ np.array([1.0, 0.0]), axis=1)  # the shear leaves this vector unchanged
    assert lengths.min() >= np.exp(-0.32) - 1e-6
    assert lengths.max() <= np.exp(0.32) + 1e-6
    singular_values = np.linalg.svd(matrix, compute_uv=False)
    shear = np.linalg.svd(np.array([[1, 0.12], [0, 1]]), compute_uv=False)[0]
    assert (singular_values[:, 0] / singular_values[:, 1]).max() <= (shear * np.exp(0.12)) ** 2 + 1e-6


def test_augment_depends_on_key_alone():
    images = random_images(4, HEIGHT, WIDTH, 3)
    changed = augmented(images)
    np.testing.assert_array_equal(augmented(images), changed)
    assert np.abs(augmented(images, key=jax.random.key(8)) - changed).mean() > 0.02


def test_augment_draws_per_image():
    images = augmented(random_images(1, HEIGHT, WIDTH, 3).repeat(6, axis=0))
    for first in range(6):
        for second in range(first):
            assert np.abs(images[first] - images[second]).mean() > 0.02


@pytest.mark.parametrize("strength", [0.0, 1.0, 2.0])
def test_augmented_images_stay_in_range(strength):
    images = np.round(random_images(*SHAPE))  # black and white: the ends of the range
    changed = augmented(images, strength)
    assert changed.shape == images.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert changed.std() > 0.1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_augment_preserves_dtype(dtype):
    assert jax.eval_shape(augment, KEY, jnp.zeros((2, 4, 4, 3), dtype)).dtype == dtype


def test_strength_increases_changes():
    images = random_images(4, HEIGHT, WIDTH, 3)
    weak = np.abs(augmented(images, 0.1, hflip=False) - images).mean()
    strong = np.abs(augmented(images, 1.0, hflip=False) - images).mean()
    assert 0 < weak < strong / 2


@pytest.mark.campaign
def test_augment_matches_uncompiled():
    images = random_images(4, 8, 8, 3)
    np.testing.assert_allclose(compiled_augment(KEY, images), augment(KEY, images), rtol=0, atol=1e-5)
