"""mixup and CutMix: pixels against labels."""

import functools

import jax
import numpy as np
import pytest

from flaxresnet.augment.mixup_cutmix import mix

CLASSES = 6
KEYS = jax.vmap(jax.random.key)(np.arange(60))
WAYS = [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 50.0, "cutmix": 1.0}]


@functools.partial(jax.jit, static_argnames=("mixup", "cutmix"))
def for_all(keys, images, targets, mixup=0.0, cutmix=0.0):
    """Images and targets for each of the keys: (keys, batch, …)."""
    return jax.lax.map(lambda key: mix(key, images, targets, mixup, cutmix), keys)


@functools.cache
def mixed(mixup=0.0, cutmix=0.0):
    """The telling images and their targets for each of KEYS, as they are mixed so."""
    results = for_all(KEYS, telling_images(), TARGETS, mixup, cutmix)
    return list(zip(*map(np.asarray, results), strict=True))


def telling_images(size=(9, 7)):
    """Images that are of one colour, which no other has, so that a mixed pixel tells what it is made of."""
    colors = np.arange(CLASSES, dtype=np.float32) / 8
    return np.broadcast_to(colors[:, None, None, None], (CLASSES, *size, 3))


TARGETS = np.eye(CLASSES, dtype=np.float32)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_mixed_targets_add_up_to_1_and_images_stay_in_range(way):
    for images, targets in mixed(**way):
        np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)
        assert targets.min() >= 0
        assert images.shape == telling_images().shape
        assert 0 <= images.min() <= images.max() <= 1


def test_mixup_blends_pixels_in_the_share_of_their_labels():
    shares = []
    for pair in mixed(mixup=0.4):
        images, targets = (array.astype(np.float64) for array in pair)
        values = np.arange(CLASSES) / 8
        np.testing.assert_allclose(
            images, np.broadcast_to((targets @ values)[:, None, None, None], images.shape), atol=1e-6
        )
        other = (targets > 0).sum(axis=1) == 2
        shares.append(np.diag(targets)[other].min() if other.any() else np.nan)
    assert len(set(np.round(shares, 6))) > 10  # another one each time


def test_cutmixs_label_share_is_the_share_of_the_pixels_exactly():
    pasted = 0
    for images, targets in mixed(cutmix=1.0):
        for image, target in zip(images, targets, strict=True):
            of_class = np.array([(image[..., 0] == value).sum() for value in np.arange(CLASSES) / 8])
            assert of_class.sum() == 9 * 7  # every pixel is one image's or the other's
            np.testing.assert_allclose(target, of_class / 63, rtol=0, atol=2e-7)
            pasted += len(of_class.nonzero()[0]) == 2
    assert pasted > 180


def test_the_box_lies_about_a_centre_anywhere():
    seen = np.zeros((9, 7), bool)
    areas = []
    for images, _ in mixed(cutmix=1.0):
        box = (images[..., 0] != telling_images()[..., 0]).any(axis=0)  # the same in every image that is mixed
        np.testing.assert_array_equal(box, box.any(axis=1)[:, None] & box.any(axis=0))
        seen |= box
        areas.append(box.mean())
    assert seen.all()
    assert min(areas) < 0.05
    assert max(areas) > 0.5


def unmixed_pixels(images):
    """Whether each pixel is one image's, as CutMix leaves them."""
    return np.isin(images, np.arange(CLASSES) / 8).all()


def test_each_way_has_its_turn_where_both_are_on():
    kinds = {"cutmix" if unmixed_pixels(images) else "mixup" for images, _ in mixed(**WAYS[2])}
    assert kinds == {"cutmix", "mixup"}


def test_strength_0_changes_nothing():
    images, targets = mix(KEYS[0], telling_images(), TARGETS)
    np.testing.assert_array_equal(images, telling_images())
    np.testing.assert_array_equal(targets, TARGETS)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_same_key_gives_the_same_and_others_other_images(way):
    keys = KEYS[np.maximum(np.arange(len(KEYS)) - 1, 0)]  # the first one twice
    images, targets = (np.asarray(array) for array in for_all(keys, telling_images(), TARGETS, **way))
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(targets[0], targets[1])
    assert (targets[0] != targets[2]).any()


def test_larger_alphas_mix_more_evenly():
    def spread(way):
        return np.mean([targets.max(axis=1).min() for images, targets in mixed(**way) if not unmixed_pixels(images)])

    assert spread(WAYS[0]) > 0.8 > 0.7 > spread(WAYS[2])  # of alpha 0.4 and 50
