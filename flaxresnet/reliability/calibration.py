"""Temperature scaling and the expected calibration error (ECE).

Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599.
"""

from dataclasses import dataclass

import numpy as np

TEMPERATURES = (0.05, 20.0)  # search range
BINS = 10  # of confidence, equally wide


def softmax(logits: np.ndarray, temperature: float | np.ndarray = 1.0) -> np.ndarray:
    """Returns softmax(logits / temperature).

    Args:
      logits: (n, classes).
      temperature: a positive number, or (n,) with one for each row.

    Returns:
      (n, classes), float32; each row sums to 1.
    """
    scaled = logits.astype(np.float64) / np.reshape(temperature, (-1, 1))
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Fits the temperature that maximizes the likelihood of held-out labels.

    Targets are smoothed as in Platt 1999: an image's class gets (n + 1) / (n + 2), and the other classes divide the
    rest equally. Without smoothing, a network that classifies a few images without an error would get the lowest
    temperature.

    Args:
      logits: (n, classes), of images that the network was not trained on.
      labels: (n,) int.

    Returns:
      A number in the range `TEMPERATURES`; 1 if n is 0.
    """
    count, classes = logits.shape
    if not count:
        return 1.0
    targets = np.full(logits.shape, 1 / (count + 2) / (classes - 1))
    targets[np.arange(count), labels] = (count + 1) / (count + 2)
    target_mean = (targets * logits).sum(axis=1).mean()
    # Bisection: the loss is convex in 1 / T. Its slope is the mean logit under the softmax minus `target_mean`.
    low = 1 / TEMPERATURES[1]
    high = 1 / TEMPERATURES[0]
    for _ in range(60):
        middle = np.sqrt(low * high)
        slope = (softmax(logits, 1 / middle) * logits).sum(axis=1).mean() - target_mean
        if slope < 0:
            low = middle
        else:
            high = middle
    return float(1 / np.sqrt(low * high))


@dataclass(frozen=True)
class Bin:
    """Images whose confidence, the highest probability, lies in an interval.

    Attributes:
      low: lower bound, excluded.
      high: upper bound, included.
      count: number of images.
      correct: number of images that are classified correctly.
      confidence: mean confidence; nan if the bin is empty.
    """

    low: float
    high: float
    count: int
    correct: int
    confidence: float


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> list[Bin]:
    """Returns the `BINS` bins of a reliability diagram.

    Args:
      probabilities: (n, classes).
      labels: (n,) int.
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    bin_index = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    bins = []
    for index in range(BINS):
        inside = bin_index == index
        mean = float(confidence[inside].mean()) if inside.any() else float("nan")
        bins.append(Bin(index / BINS, (index + 1) / BINS, int(inside.sum()), int(correct[inside].sum()), mean))
    return bins


def calibration_error(bins: list[Bin]) -> float:
    """Returns the expected calibration error: mean |accuracy - confidence| of the bins, weighted by their counts."""
    total = sum(b.count for b in bins)
    return sum(abs(b.correct - b.confidence * b.count) for b in bins if b.count) / max(total, 1)
