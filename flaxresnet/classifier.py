"""A saved run that answers: `Classifier`."""

from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from flaxresnet.augment.geometric import sample_bilinear
from flaxresnet.config.train_config import CheckpointChoice
from flaxresnet.data.lazy_images import LazyImages
from flaxresnet.data.preprocess import Preprocessing
from flaxresnet.models.bn_folding import fold_batch_norm
from flaxresnet.models.resnet import ResNet
from flaxresnet.reliability.calibration import softmax
from flaxresnet.reliability.calibration_file import Trust, digest
from flaxresnet.runs.checkpoint_manager import load_run
from flaxresnet.runtime.devices import warn_of_fallback
from flaxresnet.runtime.errors import UserError

BATCH = 32  # images a pass; fewer are padded, so that two programs (1 and 32) serve every number of images
ZOOMS = (1.0, 0.9, 1.1)  # of the views that are averaged: as it is, nearer, farther


@dataclass(frozen=True)
class Prediction:
    """What the network says of one photo.

    Attributes:
      label: name of the most probable class.
      probability: its probability, in [0, 1].
      probabilities: of every class, by name, in the order of the classes.
      strangeness: how unlike the training images the photo is, from 0; None where the run does not know.
      strange: whether that is more than is usual for photos like them; None where the run does not know.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    strangeness: float | None = None
    strange: bool | None = None


@dataclass(frozen=True)
class Answers:
    """What the network says of some photos.

    Attributes:
      probabilities: (n, classes), float32, each row summing to 1.
      strangeness: (n,), float32; see `reliability/ood.py`. None where the run has nothing to compare with.
      strange: (n,), bool: above the run's threshold; None likewise, and where the run has none.
    """

    probabilities: np.ndarray
    strangeness: np.ndarray | None
    strange: np.ndarray | None


class Classifier:
    """A trained network with all that it needs to classify photos.

    Attributes:
      class_names: one a class, in the order of the logits.
      preprocessing: from a photo to the network's input.
      trust: what the run knows of its own answers; None where it has not been calibrated.
      mirrors: whether an image and its mirror image are of one class, as training had it.
    """

    def __init__(
        self,
        model: ResNet,
        variables: Any,
        class_names: tuple[str, ...],
        preprocessing: Preprocessing,
        trust: Trust | None = None,
        uses_hflip: bool = False,
    ) -> None:
        self.model = model
        self.variables = variables
        self.class_names = class_names
        self.preprocessing = preprocessing
        self.trust = trust
        self.uses_hflip = uses_hflip
        folded, self._folded = fold_batch_norm(model, variables)

        def seen(variables: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
            features = folded.apply(variables, images, features=True)
            return features["logits"], features["embedding"]

        def view(variables: Any, images: jax.Array, matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
            maps = jnp.broadcast_to(matrix, (len(images), 2, 2))
            viewed = sample_bilinear(images.astype(jnp.float32) / 255, maps, jnp.zeros((len(images), 2)))
            return seen(variables, preprocessing.normalized(viewed))

        self._apply = jax.jit(lambda v, images: seen(v, preprocessing.scaled(images)))
        self._view = jax.jit(view)

    @classmethod
    def load(cls, run: str | Path, checkpoint: CheckpointChoice = "latest", calibrated: bool = True) -> Self:
        """Loads a run's latest checkpoint, or the one that was best on the test images.

        Args:
          run: its folder.
          checkpoint: "latest" or "best".
          calibrated: take what the run knows of its own answers, if it does.

        Raises:
          UserError: the folder holds no run, no finished checkpoint, or something damaged.
        """
        warn_of_fallback()
        info, variables = load_run(run, checkpoint)
        trust = Trust.read(run, digest(variables["params"])) if calibrated else None
        return cls(info.model(), variables, info.class_names, info.preprocessing, trust, info.config.uses_hflip)

    @property
    def tells_strange(self) -> bool:
        """Whether it can tell which photos are unlike the training images."""
        return self.trust is not None and self.trust.tells_strange

    @property
    def temperature(self) -> float:
        """Of the softmax that makes probabilities of logits."""
        return self.trust.temperature if self.trust else 1.0

    def logits(self, images: np.ndarray | LazyImages) -> np.ndarray:
        """(n, height, width, 3) uint8, in the network's size → (n, classes) float32.

        Raises UserError for another shape or dtype.
        """
        return self.see(images)[0]

    def see(self, images: np.ndarray | LazyImages, views: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Logits and embeddings.

        Args:
          images: (n, height, width, 3) uint8, in the network's size.
          views: average the logits over views of each image: as it is, 10% nearer and farther, and their mirror images
            where training had such. Embeddings are of the image as it is.

        Returns:
          (n, classes) and (n, features), float32.

        Raises:
          UserError: images of another shape or dtype.
        """
        expected = (self.preprocessing.height, self.preprocessing.width, 3)
        if images.ndim != 4 or images.shape[1:] != expected or images.dtype != np.uint8:
            raise UserError(
                f"images are {images.shape} {images.dtype}; this network takes (n, {expected[0]}, {expected[1]}, 3) "
                "uint8; `preprocessing.load` brings a photo to that size"
            )
        batch = 1 if len(images) == 1 else BATCH
        chunks = [images[i : i + batch] for i in range(0, max(len(images), 1), batch)]
        looked = [self._look(padded(chunk, batch), views) for chunk in chunks]
        logits, embeddings = (np.concatenate(parts)[: len(images)] for parts in zip(*looked, strict=True))
        return logits, embeddings

    def _look(self, images: np.ndarray, views: bool) -> tuple[np.ndarray, np.ndarray]:
        logits, embeddings = map(np.asarray, self._apply(self._folded, images))
        if views:
            others = [self._view(self._folded, images, matrix)[0] for matrix in self._matrices()]
            logits = np.mean([logits, *map(np.asarray, others)], axis=0)
        return logits, embeddings

    def _matrices(self) -> list[np.ndarray]:
        """Of the views besides the image as it is; see `sample_bilinear`."""
        sides = (1, -1) if self.uses_hflip else (1,)
        return [np.diag([zoom, side * zoom]).astype(np.float32) for zoom in ZOOMS for side in sides][1:]

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """(n, height, width, 3) uint8 → (n, classes) float32, each row summing to 1. Raises as `logits` does.

        They are softmax(logits / T), with T the run's `temperature`.
        """
        return self.answers(images).probabilities

    def answers(self, images: np.ndarray, views: bool = False) -> Answers:
        """All that the network says of (n, height, width, 3) uint8 images. Arguments and errors are those of `see`."""
        logits, embeddings = self.see(images, views)
        trust = self.trust
        scores = trust.strangeness(embeddings) if trust else None
        strange = scores > trust.threshold if trust and trust.tells_strange and scores is not None else None
        return Answers(softmax(logits, self.temperature), scores, strange)

    def predict(self, photo: str | Path | IO[bytes] | np.ndarray) -> Prediction:
        """Classifies one photo: a path, an open file, or a (height, width, 3) uint8 array of any size.

        Args:
          photo: what to classify.

        Raises:
          UserError: the photo cannot be read.
        """
        answers = self.answers(self.preprocessing.load(photo)[None])
        row = answers.probabilities[0]
        best = int(row.argmax())
        return Prediction(
            label=self.class_names[best],
            probability=float(row[best]),
            probabilities=dict(zip(self.class_names, row.tolist(), strict=True)),
            strangeness=None if answers.strangeness is None else float(answers.strangeness[0]),
            strange=None if answers.strange is None else bool(answers.strange[0]),
        )


def padded(images: np.ndarray, count: int) -> np.ndarray:
    """The images with black ones behind them: `count` in all, so that one program serves any number up to it."""
    return np.concatenate([images, np.zeros((count - len(images), *images.shape[1:]), images.dtype)])
