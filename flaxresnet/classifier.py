"""`Classifier`: a trained network that classifies photos."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self, overload

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
from flaxresnet.runs.checkpoint_io import load_run
from flaxresnet.runtime.devices import warn_of_fallback
from flaxresnet.runtime.errors import UserError
from flaxresnet.runtime.x64 import x64_disabled
from flaxresnet.tta import view_matrices

if TYPE_CHECKING:
    import PIL.Image

    Photo = str | Path | bytes | IO[bytes] | PIL.Image.Image | np.ndarray

BATCH_SIZE = 32  # images per pass; padding to 1 or 32 images means that two compiled programs serve any number


@dataclass(frozen=True)
class Prediction:
    """The classification of one photo.

    Attributes:
      label: name of the most probable class.
      probability: its probability, in [0, 1].
      probabilities: probability of every class by name, in the order of the classes.
      ood_score: distance from the training images, 0 or more; None if the run has no reference embeddings.
      is_ood: whether the score is above the run's OOD threshold; None if the run has none.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    ood_score: float | None = None
    is_ood: bool | None = None


@dataclass(frozen=True)
class BatchPrediction:
    """The classification of n photos.

    Attributes:
      probabilities: (n, classes) float32; each row sums to 1.
      ood_score: (n,) float32; see `reliability/ood.py`. None if the run has no reference embeddings.
      is_ood: (n,) bool: whether the score is above the run's OOD threshold. None if the run has none.
    """

    probabilities: np.ndarray
    ood_score: np.ndarray | None
    is_ood: np.ndarray | None


class Classifier:
    """A trained network, with preprocessing and calibration.

    Batch norm is folded into the convolutions.

    Attributes:
      model: the module, before folding.
      variables: {"params", "batch_stats"} of the module.
      class_names: the name of each class, in the order of the logits.
      preprocessing: conversion of a photo to the network's input.
      calibration: temperature, OOD threshold and reference embeddings; None if the run is not calibrated.
      uses_hflip: whether training flipped images horizontally; test-time augmentation does the same.
    """

    @x64_disabled()
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
        folded, self._folded_variables = fold_batch_norm(model, variables)

        def forward(variables: Any, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
            features = folded.apply(variables, inputs, features=True)
            return features["logits"], features["embedding"]

        def forward_images(variables: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
            return forward(variables, preprocessing.preprocess_uint8(images))

        def forward_view(variables: Any, images: jax.Array, matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
            matrices = jnp.broadcast_to(matrix, (len(images), 2, 2))
            views = sample_bilinear(images.astype(jnp.float32) / 255, matrices, jnp.zeros((len(images), 2)))
            return forward(variables, preprocessing.normalize(views))

        self._forward_images = jax.jit(forward_images)
        self._forward_view = jax.jit(forward_view)

    @classmethod
    @x64_disabled()
    def load(cls, run: str | Path, checkpoint: CheckpointChoice = "latest", calibrated: bool = True) -> Self:
        """Loads a run.

        Args:
          run: the run's folder.
          checkpoint: "latest", or "best" for the epoch with the best test accuracy.
          calibrated: whether to load the run's calibration, if it has one.

        Raises:
          UserError: the folder contains no run, no complete checkpoint, or a corrupt file.
        """
        warn_of_fallback()
        info, variables = load_run(run, checkpoint)
        calibration = Calibration.read(run, digest(variables["params"])) if calibrated else None
        return cls(info.model(), variables, info.class_names, info.preprocessing, calibration, info.config.uses_hflip)

    @property
    def detects_ood(self) -> bool:
        """Returns whether the run has an OOD threshold."""
        return self.calibration is not None and self.calibration.detects_ood

    @property
    def temperature(self) -> float:
        """Returns the softmax temperature; 1 if the run is not calibrated."""
        return self.calibration.temperature if self.calibration else 1.0

    def logits(self, images: np.ndarray | LazyImages) -> np.ndarray:
        """Returns logits, (n, classes) float32. Takes the images of `forward` and raises its errors."""
        return self.forward(images)[0]

    @x64_disabled()
    def forward(self, images: np.ndarray | LazyImages, tta: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Returns logits and embeddings.

        Args:
          images: (n, height, width, 3) uint8, in the network's size.
          tta: test-time augmentation: average the logits over the image, two zooms of 10%, and the mirror images of
            these three if training flipped images. Embeddings are those of the image itself.

        Returns:
          Logits, (n, classes) float32, and embeddings, (n, features) float32.

        Raises:
          UserError: the images have another shape or dtype.
        """
        height = self.preprocessing.height
        width = self.preprocessing.width
        if not hasattr(images, "ndim"):
            raise UserError(
                f"images are a {type(images).__name__}, but this network takes an array of (n, {height}, {width}, 3) "
                "uint8; `predict` takes single photos and lists of photos"
            )
        if images.ndim != 4 or images.shape[1:] != (height, width, 3) or images.dtype != np.uint8:
            raise UserError(
                f"images have shape {images.shape} and dtype {images.dtype}, but this network takes "
                f"(n, {height}, {width}, 3) uint8; `preprocessing.load` brings a photo to that size"
            )
        batch_size = 1 if len(images) == 1 else BATCH_SIZE
        logits = []
        embeddings = []
        for start in range(0, max(len(images), 1), batch_size):
            batch = pad_batch(images[start : start + batch_size], batch_size)
            batch_logits, batch_embeddings = self._forward(batch, tta)
            logits.append(batch_logits)
            embeddings.append(batch_embeddings)
        return np.concatenate(logits)[: len(images)], np.concatenate(embeddings)[: len(images)]

    def _forward(self, images: np.ndarray, tta: bool) -> tuple[np.ndarray, np.ndarray]:
        logits, embeddings = map(np.asarray, self._forward_images(self._folded_variables, images))
        if tta:
            views = []
            for matrix in view_matrices(self.uses_hflip):
                views.append(self._forward_view(self._folded_variables, images, matrix)[0])
            logits = np.mean([logits, *map(np.asarray, views)], axis=0)
        return logits, embeddings

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Returns softmax(logits / temperature), (n, classes) float32; each row sums to 1.

        Takes the images of `forward` and raises its errors.
        """
        return self.predict_batch(images).probabilities

    def predict_batch(self, images: np.ndarray, tta: bool = False) -> BatchPrediction:
        """Classifies n images. Takes the arguments of `forward` and raises its errors."""
        logits, embeddings = self.forward(images, tta)
        scores = None
        is_ood = None
        if self.calibration is not None:
            scores = self.calibration.ood_score(embeddings)
            if scores is not None and self.calibration.detects_ood:
                is_ood = scores > self.calibration.threshold
        return BatchPrediction(softmax(logits, self.temperature), scores, is_ood)

    @overload
    def predict(self, photo: "Photo") -> Prediction: ...  # type: ignore[overload-overlap]

    @overload
    def predict(self, photo: "Sequence[Photo] | Iterator[Photo]") -> list[Prediction]: ...

    def predict(self, photo: Any) -> Prediction | list[Prediction]:
        """Classifies one photo or several photos.

        Args:
          photo: a path, an open file, the bytes of a file, a Pillow image, or a (height, width, 3) uint8 array of any
            size; or a list, a tuple, an iterator or an (n, height, width, 3) array of photos.

        Returns:
          The prediction; for several photos, a list with one prediction for each.

        Raises:
          UserError: a photo cannot be read, or is none of these types.
        """
        is_array = hasattr(photo, "__array__") and hasattr(photo, "ndim")
        is_file = hasattr(photo, "read")
        if isinstance(photo, list | tuple) or (isinstance(photo, Iterator) and not is_file):
            return self._predict_photos(iter(photo))
        if is_array and photo.ndim == 4:
            return self._predict_photos(iter(np.asarray(photo)))
        return self._predict_photos(iter([photo]))[0]

    def _predict_photos(self, photos: Iterator[Any]) -> list[Prediction]:
        predictions = []
        while batch := [self._load(photo) for photo in islice(photos, BATCH_SIZE)]:
            result = self.predict_batch(np.stack(batch))
            for index in range(len(batch)):
                predictions.append(self._prediction(result, index))
        return predictions

    def _load(self, photo: Any) -> np.ndarray:
        """Returns a photo in the network's size: (height, width, 3) uint8."""
        from PIL import Image

        if isinstance(photo, bytes | bytearray):
            photo = io.BytesIO(photo)
        elif hasattr(photo, "__array__") and not isinstance(photo, Image.Image):
            photo = np.asarray(photo)  # of JAX, for example
        elif not isinstance(photo, str | Path | Image.Image) and not hasattr(photo, "read"):
            raise UserError(
                f"a photo is {photo!r:.80}; give a path, an open file, a Pillow image, a (height, width, 3) uint8 "
                "array, or a list of these"
            )
        return self.preprocessing.load(photo)

    def _prediction(self, batch: BatchPrediction, index: int) -> Prediction:
        row = batch.probabilities[index]
        best = int(row.argmax())
        return Prediction(
            label=self.class_names[best],
            probability=float(row[best]),
            probabilities=dict(zip(self.class_names, row.tolist(), strict=True)),
            ood_score=None if batch.ood_score is None else float(batch.ood_score[index]),
            is_ood=None if batch.is_ood is None else bool(batch.is_ood[index]),
        )


def pad_batch(images: np.ndarray, count: int) -> np.ndarray:
    """Returns `count` images: the given ones, then black ones, so that batches have one shape for compilation."""
    return np.concatenate([images, np.zeros((count - len(images), *images.shape[1:]), images.dtype)])
