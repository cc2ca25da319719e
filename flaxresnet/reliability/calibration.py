"""Temperature scaling, and the expected calibration error: how far confidence and accuracy differ.

Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599.
"""

from dataclasses import dataclass

import numpy as np

TEMPERATURES = (0.05, 20.0)  # within which one is looked for
BINS = 10  # of confidence, each as wide as the others


def softmax(logits: np.ndarray, temperature: float | np.ndarray = 1.0) -> np.ndarray:
    """(n, classes) logits → (n, classes) probabilities, float32: softmax(logits / temperature), or (n,) of these."""
    scaled = logits.astype(np.float64) / np.reshape(temperature, (-1, 1))
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature under which the labels are likeliest, for images that the network was not trained on.

    The target of an image's class is (n + 1) / (n + 2), as in Platt 1999, and the others share the rest: without that,
    a network that errs nowhere among few images would be given endless confidence.

    Args:
      logits: (n, classes).
      labels: (n,) int.

    Returns:
      A number in `TEMPERATURES`; 1 where there is no image.
    """
    count, classes = logits.shape
    if not count:
        return 1.0
    rest = 1 / (count + 2) / (classes - 1)
    targets = np.full(logits.shape, rest)
    targets[np.arange(count), labels] = (count + 1) / (count + 2)
    aim = (targets * logits).sum(axis=1).mean()
    # The loss is convex in 1 / T; its slope, mean of E[logit] under softmax(logits / T) less `aim`, rises with 1 / T.
    low, high = (1 / bound for bound in reversed(TEMPERATURES))
    for _ in range(60):
        middle = np.sqrt(low * high)
        slope = (softmax(logits, 1 / middle) * logits).sum(axis=1).mean() - aim
        low, high = (middle, high) if slope < 0 else (low, middle)
    return float(1 / np.sqrt(low * high))


@dataclass(frozen=True)
class Bin:
    """Images whose highest probability lies in an interval.

    Attributes:
      low, high: the interval; above `low`, up to `high`.
      count: images.
      correct: those of them that were answered rightly.
      confidence: mean of their highest probabilities; nan where there is none.
    """

    low: float
    high: float
    count: int
    correct: int
    confidence: float


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> list[Bin]:
    """Images by confidence, in `BINS` bins: (n, classes) probabilities and (n,) int labels."""
    confidence = probabilities.max(axis=1)
    hits = probabilities.argmax(axis=1) == labels
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    bins = []
    for index in range(BINS):
        inside = place == index
        mean = float(confidence[inside].mean()) if inside.any() else float("nan")
        bins.append(Bin(index / BINS, (index + 1) / BINS, int(inside.sum()), int(hits[inside].sum()), mean))
    return bins


def calibration_error(bins: list[Bin]) -> float:
    """Expected calibration error: how far confidence and accuracy differ, over bins, weighed by their images."""
    total = sum(b.count for b in bins)
    return sum(abs(b.correct - b.confidence * b.count) for b in bins if b.count) / max(total, 1)
