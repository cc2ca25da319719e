"""An assessment judges each half of the images by the other."""

import numpy as np

from flaxresnet.reliability.calibration import calibration_error, fit_temperature
from flaxresnet.reliability.cross_fit import assess, split_halves


def test_halves_split_every_class_and_keep_neighbours_together():
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 2])
    np.testing.assert_array_equal(np.flatnonzero(split_halves(labels)), [0, 1, 4, 5])


def test_overconfidence_is_found_and_mended_for_images_that_were_not_used_for_it():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 3000)
    logits = 8 * np.eye(4)[np.where(rng.random(3000) < 0.8, labels, rng.integers(0, 4, 3000))]
    found = assess("abc", logits, labels, rng.normal(size=(3000, 8)), rng.normal(size=(200, 8)))
    assert calibration_error(found.before) > 0.13
    assert calibration_error(found.after) < 0.02
    assert found.calibration.weights == "abc"
    assert found.num_scored == 3000
    assert 0.03 < found.false_alarms / found.num_scored < 0.07


def test_the_halves_do_not_judge_themselves():
    labels = np.array([0, 0, 1, 1] * 20)
    first = split_halves(labels)
    logits = 4.0 * np.eye(2)[labels]
    logits[~first] = -logits[~first]  # one half is always right, the other always wrong
    found = assess("", logits, labels, np.zeros((80, 3)), np.zeros((0, 3)))
    remap_labels = {
        half: fit_temperature(logits[where], labels[where]) for half, where in (("1", first), ("2", ~first))
    }
    np.testing.assert_array_equal(found.temperatures, np.where(first, remap_labels["2"], remap_labels["1"]))
    rights = [b for b in found.after if b.correct]
    assert max(b.confidence for b in rights) < 0.6  # judged by the half that errs, it is not sure
    assert found.num_scored == 0
    assert found.calibration.ood_score(np.zeros((2, 3))) is None
