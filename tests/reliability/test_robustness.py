"""Accuracy and confidence on changed test images, where what the network answers is known."""

import numpy as np
import pytest

from flaxresnet.reliability.calibration import calibration_error
from flaxresnet.reliability.corruptions import CORRUPTIONS, shifted
from flaxresnet.reliability.robustness import robustness

LABELS = np.arange(6) % 2
IMAGES = np.where(LABELS[:, None, None, None] == 1, 150, 90) * np.ones((6, 16, 16, 3))
IMAGES = IMAGES.astype(np.uint8)
ONES = np.ones(6)


def by_brightness(images):
    """Logits ±2: class 1 where a photo is brighter than 120 in the mean."""
    sign = np.where(images.mean(axis=(1, 2, 3)) > 120, 2.0, -2.0)
    return np.stack([-sign, sign], axis=1)


def test_each_change_is_counted_and_the_worst_comes_first():
    found = robustness(by_brightness, IMAGES, LABELS, ONES)
    assert {row.change for row in found.rows} == set(CORRUPTIONS)
    assert found.clean.correct == found.clean.images == 6
    shares = [row.share for row in found.rows]
    assert shares == sorted(shares)
    assert found.mean == pytest.approx(np.mean(shares))
    for row in found.rows:
        predicted = by_brightness(shifted(IMAGES, row.change, "middle")).argmax(axis=1)
        assert row.correct == (predicted == LABELS).sum()
    right = {row.change: row.share for row in found.rows}
    assert right["mirror"] == right["rotation"] == right["noise"] == 1
    assert right["brightness"] < 1


def test_the_temperature_counts_in_confidence_alone():
    plain, soft = (robustness(by_brightness, IMAGES, LABELS, temperature * ONES) for temperature in (1.0, 4.0))
    assert plain.rows == soft.rows
    assert calibration_error(soft.before) == calibration_error(plain.before) == calibration_error(plain.after)
    for found, temperature in ((plain, 1.0), (soft, 4.0)):
        sure = 1 / (1 + np.exp(-4 / temperature))
        assert calibration_error(found.after) == pytest.approx(abs(found.mean - sure), abs=1e-6)
        assert {round(failure.sure, 5) for failure in found.failures} == {round(sure, 5)}


def test_each_image_has_its_own_temperature_in_every_change():
    found = robustness(by_brightness, IMAGES, LABELS, np.array([1.0, 1, 1, 4, 4, 4]))
    sure = {round(1 / (1 + np.exp(-4 / temperature)), 5) for temperature in (1, 4)}
    assert {round(one.confidence, 5) for one in found.after if one.count} == sure
    assert [one.count for one in found.after if one.count] == [3 * len(found.rows)] * 2


def test_a_failure_of_each_kind_is_shown_as_it_was_seen():
    found = robustness(by_brightness, IMAGES, LABELS, ONES)
    assert {one.change for one in found.failures} == {row.change for row in found.rows if row.share < 1} != set()
    for one in found.failures:
        assert by_brightness(one.image[None]).argmax() == one.predicted != one.true
        assert any((photo == one.image).all() for photo in shifted(IMAGES, one.change, "middle"))


def test_what_is_wrong_without_a_change_is_no_failure_of_the_change():
    found = robustness(by_brightness, IMAGES, 1 - LABELS, ONES)
    assert found.clean.correct == 0
    assert found.failures == []
    assert {row.share for row in found.rows if row.change in ("mirror", "noise")} == {0}
