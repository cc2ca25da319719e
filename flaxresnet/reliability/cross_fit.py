"""Cross-fitted calibration and OOD metrics: each half of the test images is evaluated with values fitted on the other.

The network must not have been trained on these images.
"""

from dataclasses import dataclass

import numpy as np

from flaxresnet.reliability.calibration import Bin, fit_temperature, reliability, softmax
from flaxresnet.reliability.calibration_file import Calibration
from flaxresnet.reliability.ood import conformal_threshold, knn_distance, normalized_features


@dataclass(frozen=True)
class CalibrationReport:
    """Calibration and OOD metrics of a network, and the calibration to store.

    The metrics `after` and `false_alarms` are cross-fitted, so they hold for further images.

    Attributes:
      calibration: the calibration to store in the run's folder, fitted on all images.
      temperatures: (n,), the temperature for each image, fitted on the other half.
      before: reliability bins of softmax(logits).
      after: reliability bins of softmax(logits / temperatures).
      false_alarms: number of images among `num_scored` that are flagged as out-of-distribution.
      num_scored: number of images for which a threshold could be computed.
    """

    calibration: Calibration
    temperatures: np.ndarray
    before: list[Bin]
    after: list[Bin]
    false_alarms: int
    num_scored: int


def assess(
    weights: str, logits: np.ndarray, labels: np.ndarray, embeddings: np.ndarray, references: np.ndarray
) -> CalibrationReport:
    """Evaluates calibration and OOD detection on images that the network was not trained on.

    Args:
      weights: `digest` of the parameters.
      logits: (n, classes), logits of these images.
      labels: (n,) int.
      embeddings: (n, features), embeddings of these images.
      references: (m, features), embeddings of training images; m may be 0.
    """
    references = normalized_features(references).astype(np.float16)
    scores = knn_distance(embeddings, references) if len(references) else np.zeros(len(labels), np.float32)
    calibration = Calibration(weights, fit_temperature(logits, labels), references, conformal_threshold(scores))

    temperatures = np.ones(len(labels))
    false_alarms = 0
    num_scored = 0
    first = split_halves(labels)
    for half in (first, ~first):
        temperatures[half] = fit_temperature(logits[~half], labels[~half])
        threshold = conformal_threshold(scores[~half])
        if len(references) and np.isfinite(threshold):
            false_alarms += int((scores[half] > threshold).sum())
            num_scored += int(half.sum())
    before = reliability(softmax(logits), labels)
    after = reliability(softmax(logits, temperatures), labels)
    return CalibrationReport(calibration, temperatures, before, after, false_alarms, num_scored)


def split_halves(labels: np.ndarray) -> np.ndarray:
    """Splits images into two halves of each class.

    Consecutive images stay in one half, because they are often near-duplicates.

    Args:
      labels: (n,) int.

    Returns:
      (n,) bool, True in the first half.
    """
    first = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        indices = np.flatnonzero(labels == label)
        count = (len(indices) + int(label) % 2) // 2  # odd labels put the extra image of an odd number first
        first[indices[:count]] = True
    return first
