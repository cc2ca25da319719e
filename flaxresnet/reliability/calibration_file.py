"""What a run knows of its own answers, kept beside its weights: a temperature, and what its training looked like."""

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


@dataclass(frozen=True)
class Calibration:
    """How far a network's answers can be trusted; for these weights and no others.

    Attributes:
      weights: `digest` of the parameters.
      temperature: that makes probabilities of logits; see `calibration.py`.
      references: (m, features) float16, rows of length 1: embeddings of training images; m may be 0.
      threshold: of `ood_score`, above which a photo is called unlike those of training; infinite where too few test
        images were there to tell.
    """

    weights: str
    temperature: float
    references: np.ndarray
    threshold: float

    def ood_score(self, embeddings: np.ndarray) -> np.ndarray | None:
        """(n, features) → (n,) float32, see `ood.py`; None where there is nothing to compare with."""
        return knn_distance(embeddings, self.references) if len(self.references) else None

    @property
    def detects_ood(self) -> bool:
        """Whether photos can be called unlike the training images, or like them."""
        return len(self.references) > 0 and bool(np.isfinite(self.threshold))

    def write(self, run: str | Path) -> None:
        """Into the run's folder; raises UserError where that cannot be done."""
        about = {"weights": self.weights, "temperature": self.temperature, "threshold": self.threshold}
        with atomic_write(Path(run) / FILE) as temporary:
            temporary.write_bytes(save({"references": self.references}, {"trust": json.dumps(about)}))

    @classmethod
    def read(cls, run: str | Path, weights: str) -> Self | None:
        """What is stored of these weights; None where there is nothing, or only something of others.

        Raises UserError where the file is damaged.
        """
        path = Path(run) / FILE
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                about = json.loads(file.metadata()["trust"])
                made = cls(references=file.get_tensor("references"), **about)
            if made.references.ndim != 2 or not 0 < made.temperature < np.inf or np.isnan(made.threshold):
                raise ValueError("its numbers cannot be")
        except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
            raise UserError(f"{path} is damaged ({error}); `flaxresnet report {run}` writes it anew") from None
        return made if made.weights == weights else None


def digest(params: Any) -> str:
    """A fingerprint of parameters, {layer: …}, by their last layer, which every step of training changes."""
    (head,) = (layer for name, layer in params.items() if name.startswith("fc"))
    return hashlib.sha256(b"".join(np.asarray(head[name]).tobytes() for name in ("kernel", "bias"))).hexdigest()[:16]
