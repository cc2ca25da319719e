"""Tests mixup and CutMix: the pixels of mixed images against their targets."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxresnet.augment.mixup_cutmix import mix

NUM_CLASSES = 6
TARGETS = np.eye(NUM_CLASSES, dtype=np.float32)
# One constant image per class, each of another gray, so that a mixed pixel reveals its sources.
GRAYS = np.arange(NUM_CLASSES, dtype=np.float32) / 8
IMAGES = np.broadcast_to(GRAYS[:, None, None, None], (NUM_CLASSES, 9, 7, 3))
KEYS = jax.vmap(jax.random.key)(np.arange(60))
BOTH = {"mixup": 50.0, "cutmix": 1.0}
METHODS = [{"mixup": 0.4}, {"cutmix": 1.0}, BOTH]


@functools.partial(jax.jit, static_argnames=("mixup", "cutmix"))
def mix_per_key(keys, mixup=0.0, cutmix=0.0):
    """Returns images and targets for each key: (keys, batch, …)."""
    return jax.lax.map(lambda key: mix(key, jnp.asarray(IMAGES), jnp.asarray(TARGETS), mixup, cutmix), keys)


@functools.cache
def mixed_batches(mixup=0.0, cutmix=0.0):
    """Returns a list of (images, targets), one for each of KEYS."""
    images, targets = mix_per_key(KEYS, mixup, cutmix)
    return list(zip(np.asarray(images), np.asarray(targets), strict=True))


def is_cutmix(images):
    """Returns whether each pixel comes from one image only, as CutMix leaves it."""
    return np.isin(images, GRAYS).all()


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_mixed_targets_sum_to_1(method):
    for images, targets in mixed_batches(**method):
        np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)
        assert targets.min() >= 0
        assert images.shape == IMAGES.shape
        assert 0 <= images.min() <= images.max() <= 1


def test_mixup_weights_pixels_like_targets():
    weights = []
    for images, targets in mixed_batches(mixup=0.4):
        expected = targets.astype(np.float64) @ GRAYS
        np.testing.assert_allclose(images, np.broadcast_to(expected[:, None, None, None], images.shape), atol=1e-6)
        is_mixed = (targets > 0).sum(axis=1) == 2
        weights.append(np.diag(targets)[is_mixed].min() if is_mixed.any() else np.nan)
    assert len(set(np.round(weights, 6))) > 10  # each batch draws its own


def test_cutmix_targets_count_pixels():
    mixed = 0
    for images, targets in mixed_batches(cutmix=1.0):
        for image, target in zip(images, targets, strict=True):
            pixels = np.array([(image[..., 0] == gray).sum() for gray in GRAYS])
            assert pixels.sum() == 9 * 7  # each pixel comes from one of the two images
            np.testing.assert_allclose(target, pixels / 63, rtol=0, atol=2e-7)
            mixed += np.count_nonzero(pixels) == 2
    assert mixed > 180


def test_cutmix_box_lies_anywhere():
    covered = np.zeros((9, 7), bool)
    areas = []
    for images, _ in mixed_batches(cutmix=1.0):
        box = (images[..., 0] != IMAGES[..., 0]).any(axis=0)  # the same for all images of a batch
        np.testing.assert_array_equal(box, box.any(axis=1)[:, None] & box.any(axis=0))
        covered |= box
        areas.append(box.mean())
    assert covered.all()
    assert min(areas) < 0.05
    assert max(areas) > 0.5


def test_mix_alternates_between_methods():
    assert {is_cutmix(images) for images, _ in mixed_batches(**BOTH)} == {True, False}


def test_mix_without_alpha_changes_nothing():
    images, targets = mix(KEYS[0], IMAGES, TARGETS)
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(targets, TARGETS)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_mix_depends_on_key_alone(method):
    keys = KEYS[np.maximum(np.arange(len(KEYS)) - 1, 0)]  # the first one twice
    images, targets = mix_per_key(keys, **method)
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(targets[0], targets[1])
    assert (targets[0] != targets[2]).any()


def test_mixup_with_larger_alpha_is_more_even():
    def mean_weight(method):
        batches = mixed_batches(**method)
        return np.mean([targets.max(axis=1).min() for images, targets in batches if not is_cutmix(images)])

    assert mean_weight({"mixup": 0.4}) > 0.8 > 0.7 > mean_weight(BOTH)
