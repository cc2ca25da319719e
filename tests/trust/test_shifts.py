"""The changes of test images: the same ones always, stronger by strength, and right where the result is known."""

import numpy as np
import pytest

from flaxresnet.data.synthetic import draw_signs
from flaxresnet.trust import shifts
from flaxresnet.trust.shifts import SHIFTS, STRENGTHS, foreground, hits, shifted, together

IMAGES = draw_signs(6, seed=3)[0]
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("name", SHIFTS)
def test_photos_change_more_with_the_strength_and_the_same_way_each_time(name):
    changed = [shifted(IMAGES, name, strength) for strength in STRENGTHS]
    for photos in changed:
        assert photos.shape == IMAGES.shape
        assert photos.dtype == np.uint8
    np.testing.assert_array_equal(shifted(IMAGES, name, "middle"), changed[1])
    away = [np.abs(photos.astype(float) - IMAGES).mean() for photos in changed]
    assert 0 < away[0] <= away[1] <= away[2] or name == "background"
    if name != "background" and name != "mirror":
        assert away[2] > 1.2 * away[0]
    # A photo's change does not depend on which others are there.
    np.testing.assert_array_equal(shifted(IMAGES[:2], name, "middle"), changed[1][:2])


def test_every_photo_has_its_own_change_and_another_seed_another_one():
    same = IMAGES[:1].repeat(6, axis=0)
    photos = shifted(same, "shift", "middle")
    assert len({photo.tobytes() for photo in photos}) == 6
    assert not np.array_equal(photos, shifted(same, "shift", "middle", seed=1))


def test_a_quarter_turn_is_one():
    turned = shifts.rotation(IMAGES[0], 90, RNG)
    either = [np.rot90(IMAGES[0], quarter) for quarter in (1, 3)]
    assert min(np.abs(turned.astype(float) - other).max() for other in either) <= 1


def test_twice_as_far_is_half_as_large():
    photo = np.full((40, 40, 3), 250, np.uint8)
    photo[10:30, 12:28] = 10
    sizes = {int((shifts.scale(photo, 2.0, np.random.default_rng(seed))[..., 0] < 128).sum()) for seed in range(8)}
    assert len(sizes) == 2
    assert min(sizes) == pytest.approx(80, abs=8)
    assert max(sizes) == pytest.approx(1280, abs=16)


def test_light_on_one_grey():
    grey = np.full((8, 8, 3), 100, np.uint8)
    found = {round(float(shifts.brightness(grey, 2.0, np.random.default_rng(seed)).mean())) for seed in range(8)}
    assert found == {200, 50}
    exponents = {round(float(shifts.gamma(grey, 2.0, np.random.default_rng(seed)).mean()), 1) for seed in range(8)}
    assert exponents == {39.2, 159.7}
    falling = shifts.light_gradient(grey, 0.6, RNG)
    assert (falling.min(), falling.max()) == pytest.approx((40, 100))
    dark = shifts.shadow(grey, 0.5, RNG)
    assert (dark.min(), dark.max()) == pytest.approx((50, 100))


def test_a_box_of_the_share_is_covered():
    black = np.zeros((60, 60, 3), np.uint8)
    for seed in range(5):
        covered = shifts.occlusion(black, 0.1, np.random.default_rng(seed)).any(axis=-1)
        assert covered.mean() == pytest.approx(0.1, abs=0.015)


def test_the_wall_changes_and_the_thing_stays():
    y, x = np.mgrid[:48, :48]
    inside = (y - 26) ** 2 + (x - 24) ** 2 < 14**2
    photo = np.where(inside[..., None], (170, 110, 80), (200, 200, 200)).astype(np.uint8)
    cover = foreground(photo)[..., 0] > 0.5
    assert (cover & inside).sum() / (cover | inside).sum() > 0.93
    inner = (y - 26) ** 2 + (x - 24) ** 2 < 11**2
    for strength in STRENGTHS:
        new = shifted(photo[None], "background", strength)[0]
        assert np.abs(new[inner].astype(int) - photo[inner]).max() <= 2
        assert np.abs(new[~inside].astype(int) - 200).mean() > 10


def test_a_photo_without_a_plain_background_stays_as_it_is():
    noise = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    assert foreground(noise[0]) is None
    np.testing.assert_array_equal(shifted(noise, "background", "strong"), noise)


def test_hits_are_counted_by_change_and_strength():
    labels = np.arange(6) % 2
    rows = hits(lambda photos: np.zeros(len(photos), int), IMAGES, labels, ("mild", "strong"))
    assert [(row["shift"], row["strength"]) for row in rows[:2]] == [("rotation", "mild"), ("rotation", "strong")]
    assert len(rows) == 2 * len(SHIFTS)
    assert all(row["images"] == 6 and row["correct"] == 3 for row in rows)


def test_several_changes_together_are_the_same_each_time_and_more_of_them_change_more():
    three, five = (together(IMAGES, count, "middle") for count in (3, 5))
    np.testing.assert_array_equal(three, together(IMAGES, 3, "middle"))
    assert three.shape == IMAGES.shape
    assert three.dtype == np.uint8
    assert all((new != old).any() for new, old in zip(three, IMAGES, strict=True))
    away = [np.abs(new.astype(int) - IMAGES).mean() for new in (together(IMAGES, 3, "mild"), three, five)]
    assert away == sorted(away)
    assert len(together(IMAGES[:0], 3, "mild")) == 0
