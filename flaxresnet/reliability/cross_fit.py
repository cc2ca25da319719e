"""What labelled images that a network was not trained on say of its trustworthiness, each judged by the others."""

from dataclasses import dataclass

import numpy as np

from flaxresnet.reliability.calibration import Bin, fit_temperature, reliability, softmax
from flaxresnet.reliability.calibration_file import Calibration
from flaxresnet.reliability.ood import conformal_threshold, knn_distance, normalized_features


@dataclass(frozen=True)
class CalibrationReport:
    """How far a network's answers can be trusted, and what is kept to say so of a photo.

    Figures "after" are cross-fitted: half of each class's images has been judged by what the other half gave, so that
    they hold for other images.

    Attributes:
      calibration: fitted on all images, for the run's folder.
      temperatures: (n,), for each image that which the half without it gave.
      before, after: confidence and accuracy with the softmax of the logits, and with that of logits / temperatures.
      false_alarms: images flagged as out-of-distribution, of the `num_scored`.
      num_scored: images for which the threshold could be computed.
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
    """Judges a network by images that it was not trained on.

    Args:
      weights: the parameters' `digest`.
      logits: (n, classes), of these images.
      labels: (n,) int.
      embeddings: (n, features), of these images.
      references: (m, features), of training images; m may be 0.
    """
    kept = normalized_features(references).astype(np.float16)
    scores = knn_distance(embeddings, kept) if len(kept) else np.zeros(len(labels), np.float32)
    calibration = Calibration(weights, fit_temperature(logits, labels), kept, conformal_threshold(scores))

    temperatures, flagged, num_scored = np.ones(len(labels)), 0, 0
    first = split_halves(labels)
    for half in (first, ~first):
        temperatures[half] = fit_temperature(logits[~half], labels[~half])
        threshold = conformal_threshold(scores[~half])
        if len(kept) and np.isfinite(threshold):
            flagged += int((scores[half] > threshold).sum())
            num_scored += int(half.sum())
    before, after = (reliability(softmax(logits, by), labels) for by in (1.0, temperatures))
    return CalibrationReport(calibration, temperatures, before, after, flagged, num_scored)


def split_halves(labels: np.ndarray) -> np.ndarray:
    """(n,) labels → (n,) bool: the first half of each class's images; neighbours, often alike, stay together."""
    first = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        first[places[: (len(places) + int(label) % 2) // 2]] = True  # an odd one goes to either half in turn
    return first
