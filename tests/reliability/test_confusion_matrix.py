"""The confusion matrix against counts."""

import numpy as np
import pytest

from flaxresnet.reliability.confusion_matrix import confusion_matrix


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_confusion_matrix_counts_pairs_of_true_and_predicted_class(dtype):
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 4, 200).astype(dtype), rng.integers(0, 4, 200).astype(dtype)
    expected = np.zeros((5, 5), int)
    for true, guess in zip(labels, predicted, strict=True):
        expected[true, guess] += 1
    np.testing.assert_array_equal(confusion_matrix(labels, predicted, 5), expected)


def test_confusion_matrix_has_true_classes_in_rows():
    matrix = confusion_matrix(np.array([0, 0, 2]), np.array([1, 1, 0]), 3)
    np.testing.assert_array_equal(matrix, [[0, 2, 0], [0, 0, 0], [1, 0, 0]])
