"""The changes of test images: the same ones always, and stronger by strength."""

import numpy as np
import pytest

from flaxresnet.data.hand_signs.render import render_signs
from flaxresnet.reliability.corruptions import CORRUPTIONS, STRENGTHS, compose_corruptions, shifted

IMAGES = render_signs(6, seed=3)[0]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_photos_change_more_with_the_strength_and_the_same_way_each_time(name):
    changed = [shifted(IMAGES, name, strength) for strength in STRENGTHS]
    for photos in changed:
        assert photos.shape == IMAGES.shape
        assert photos.dtype == np.uint8
    np.testing.assert_array_equal(shifted(IMAGES, name, "middle"), changed[1])
    away = [np.abs(photos.astype(float) - IMAGES).mean() for photos in changed]
    assert 0 < away[0] <= away[1] <= away[2] or name == "background"  # see test_background_swap.py
    if name != "background" and name != "mirror":
        assert away[2] > 1.2 * away[0]
    # A photo's change does not depend on which others are there.
    np.testing.assert_array_equal(shifted(IMAGES[:2], name, "middle"), changed[1][:2])


def test_every_photo_has_its_own_change_and_another_seed_another_one():
    same = IMAGES[:1].repeat(6, axis=0)
    photos = shifted(same, "shift", "middle")
    assert len({photo.tobytes() for photo in photos}) == 6
    assert not np.array_equal(photos, shifted(same, "shift", "middle", seed=1))


def test_several_changes_together_are_the_same_each_time_and_more_of_them_change_more():
    three, five = (compose_corruptions(IMAGES, count, "middle") for count in (3, 5))
    np.testing.assert_array_equal(three, compose_corruptions(IMAGES, 3, "middle"))
    assert three.shape == IMAGES.shape
    assert three.dtype == np.uint8
    assert all((new != old).any() for new, old in zip(three, IMAGES, strict=True))
    away = [np.abs(new.astype(int) - IMAGES).mean() for new in (compose_corruptions(IMAGES, 3, "mild"), three, five)]
    assert away == sorted(away)
    assert len(compose_corruptions(IMAGES[:0], 3, "mild")) == 0
