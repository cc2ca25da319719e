"""Tests accuracy and calibration under corruptions with a classifier whose predictions are known."""

import numpy as np
import pytest

from flaxresnet.reliability.calibration import calibration_error
from flaxresnet.reliability.corruptions import CORRUPTIONS, corrupt
from flaxresnet.reliability.robustness import robustness

LABELS = np.arange(6) % 2
IMAGES = (90 + 60 * LABELS[:, None, None, None] * np.ones((6, 16, 16, 3))).astype(np.uint8)
ONES = np.ones(6)


def classify_by_brightness(images):
    """Returns logits ±2, for class 1 if a photo's mean is above 120."""
    logit = np.where(images.mean(axis=(1, 2, 3)) > 120, 2.0, -2.0)
    return np.stack([-logit, logit], axis=1)


def evaluate(temperatures=ONES, labels=LABELS):
    return robustness(classify_by_brightness, IMAGES, labels, temperatures)


def confidence_at(temperature):
    return 1 / (1 + np.exp(-4 / temperature))


def test_robustness_sorts_rows_by_accuracy():
    report = evaluate()
    assert {row.corruption for row in report.rows} == set(CORRUPTIONS)
    assert report.clean.correct == report.clean.images == 6
    accuracies = [row.accuracy for row in report.rows]
    assert accuracies == sorted(accuracies)
    assert report.mean == pytest.approx(np.mean(accuracies))
    for row in report.rows:
        predicted = classify_by_brightness(corrupt(IMAGES, row.corruption, "middle")).argmax(axis=1)
        assert row.correct == (predicted == LABELS).sum()
    by_name = {row.corruption: row.accuracy for row in report.rows}
    assert by_name["mirror"] == by_name["rotation"] == by_name["noise"] == 1
    assert by_name["brightness"] < 1


def test_temperature_affects_confidence_only():
    plain = evaluate()
    soft = evaluate(4.0 * ONES)
    assert plain.rows == soft.rows
    assert calibration_error(soft.before) == calibration_error(plain.before) == calibration_error(plain.after)
    for report, temperature in ((plain, 1.0), (soft, 4.0)):
        confidence = confidence_at(temperature)
        assert calibration_error(report.after) == pytest.approx(abs(report.mean - confidence), abs=1e-6)
        assert {round(failure.probability, 5) for failure in report.failures} == {round(confidence, 5)}


def test_temperature_belongs_to_image():
    report = evaluate(np.array([1.0, 1, 1, 4, 4, 4]))
    filled = [b for b in report.after if b.count]
    assert {round(b.confidence, 5) for b in filled} == {round(confidence_at(temperature), 5) for temperature in (1, 4)}
    assert [b.count for b in filled] == [3 * len(report.rows)] * 2


def test_failures_hold_corrupted_photo():
    report = evaluate()
    names = {failure.corruption for failure in report.failures}
    assert names == {row.corruption for row in report.rows if row.accuracy < 1} != set()
    for failure in report.failures:
        assert classify_by_brightness(failure.image[None]).argmax() == failure.predicted != failure.true
        photos = corrupt(IMAGES, failure.corruption, "middle")
        assert (photos == failure.image).all(axis=(1, 2, 3)).any()


def test_failures_exclude_clean_errors():
    report = evaluate(labels=1 - LABELS)
    assert report.clean.correct == 0
    assert report.failures == []
    assert {row.accuracy for row in report.rows if row.corruption in ("mirror", "noise")} == {0}
