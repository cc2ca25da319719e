"""How right, and how rightly sure, a network is on test images as other people would have taken them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flaxresnet.reliability.calibration import Bin, reliability, softmax
from flaxresnet.reliability.corruptions import iter_corruptions

STRENGTH = "middle"


class CorruptionResult(NamedTuple):
    """Of one kind of change: its name, images, and how many of them were answered rightly."""

    change: str
    images: int
    correct: int

    @property
    def share(self) -> float:
        """Accuracy."""
        return self.correct / self.images


class Failure(NamedTuple):
    """The surest mistake that one kind of change brings: the changed photo, true and predicted class, probability."""

    change: str
    image: np.ndarray
    true: int
    predicted: int
    sure: float


@dataclass(frozen=True)
class Robustness:
    """Answers to test images, each changed in the ways of `corruptions.SHIFTS` at the middle strength.

    Attributes:
      rows: a kind of change each, the worst first.
      clean: the same images as they are.
      before, after: confidence and accuracy on all changed images, with the softmax of the logits, and with that of
        logits / temperatures.
      failures: of each kind that has any among the images that are answered rightly as they are, the surest first.
    """

    rows: list[CorruptionResult]
    clean: CorruptionResult
    before: list[Bin]
    after: list[Bin]
    failures: list[Failure]

    @property
    def mean(self) -> float:
        """Mean accuracy over the kinds of change."""
        return float(np.mean([row.share for row in self.rows]))


def robustness(
    logits_of: Callable[[np.ndarray], np.ndarray],
    images: np.ndarray,
    labels: np.ndarray,
    temperatures: np.ndarray,
    without: tuple[str, ...] = (),
) -> Robustness:
    """Changes test images and looks at the answers.

    Args:
      logits_of: from photos (n, height, width, 3) uint8 to (n, classes).
      images: (n, height, width, 3), uint8; one at least.
      labels: (n,) int.
      temperatures: (n,), for each image that of its probabilities; fitted without it, they say what holds for others.
      without: kinds of change that are left out.
    """
    right = logits_of(images).argmax(axis=1) == labels
    rows, failures, everything = [], [], []
    for change, _, photos in iter_corruptions(images, (STRENGTH,), without):
        logits = logits_of(photos)
        everything.append(logits)
        predicted = logits.argmax(axis=1)
        rows.append(CorruptionResult(change, len(labels), int((predicted == labels).sum())))
        if len(broken := np.flatnonzero(right & (predicted != labels))):
            sure = softmax(logits[broken], temperatures[broken]).max(axis=1)
            worst = broken[sure.argmax()]
            failures.append(
                Failure(change, photos[worst], int(labels[worst]), int(predicted[worst]), float(sure.max()))
            )
    logits, truth = np.concatenate(everything), np.tile(labels, len(rows))
    return Robustness(
        rows=sorted(rows, key=lambda row: row.correct),
        clean=CorruptionResult("none", len(labels), int(right.sum())),
        before=reliability(softmax(logits), truth),
        after=reliability(softmax(logits, np.tile(temperatures, len(rows))), truth),
        failures=sorted(failures, key=lambda failure: -failure.sure),
    )
