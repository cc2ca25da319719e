"""Tests the confusion matrix against counts."""

import numpy as np
import pytest

from flaxresnet.reliability.confusion_matrix import confusion_matrix


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_confusion_matrix_counts_pairs(dtype):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200).astype(dtype)
    predicted = rng.integers(0, 4, 200).astype(dtype)
    expected = np.zeros((5, 5), int)
    np.add.at(expected, (labels, predicted), 1)
    np.testing.assert_array_equal(confusion_matrix(labels, predicted, 5), expected)


def test_confusion_matrix_rows_are_true_classes():
    matrix = confusion_matrix(np.array([0, 0, 2]), np.array([1, 1, 0]), 3)
    np.testing.assert_array_equal(matrix, [[0, 2, 0], [0, 0, 0], [1, 0, 0]])
