"""Out-of-distribution (OOD) detection: the distance of a photo's features from those of training images.

The score is the distance to the k-th nearest of normalized embeddings: Sun et al. 2022, "Out-of-Distribution Detection
with Deep Nearest Neighbors", arXiv:2204.06507.
"""

import numpy as np

K = 5  # the distance to which of the nearest counts; fewer let one odd training image speak for a photo
REFERENCES = 1024  # training images that are kept to compare with
TARGET_FPR = 0.05  # target false-positive rate: fraction of in-distribution photos that are flagged


def normalized_features(embeddings: np.ndarray) -> np.ndarray:
    """(n, features) → rows of length 1, float32."""
    length = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return (embeddings / np.maximum(length, 1e-12)).astype(np.float32)


def knn_distance(embeddings: np.ndarray, references: np.ndarray) -> np.ndarray:
    """How far each photo is from the training images.

    Args:
      embeddings: (n, features), the network's "embedding".
      references: (m, features), rows of length 1, m at least 1: those of training images.

    Returns:
      (n,) float32 in [0, 2]: 1 - the cosine of the angle to the `K`-th nearest, or the last where there are
      fewer.
    """
    distances = 1 - normalized_features(embeddings) @ references.astype(np.float32).T
    nearest = min(K, len(references)) - 1
    return np.partition(distances, nearest, axis=1)[:, nearest]


def conformal_threshold(scores: np.ndarray, false_alarms: float = TARGET_FPR) -> float:
    """The score above which no more than this share of unseen photos like the training's lie.

    It is the ⌈(n + 1)(1 - share)⌉-th smallest of n scores, with which that holds on average for a further photo
    (conformal prediction: Vovk et al. 2005); with too few scores to tell, infinity.
    """
    rank = int(np.ceil((len(scores) + 1) * (1 - false_alarms)))
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else float("inf")
