"""Distances to training images by hand, and thresholds that keep their promise."""

import numpy as np
import pytest

from flaxresnet.reliability.ood import K, conformal_threshold, knn_distance, normalized_features


def test_the_distance_is_that_to_the_fifth_nearest():
    angles = np.deg2rad([0, 10, 20, 30, 40, 50, 180])
    references = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    got = knn_distance(np.array([[7.0, 0.0], [0.0, 0.1]]), references)
    # From 0° the fifth nearest is at 40°; from 90° they are at 50, 40, 30, 20 and 10°.
    np.testing.assert_allclose(got, 1 - np.cos(np.deg2rad([40, 80])), rtol=1e-5)
    assert K == 5


def test_with_fewer_references_the_farthest_counts():
    assert knn_distance(np.array([[1.0, 0.0]]), np.array([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(2.0)


def test_an_empty_embedding_is_no_division_by_zero():
    np.testing.assert_array_equal(normalized_features(np.zeros((1, 3))), np.zeros((1, 3)))


def test_new_photos_like_the_old_ones_pass_the_threshold_as_seldom_as_promised():
    rng = np.random.default_rng(0)
    alarms = [rng.normal() > conformal_threshold(rng.normal(size=50), 0.1) for _ in range(4000)]
    assert np.mean(alarms) == pytest.approx(0.1, abs=0.02)


def test_too_few_scores_tell_nothing():
    assert conformal_threshold(np.arange(18.0)) == np.inf
    assert conformal_threshold(np.arange(19.0)) == 18
