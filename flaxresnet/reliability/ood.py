"""Out-of-distribution (OOD) detection by the distance of a photo's embedding from those of training images.

The score is the distance to the k-th nearest normalized embedding: Sun et al. 2022, "Out-of-Distribution Detection
with Deep Nearest Neighbors", arXiv:2204.06507.
"""

import numpy as np

K = 5  # rank of the neighbor whose distance is the score; with K = 1, one atypical training image could decide
REFERENCES = 1024  # training images whose embeddings are stored
TARGET_FPR = 0.05  # target false-positive rate: fraction of in-distribution photos that are flagged


def normalized_features(embeddings: np.ndarray) -> np.ndarray:
    """Returns embeddings (n, features) scaled to length 1, float32; a zero vector stays zero."""
    length = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return (embeddings / np.maximum(length, 1e-12)).astype(np.float32)


def knn_distance(embeddings: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Computes the OOD score: the cosine distance to the `K`-th nearest reference.

    Args:
      embeddings: (n, features), the `"embedding"` that `ResNet` returns.
      references: (m, features), normalized embeddings of training images, m at least 1.

    Returns:
      (n,) float32 in [0, 2]; with fewer than `K` references, the distance to the farthest.
    """
    distances = 1 - normalized_features(embeddings) @ references.astype(np.float32).T
    nearest = min(K, len(references)) - 1
    return np.partition(distances, nearest, axis=1)[:, nearest]


def conformal_threshold(scores: np.ndarray, target_fpr: float = TARGET_FPR) -> float:
    """Returns the OOD score that at most a fraction `target_fpr` of in-distribution photos is expected to exceed.

    The threshold is the ⌈(n + 1)(1 - target_fpr)⌉-th smallest score (conformal prediction: Vovk et al. 2005). The
    expectation is over draws of the n images and further photos from the same distribution.

    Args:
      scores: (n,), OOD scores of in-distribution images that the network was not trained on.
      target_fpr: target false-positive rate.

    Returns:
      The threshold; infinity if there are too few scores.
    """
    rank = int(np.ceil((len(scores) + 1) * (1 - target_fpr)))
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else float("inf")
