"""A classifier with Grad-CAM: answers, and where in the images they come from."""

import jax
import jax.numpy as jnp
import numpy as np

from flaxresnet.classifier import Classifier, padded
from flaxresnet.inspection.grad_cam import grad_cam, usual_stage
from flaxresnet.reliability.calibration import softmax
from flaxresnet.runtime.errors import UserError


class Explainer:
    """Explains images, up to `batch` at a time, with one program.

    Attributes:
      classifier: whose answers are explained.
      stage: whose features are shown.
      batch: how many images at a time.
    """

    def __init__(self, classifier: Classifier, stage: int | None = None, batch: int = 1) -> None:
        """`stage` None is the last whose map has at least 4×4 places. Raises UserError where there is no such stage."""
        model, preprocessing = classifier.model, classifier.preprocessing
        last = 1 + len(model.stage_sizes)
        if stage is not None and stage > last:
            raise UserError(f"--stage {stage} is not in this network; its last is {last}")
        self.classifier, self.batch = classifier, batch
        self.stage = usual_stage(model, (preprocessing.height, preprocessing.width)) if stage is None else stage
        self._explain = jax.jit(
            lambda v, images, classes: grad_cam(model, v, preprocessing.scaled(images), self.stage, classes)
        )

    def explain(self, images: np.ndarray, chosen: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities, and what speaks for a class.

        Args:
          images: (n, height, width, 3) uint8, n at most `batch`, in the network's size.
          chosen: the class; None is each image's most probable one.

        Returns:
          (n, classes) float32, and maps (n, rows, columns) float32, at least 0.
        """
        classes = None if chosen is None else jnp.full(self.batch, chosen)
        logits, maps = self._explain(self.classifier.variables, padded(images, self.batch), classes)
        count = len(images)
        return softmax(np.asarray(logits)[:count], self.classifier.temperature), np.asarray(maps)[:count]
