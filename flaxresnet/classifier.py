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
from flaxresnet.reliability.calibration_file import Calibration, digest
from flaxresnet.runs.checkpoint_manager import load_run
from flaxresnet.runtime.devices import warn_of_fallback
from flaxresnet.runtime.errors import UserError

BATCH = 32  # images a pass; fewer are padded, so that two programs (1 and 32) serve every number of images
TTA_ZOOMS = (1.0, 0.9, 1.1)  # of the views that are averaged: as it is, nearer, farther


@dataclass(frozen=True)
class Prediction:
    """What the network says of one photo.

    Attributes:
      label: name of the most probable class.
      probability: its probability, in [0, 1].
      probabilities: of every class, by name, in the order of the classes.
      ood_score: distance from the training images, from 0; None if the run is not calibrated.
      is_ood: whether the score is above the run's OOD threshold; None if the run has none.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    ood_score: float | None = None
    is_ood: bool | None = None


@dataclass(frozen=True)
class BatchPrediction:
    """What the network says of some photos.

    Attributes:
      probabilities: (n, classes), float32, each row summing to 1.
      ood_score: (n,), float32; see `reliability/ood.py`. None if the run is not calibrated.
      is_ood: (n,), bool: whether the score is above the run's OOD threshold. None if the run has none.
    """

    probabilities: np.ndarray
    ood_score: np.ndarray | None
    is_ood: np.ndarray | None


class Classifier:
    """A trained network with all that it needs to classify photos.

    Attributes:
      class_names: one a class, in the order of the logits.
      preprocessing: from a photo to the network's input.
      calibration: temperature, OOD threshold and reference embeddings; None if the run is not calibrated.
      mirrors: whether an image and its mirror image are of one class, as training had it.
    """

    def __init__(
        self,
        model: ResNet,
        variables: Any,
        class_names: tuple[str, ...],
        preprocessing: Preprocessing,
        calibration: Calibration | None = None,
        uses_hflip: bool = False,
    ) -> None:
        self.model = model
        self.variables = variables
        self.class_names = class_names
        self.preprocessing = preprocessing
        self.calibration = calibration
        self.uses_hflip = uses_hflip
        folded, self._folded = fold_batch_norm(model, variables)

        def seen(variables: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
            features = folded.apply(variables, images, features=True)
            return features["logits"], features["embedding"]

        def view(variables: Any, images: jax.Array, matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
            maps = jnp.broadcast_to(matrix, (len(images), 2, 2))
            viewed = sample_bilinear(images.astype(jnp.float32) / 255, maps, jnp.zeros((len(images), 2)))
            return seen(variables, preprocessing.normalize(viewed))

        self._apply = jax.jit(lambda v, images: seen(v, preprocessing.preprocess_uint8(images)))
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
        calibration = Calibration.read(run, digest(variables["params"])) if calibrated else None
        return cls(info.model(), variables, info.class_names, info.preprocessing, calibration, info.config.uses_hflip)

    @property
    def detects_ood(self) -> bool:
        """Whether it can tell which photos are unlike the training images."""
        return self.calibration is not None and self.calibration.detects_ood

    @property
    def temperature(self) -> float:
        """Of the softmax that makes probabilities of logits."""
        return self.calibration.temperature if self.calibration else 1.0

    def logits(self, images: np.ndarray | LazyImages) -> np.ndarray:
        """(n, height, width, 3) uint8, in the network's size → (n, classes) float32.

        Raises UserError for another shape or dtype.
        """
        return self.forward(images)[0]

    def forward(self, images: np.ndarray | LazyImages, tta: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Logits and embeddings.

        Args:
          images: (n, height, width, 3) uint8, in the network's size.
          tta: test-time augmentation: average the logits over each image, its zooms by 10% and their mirror images
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
        outputs = [self._forward(pad_batch(chunk, batch), tta) for chunk in chunks]
        logits, embeddings = (np.concatenate(parts)[: len(images)] for parts in zip(*outputs, strict=True))
        return logits, embeddings

    def _forward(self, images: np.ndarray, tta: bool) -> tuple[np.ndarray, np.ndarray]:
        logits, embeddings = map(np.asarray, self._apply(self._folded, images))
        if tta:
            others = [self._view(self._folded, images, matrix)[0] for matrix in self._tta_matrices()]
            logits = np.mean([logits, *map(np.asarray, others)], axis=0)
        return logits, embeddings

    def _tta_matrices(self) -> list[np.ndarray]:
        """Of the views besides the image as it is; see `sample_bilinear`."""
        sides = (1, -1) if self.uses_hflip else (1,)
        return [np.diag([zoom, side * zoom]).astype(np.float32) for zoom in TTA_ZOOMS for side in sides][1:]

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """(n, height, width, 3) uint8 → (n, classes) float32, each row summing to 1. Raises as `logits` does.

        They are softmax(logits / T), with T the run's `temperature`.
        """
        return self.predict_batch(images).probabilities

    def predict_batch(self, images: np.ndarray, tta: bool = False) -> BatchPrediction:
        """All that the network says of (n, height, width, 3) uint8 images. Arguments and errors are those of `see`."""
        logits, embeddings = self.forward(images, tta)
        calibration = self.calibration
        scores = calibration.ood_score(embeddings) if calibration else None
        is_ood = (
            scores > calibration.threshold if calibration and calibration.detects_ood and scores is not None else None
        )
        return BatchPrediction(softmax(logits, self.temperature), scores, is_ood)

    def predict(self, photo: str | Path | IO[bytes] | np.ndarray) -> Prediction:
        """Classifies one photo: a path, an open file, or a (height, width, 3) uint8 array of any size.

        Args:
          photo: what to classify.

        Raises:
          UserError: the photo cannot be read.
        """
        answers = self.predict_batch(self.preprocessing.load(photo)[None])
        row = answers.probabilities[0]
        best = int(row.argmax())
        return Prediction(
            label=self.class_names[best],
            probability=float(row[best]),
            probabilities=dict(zip(self.class_names, row.tolist(), strict=True)),
            ood_score=None if answers.ood_score is None else float(answers.ood_score[0]),
            is_ood=None if answers.is_ood is None else bool(answers.is_ood[0]),
        )


def pad_batch(images: np.ndarray, count: int) -> np.ndarray:
    """The images with black ones behind them: `count` in all, so that one program serves any number up to it."""
    return np.concatenate([images, np.zeros((count - len(images), *images.shape[1:]), images.dtype)])
