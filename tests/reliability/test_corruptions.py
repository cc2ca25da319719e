"""Tests the corruptions of test images: reproducible, and stronger with the strength."""

import numpy as np
import pytest

from flaxresnet.data.hand_signs.render import render_signs
from flaxresnet.reliability.corruptions import CORRUPTIONS, STRENGTHS, compose_corruptions, corrupt

IMAGES = render_signs(6, seed=3)[0]


def mean_change(photos):
    return np.abs(photos.astype(float) - IMAGES).mean()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruption_grows_with_strength(name):
    results = [corrupt(IMAGES, name, strength) for strength in STRENGTHS]
    for photos in results:
        assert photos.shape == IMAGES.shape
        assert photos.dtype == np.uint8
    mild, middle, strong = map(mean_change, results)
    assert 0 < mild <= middle <= strong or name == "background"  # see test_background_swap.py
    if name not in ("background", "mirror"):
        assert strong > 1.2 * mild
    # The draws depend neither on earlier calls nor on the other photos.
    np.testing.assert_array_equal(corrupt(IMAGES[:2], name, "middle"), results[1][:2])


def test_corruption_draws_per_photo_and_seed():
    copies = IMAGES[:1].repeat(6, axis=0)
    photos = corrupt(copies, "shift", "middle")
    assert len({photo.tobytes() for photo in photos}) == 6
    assert not np.array_equal(photos, corrupt(copies, "shift", "middle", seed=1))


def test_composed_corruptions_grow_with_count():
    three = compose_corruptions(IMAGES, 3, "middle")
    np.testing.assert_array_equal(three, compose_corruptions(IMAGES, 3, "middle"))
    assert three.shape == IMAGES.shape
    assert three.dtype == np.uint8
    assert (three != IMAGES).any(axis=(1, 2, 3)).all()
    mild = compose_corruptions(IMAGES, 3, "mild")
    five = compose_corruptions(IMAGES, 5, "middle")
    assert mean_change(mild) < mean_change(three) < mean_change(five)
    assert len(compose_corruptions(IMAGES[:0], 3, "mild")) == 0
