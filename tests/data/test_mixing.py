"""mixup and CutMix: pixels against labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxresnet.data.mixing import mix

CLASSES = 6
KEYS = [jax.random.key(seed) for seed in range(20)]
compiled = jax.jit(mix, static_argnames=("mixup", "cutmix"))
WAYS = [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}]


def telling_images(size=(9, 7)):
    """Images that are of one colour, which no other has, so that a mixed pixel tells what it is made of."""
    return jnp.broadcast_to((jnp.arange(CLASSES) / 8)[:, None, None, None], (CLASSES, *size, 3))


TARGETS = jnp.eye(CLASSES)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_mixed_targets_add_up_to_1_and_images_stay_in_range(way):
    for key in KEYS:
        images, targets = compiled(key, telling_images(), TARGETS, **way)
        np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)
        assert np.asarray(targets).min() >= 0
        assert images.shape == telling_images().shape
        assert 0 <= np.asarray(images).min() <= np.asarray(images).max() <= 1


def test_mixup_blends_pixels_in_the_share_of_their_labels():
    shares = []
    for key in KEYS:
        images, targets = (np.asarray(x, np.float64) for x in compiled(key, telling_images(), TARGETS, mixup=0.4))
        values = np.arange(CLASSES) / 8
        np.testing.assert_allclose(
            images, np.broadcast_to((targets @ values)[:, None, None, None], images.shape), atol=1e-6
        )
        other = (targets > 0).sum(axis=1) == 2
        shares.append(np.diag(targets)[other].min() if other.any() else np.nan)
    assert len(set(np.round(shares, 6))) > 10  # another one each time


def test_cutmixs_label_share_is_the_share_of_the_pixels_exactly():
    pasted = 0
    for key in KEYS:
        images, targets = (np.asarray(x) for x in compiled(key, telling_images(), TARGETS, cutmix=1.0))
        for image, target in zip(images, targets, strict=True):
            of_class = np.array([(image[..., 0] == value).sum() for value in np.arange(CLASSES) / 8])
            assert of_class.sum() == 9 * 7  # every pixel is one image's or the other's
            np.testing.assert_allclose(target, of_class / 63, rtol=0, atol=2e-7)
            pasted += len(of_class.nonzero()[0]) == 2
    assert pasted > 60


def test_the_box_lies_about_a_centre_anywhere():
    image = jnp.stack([jnp.zeros((16, 16, 3)), jnp.ones((16, 16, 3))])
    seen = np.zeros((16, 16), bool)
    areas = []
    for seed in range(60):
        images, _ = compiled(jax.random.key(seed), image, jnp.eye(2), cutmix=1.0)
        box = np.asarray(images)[0, ..., 0] == 1
        np.testing.assert_array_equal(box, box.any(axis=1)[:, None] & box.any(axis=0))
        seen |= box
        areas.append(box.mean())
    assert seen.all()
    assert min(areas) < 0.05
    assert max(areas) > 0.5


def test_each_way_has_its_turn_where_both_are_on():
    kinds = set()
    for key in KEYS:
        images, _ = compiled(key, telling_images(), TARGETS, mixup=1.0, cutmix=1.0)
        known = np.isin(np.asarray(images), np.arange(CLASSES) / 8).all()
        kinds.add("cutmix" if known else "mixup")
    assert kinds == {"cutmix", "mixup"}


def test_strength_0_changes_nothing():
    images, targets = mix(KEYS[0], telling_images(), TARGETS)
    np.testing.assert_array_equal(images, telling_images())
    np.testing.assert_array_equal(targets, TARGETS)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_same_key_gives_the_same_and_others_other_images(way):
    first, second, other = (compiled(key, telling_images(), TARGETS, **way) for key in (KEYS[0], KEYS[0], KEYS[1]))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert (np.asarray(first[1]) != np.asarray(other[1])).any()


def test_larger_alphas_mix_more_evenly():
    def spread(alpha):
        shares = [
            np.asarray(compiled(key, telling_images(), TARGETS, mixup=alpha)[1]).max(axis=1).min() for key in KEYS
        ]
        return np.mean(shares)

    assert spread(0.1) > 0.8 > 0.7 > spread(50.0)
