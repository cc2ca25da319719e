"""Tests that cross-fitting evaluates each half of the images with values fitted on the other half."""

import numpy as np

from flaxresnet.reliability.calibration import calibration_error, fit_temperature
from flaxresnet.reliability.cross_fit import assess, split_halves


def test_split_halves_splits_every_class():
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 2])
    np.testing.assert_array_equal(np.flatnonzero(split_halves(labels)), [0, 1, 4, 5])


def test_assess_corrects_overconfidence():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 3000)
    logits = 8 * np.eye(4)[np.where(rng.random(3000) < 0.8, labels, rng.integers(0, 4, 3000))]
    report = assess("abc", logits, labels, rng.normal(size=(3000, 8)), rng.normal(size=(200, 8)))
    assert calibration_error(report.before) > 0.13
    assert calibration_error(report.after) < 0.02
    assert report.calibration.weights == "abc"
    assert report.num_scored == 3000
    assert 0.03 < report.false_alarms / report.num_scored < 0.07


def test_assess_fits_on_other_half():
    labels = np.array([0, 0, 1, 1] * 20)
    first = split_halves(labels)
    logits = 4.0 * np.eye(2)[labels]
    logits[~first] = -logits[~first]  # all of one half are classified correctly, none of the other
    report = assess("", logits, labels, np.zeros((80, 3)), np.zeros((0, 3)))
    first_temperature = fit_temperature(logits[first], labels[first])
    second_temperature = fit_temperature(logits[~first], labels[~first])
    np.testing.assert_array_equal(report.temperatures, np.where(first, second_temperature, first_temperature))
    assert max(b.confidence for b in report.after if b.correct) < 0.6  # the temperature is that of the incorrect half
    assert report.num_scored == 0
    assert report.calibration.ood_score(np.zeros((2, 3))) is None
