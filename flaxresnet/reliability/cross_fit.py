"""What labelled images that a network was not trained on say of its trustworthiness, each judged by the others."""

from dataclasses import dataclass

import numpy as np

from flaxresnet.reliability.calibration import Bin, fit_temperature, reliability, softmax
from flaxresnet.reliability.calibration_file import Trust
from flaxresnet.reliability.ood import normalised, strangeness, threshold_for


@dataclass(frozen=True)
class Assessment:
    """How far a network's answers can be trusted, and what is kept to say so of a photo.

    Figures "after" are cross-fitted: half of each class's images has been judged by what the other half gave, so that
    they hold for other images.

    Attributes:
      trust: what is kept, from all images.
      temperatures: (n,), for each image that which the half without it gave.
      before, after: confidence and accuracy with the softmax of the logits, and with that of logits / temperatures.
      false_alarms: images that were called strange, of those for which that could be told.
      told: how many those are.
    """

    trust: Trust
    temperatures: np.ndarray
    before: list[Bin]
    after: list[Bin]
    false_alarms: int
    told: int


def assess(
    weights: str, logits: np.ndarray, labels: np.ndarray, embeddings: np.ndarray, references: np.ndarray
) -> Assessment:
    """Judges a network by images that it was not trained on.

    Args:
      weights: the parameters' `digest`.
      logits: (n, classes), of these images.
      labels: (n,) int.
      embeddings: (n, features), of these images.
      references: (m, features), of training images; m may be 0.
    """
    kept = normalised(references).astype(np.float16)
    scores = strangeness(embeddings, kept) if len(kept) else np.zeros(len(labels), np.float32)
    trust = Trust(weights, fit_temperature(logits, labels), kept, threshold_for(scores))

    temperatures, strange, told = np.ones(len(labels)), 0, 0
    first = first_halves(labels)
    for half in (first, ~first):
        temperatures[half] = fit_temperature(logits[~half], labels[~half])
        threshold = threshold_for(scores[~half])
        if len(kept) and np.isfinite(threshold):
            strange += int((scores[half] > threshold).sum())
            told += int(half.sum())
    before, after = (reliability(softmax(logits, by), labels) for by in (1.0, temperatures))
    return Assessment(trust, temperatures, before, after, strange, told)


def first_halves(labels: np.ndarray) -> np.ndarray:
    """(n,) labels → (n,) bool: the first half of each class's images; neighbours, often alike, stay together."""
    first = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        first[places[: (len(places) + int(label) % 2) // 2]] = True  # an odd one goes to either half in turn
    return first
