"""Tests OOD scores against hand-computed distances, and the false-positive rate of thresholds."""

import numpy as np
import pytest

from flaxresnet.reliability.ood import K, conformal_threshold, knn_distance, normalized_features


def test_knn_distance_uses_fifth_nearest():
    angles = np.deg2rad([0, 10, 20, 30, 40, 50, 180])
    references = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    distances = knn_distance(np.array([[7.0, 0.0], [0.0, 0.1]]), references)
    # From 0° the fifth nearest is at 40°; from 90° the nearest are at 50, 40, 30, 20 and 10°.
    np.testing.assert_allclose(distances, 1 - np.cos(np.deg2rad([40, 80])), rtol=1e-5)
    assert K == 5


def test_knn_distance_with_few_references_uses_farthest():
    assert knn_distance(np.array([[1.0, 0.0]]), np.array([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(2.0)


def test_zero_embedding_stays_zero():
    np.testing.assert_array_equal(normalized_features(np.zeros((1, 3))), np.zeros((1, 3)))


def test_conformal_threshold_has_target_fpr():
    rng = np.random.default_rng(0)
    false_alarms = [rng.normal() > conformal_threshold(rng.normal(size=50), 0.1) for _ in range(4000)]
    assert np.mean(false_alarms) == pytest.approx(0.1, abs=0.02)


def test_conformal_threshold_needs_19_scores():
    assert conformal_threshold(np.arange(18.0)) == np.inf
    assert conformal_threshold(np.arange(19.0)) == 18
