"""The confusion matrix."""

import numpy as np


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts pairs of true and predicted class.

    Args:
      labels: (n,) int, true classes.
      predicted: (n,) int, predicted classes.
      classes: number of classes.

    Returns:
      (classes, classes) int; row = true class, column = predicted class.
    """
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)
