"""Temperature and calibration error, against a search over all temperatures and sums by hand."""

import numpy as np
import pytest

from flaxresnet.reliability.calibration import TEMPERATURES, calibration_error, fit_temperature, reliability, softmax


def drawn(temperature: float, count: int = 4000, classes: int = 5):
    """Logits whose softmax at this temperature is the truth that labels are drawn from."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (count, classes))
    chances = softmax(logits, temperature).astype(np.float64).cumsum(axis=1)
    labels = (rng.random((count, 1)) > chances / chances[:, -1:]).sum(axis=1)
    return logits, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_labels_were_drawn_with_is_found(temperature):
    logits, labels = drawn(temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.08)


def test_no_other_temperature_makes_the_smoothed_labels_likelier():
    logits, labels = drawn(1.7, count=60)
    targets = np.full(logits.shape, 1 / 62 / 4)
    targets[np.arange(60), labels] = 61 / 62

    def loss(temperature):
        shifted = logits / temperature
        return -(targets * (shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))).sum()

    found = fit_temperature(logits, labels)
    assert loss(found) <= min(loss(t) for t in np.geomspace(*TEMPERATURES, 2000)) + 1e-9


def test_a_network_that_never_errs_among_few_images_is_not_endlessly_sure():
    labels = np.arange(12) % 3
    logits = 4.0 * np.eye(3)[labels]
    sure = softmax(logits, fit_temperature(logits, labels)).max()
    assert sure == pytest.approx(13 / 14, abs=1e-4)


def test_without_images_the_temperature_is_one():
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, int)) == 1.0


def test_softmax_of_large_logits_is_finite_and_sums_to_one():
    rows = softmax(np.array([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0]], np.float32))
    np.testing.assert_allclose(rows, [[1, 0, 0], [1 / 3] * 3], atol=1e-7)


def test_bins_and_their_error_by_hand():
    probabilities = np.array([[0.95, 0.05], [0.92, 0.08], [0.35, 0.65], [0.3, 0.7], [1.0, 0.0]])
    bins = reliability(probabilities, np.array([0, 1, 1, 1, 0]))
    assert [(b.count, b.correct) for b in bins] == [*[(0, 0)] * 6, (2, 2), (0, 0), (0, 0), (3, 2)]
    assert bins[6].confidence == pytest.approx(0.675)
    assert (bins[6].low, bins[6].high) == (0.6, 0.7)
    # |2 - 1.35| and |2 - 2.87|, of five images.
    assert calibration_error(bins) == pytest.approx((0.65 + 0.87) / 5)
    assert calibration_error(reliability(np.zeros((0, 2)), np.zeros(0, int))) == 0
