"""The confusion matrix."""

import numpy as np


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts the images of each pair of true and predicted class.

    Args:
      labels: (n,) int, true classes.
      predicted: (n,) int, predicted classes.
      classes: number of classes.

    Returns:
      (classes, classes) int; rows are true classes, columns are predicted classes.
    """
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)
