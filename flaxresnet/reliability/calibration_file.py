"""A run's calibration file: temperature, reference embeddings and OOD threshold, stored beside the weights."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from flaxresnet.reliability.ood import knn_distance
from flaxresnet.runtime.atomic_io import atomic_write
from flaxresnet.runtime.errors import UserError

FILE = "calibration.safetensors"
METADATA_KEY = "trust"  # in the file's header


@dataclass(frozen=True)
class Calibration:
    """Calibration and OOD detection for one set of weights.

    Attributes:
      weights: `digest` of the parameters.
      temperature: divides the logits before the softmax; see `calibration.py`.
      references: (m, features) float16, normalized embeddings of training images; m may be 0.
      threshold: a photo is flagged as out-of-distribution if its `ood_score` exceeds this number. Infinite if there
        were too few test images to compute a threshold.
    """

    weights: str
    temperature: float
    references: np.ndarray
    threshold: float

    def ood_score(self, embeddings: np.ndarray) -> np.ndarray | None:
        """Returns the OOD scores (n,) float32 of embeddings (n, features), see `ood.py`; None without references."""
        return knn_distance(embeddings, self.references) if len(self.references) else None

    @property
    def detects_ood(self) -> bool:
        """Returns whether there are references and a finite threshold."""
        return len(self.references) > 0 and bool(np.isfinite(self.threshold))

    def write(self, run: str | Path) -> None:
        """Writes the file into a run's folder.

        Raises:
          UserError: the file cannot be written.
        """
        metadata = {"weights": self.weights, "temperature": self.temperature, "threshold": self.threshold}
        with atomic_write(Path(run) / FILE) as temporary:
            temporary.write_bytes(save({"references": self.references}, {METADATA_KEY: json.dumps(metadata)}))

    @classmethod
    def read(cls, run: str | Path, weights: str) -> Self | None:
        """Reads the file of a run's folder.

        Args:
          run: the folder.
          weights: `digest` of the parameters in use.

        Returns:
          The calibration; None if there is no file, or if it belongs to other weights.

        Raises:
          UserError: the file is damaged or cannot be read.
        """
        path = Path(run) / FILE
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = json.loads(file.metadata()[METADATA_KEY])
                result = cls(references=file.get_tensor("references"), **metadata)
            if result.references.ndim != 2 or not 0 < result.temperature < np.inf or np.isnan(result.threshold):
                raise ValueError("a value is out of range")
        except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
            message = f"{path} is damaged ({error}); write it again with `flaxresnet report {run}`"
            raise UserError(message) from None
        return result if result.weights == weights else None


def digest(params: Any) -> str:
    """Returns a fingerprint of parameters {layer: …}: a hash of the last layer, which changes in every step."""
    (head,) = (layer for name, layer in params.items() if name.startswith("fc"))
    content = np.asarray(head["kernel"]).tobytes() + np.asarray(head["bias"]).tobytes()
    return hashlib.sha256(content).hexdigest()[:16]
