"""A saved run that answers: `Classifier`."""

from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import jax
import numpy as np

from flaxresnet.config import Which
from flaxresnet.data.preprocess import Preprocessing
from flaxresnet.errors import UserError
from flaxresnet.models.fold import fold_batch_norm
from flaxresnet.models.resnet import ResNet
from flaxresnet.training.checkpoint import load_run

BATCH = 32  # images a pass; fewer are padded, so that two programs (1 and 32) serve every number of images


@dataclass(frozen=True)
class Prediction:
    """What the network says of one photo.

    Attributes:
      label: name of the most probable class.
      probability: its probability, in [0, 1].
      probabilities: of every class, by name, in the order of the classes.
    """

    label: str
    probability: float
    probabilities: dict[str, float]


class Classifier:
    """A trained network with all that it needs to classify photos.

    Attributes:
      class_names: one a class, in the order of the logits.
      preprocessing: from a photo to the network's input.
    """

    def __init__(
        self, model: ResNet, variables: Any, class_names: tuple[str, ...], preprocessing: Preprocessing
    ) -> None:
        self.model = model
        self.variables = variables
        self.class_names = class_names
        self.preprocessing = preprocessing
        folded, self._folded = fold_batch_norm(model, variables)
        self._apply = jax.jit(lambda v, images: folded.apply(v, preprocessing.scaled(images), train=False))

    @classmethod
    def load(cls, run: str | Path, checkpoint: Which = "latest") -> Self:
        """Loads a run's latest checkpoint, or the one that was best on the test images.

        Raises:
          UserError: the folder holds no run, no finished checkpoint, or a damaged one.
        """
        info, variables = load_run(run, checkpoint)
        return cls(info.model(), variables, info.class_names, info.preprocessing)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """(n, height, width, 3) uint8, in the network's size → (n, classes) float32.

        Raises UserError for another shape or dtype.
        """
        expected = (self.preprocessing.height, self.preprocessing.width, 3)
        if images.ndim != 4 or images.shape[1:] != expected or images.dtype != np.uint8:
            raise UserError(
                f"images are {images.shape} {images.dtype}; this network takes (n, {expected[0]}, {expected[1]}, 3) "
                "uint8; `preprocessing.load` brings a photo to that size"
            )
        batch = 1 if len(images) == 1 else BATCH
        chunks = [images[i : i + batch] for i in range(0, len(images), batch)]
        outputs = [np.asarray(self._apply(self._folded, padded(chunk, batch)))[: len(chunk)] for chunk in chunks]
        return np.concatenate(outputs) if outputs else np.zeros((0, len(self.class_names)), np.float32)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """(n, height, width, 3) uint8 → (n, classes) float32, each row summing to 1. Raises as `logits` does."""
        return np.asarray(jax.nn.softmax(self.logits(images), axis=-1))

    def predict(self, photo: str | Path | IO[bytes] | np.ndarray) -> Prediction:
        """Classifies one photo: a path, an open file, or a (height, width, 3) uint8 array of any size.

        Raises:
          UserError: the photo cannot be read.
        """
        row = self.probabilities(self.preprocessing.load(photo)[None])[0]
        best = int(row.argmax())
        probabilities = dict(zip(self.class_names, row.tolist(), strict=True))
        return Prediction(self.class_names[best], probabilities[self.class_names[best]], probabilities)


def padded(images: np.ndarray, count: int) -> np.ndarray:
    """The images with black ones behind them: `count` in all, so that one program serves any number up to it."""
    return np.concatenate([images, np.zeros((count - len(images), *images.shape[1:]), images.dtype)])
