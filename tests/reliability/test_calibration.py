"""Tests temperature scaling against a search over all temperatures, and the calibration error against hand sums."""

import numpy as np
import pytest

from flaxresnet.reliability.calibration import TEMPERATURES, calibration_error, fit_temperature, reliability, softmax


def sample_labels(temperature: float, count: int = 4000, classes: int = 5):
    """Returns random logits, and labels drawn from their softmax at this temperature."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (count, classes))
    cumulative = softmax(logits, temperature).astype(np.float64).cumsum(axis=1)
    labels = (rng.random((count, 1)) > cumulative / cumulative[:, -1:]).sum(axis=1)
    return logits, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_fit_temperature_recovers_sampling_temperature(temperature):
    logits, labels = sample_labels(temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.08)


def test_fit_temperature_minimizes_smoothed_loss():
    logits, labels = sample_labels(1.7, count=60)
    targets = np.full(logits.shape, 1 / 62 / 4)
    targets[np.arange(60), labels] = 61 / 62

    def loss(temperature):
        scaled = logits / temperature
        return -(targets * (scaled - np.log(np.exp(scaled).sum(1, keepdims=True)))).sum()

    assert loss(fit_temperature(logits, labels)) <= min(map(loss, np.geomspace(*TEMPERATURES, 2000))) + 1e-9


def test_fit_temperature_bounds_confidence_without_errors():
    labels = np.arange(12) % 3
    logits = 4.0 * np.eye(3)[labels]
    confidence = softmax(logits, fit_temperature(logits, labels)).max()
    assert confidence == pytest.approx(13 / 14, abs=1e-4)


def test_fit_temperature_without_images_is_1():
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, int)) == 1.0


def test_softmax_of_large_logits_is_finite():
    rows = softmax(np.array([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0]], np.float32))
    np.testing.assert_allclose(rows, [[1, 0, 0], [1 / 3] * 3], atol=1e-7)


def test_calibration_error_matches_hand_sum():
    probabilities = np.array([[0.95, 0.05], [0.92, 0.08], [0.35, 0.65], [0.3, 0.7], [1.0, 0.0]])
    bins = reliability(probabilities, np.array([0, 1, 1, 1, 0]))
    assert [(b.count, b.correct) for b in bins] == [*[(0, 0)] * 6, (2, 2), (0, 0), (0, 0), (3, 2)]
    assert bins[6].confidence == pytest.approx(0.675)
    assert (bins[6].low, bins[6].high) == (0.6, 0.7)
    # |2 - 1.35| and |2 - 2.87|, of five images.
    assert calibration_error(bins) == pytest.approx((0.65 + 0.87) / 5)
    assert calibration_error(reliability(np.zeros((0, 2)), np.zeros(0, int))) == 0
