"""Accuracy and calibration under the corruptions of `corruptions.py`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flaxresnet.reliability.calibration import Bin, reliability, softmax
from flaxresnet.reliability.corruptions import iter_corruptions

STRENGTH = "middle"


class CorruptionResult(NamedTuple):
    """Result on images under one corruption.

    Attributes:
      corruption: name of the corruption; "none" for unchanged images.
      images: number of images.
      correct: number of images that are classified correctly.
    """

    corruption: str
    images: int
    correct: int

    @property
    def accuracy(self) -> float:
        """Returns the fraction of images that are classified correctly."""
        return self.correct / self.images


class Failure(NamedTuple):
    """The most confident error that a corruption causes.

    Attributes:
      corruption: name of the corruption.
      image: (height, width, 3) uint8, the corrupted photo.
      true: the true class.
      predicted: the predicted class.
      probability: probability of the predicted class, after temperature scaling.
    """

    corruption: str
    image: np.ndarray
    true: int
    predicted: int
    probability: float


@dataclass(frozen=True)
class Robustness:
    """Results on test images under several of `CORRUPTIONS` at the middle strength.

    Attributes:
      rows: one result for each corruption, in order of increasing accuracy.
      clean: the result on the unchanged images.
      before: reliability bins of softmax(logits), over all corrupted images.
      after: reliability bins of softmax(logits / temperatures), over all corrupted images.
      failures: at most one for each corruption, in order of decreasing probability. Images that are misclassified
        without a corruption do not count.
    """

    rows: list[CorruptionResult]
    clean: CorruptionResult
    before: list[Bin]
    after: list[Bin]
    failures: list[Failure]

    @property
    def mean(self) -> float:
        """Returns the mean accuracy over the corruptions."""
        return float(np.mean([row.accuracy for row in self.rows]))


def robustness(
    logits_of: Callable[[np.ndarray], np.ndarray],
    images: np.ndarray,
    labels: np.ndarray,
    temperatures: np.ndarray,
    without: tuple[str, ...] = (),
) -> Robustness:
    """Evaluates a network on corrupted test images.

    Args:
      logits_of: a function from photos (n, height, width, 3) uint8 to logits (n, classes).
      images: (n, height, width, 3), uint8; n at least 1.
      labels: (n,) int.
      temperatures: (n,), a temperature for each image that was fitted without that image.
      without: names of corruptions to skip; at least one corruption must remain.
    """
    clean_correct = logits_of(images).argmax(axis=1) == labels
    rows = []
    failures = []
    all_logits = []
    for name, _, photos in iter_corruptions(images, (STRENGTH,), without):
        logits = logits_of(photos)
        all_logits.append(logits)
        predicted = logits.argmax(axis=1)
        rows.append(CorruptionResult(name, len(labels), int((predicted == labels).sum())))
        errors = np.flatnonzero(clean_correct & (predicted != labels))
        if len(errors):
            confidence = softmax(logits[errors], temperatures[errors]).max(axis=1)
            index = errors[confidence.argmax()]
            true_class = int(labels[index])
            failures.append(Failure(name, photos[index], true_class, int(predicted[index]), float(confidence.max())))
    logits = np.concatenate(all_logits)
    repeated_labels = np.tile(labels, len(rows))
    return Robustness(
        rows=sorted(rows, key=lambda row: row.correct),
        clean=CorruptionResult("none", len(labels), int(clean_correct.sum())),
        before=reliability(softmax(logits), repeated_labels),
        after=reliability(softmax(logits, np.tile(temperatures, len(rows))), repeated_labels),
        failures=sorted(failures, key=lambda failure: -failure.probability),
    )
