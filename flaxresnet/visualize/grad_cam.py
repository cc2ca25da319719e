"""Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391): heat maps of the evidence for a class."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxresnet.classifier import Classifier, pad_batch
from flaxresnet.models.resnet import ResNet, block_names
from flaxresnet.reliability.calibration import softmax
from flaxresnet.runtime.errors import UserError

MIN_MAP_SIDE = 4  # positions per side; a coarser map does not localize the evidence


def grad_cam(
    model: ResNet, variables: Any, images: jax.Array, stage: int, classes: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Computes heat maps from a stage's features, weighted by the gradient of a class's logit.

    A channel's weight w is the mean of ∂ logit / ∂ A over the positions of its feature map A. The heat map is
    ReLU(Σ w · A), a sum over the channels (equations 1 and 2 of the paper).

    Args:
      model: a network.
      variables: its {"params", "batch_stats"}.
      images: (n, height, width, 3) float, preprocessed.
      stage: the number of the stage whose features are used, from 2.
      classes: (n,) int, the class to explain for each image; None for its most probable class.

    Returns:
      Logits (n, classes), and maps (n, rows, columns), float32, at least 0, in the unit of logits.

    Raises:
      ValueError: the network has no such stage.
    """
    if stage not in range(2, 2 + len(model.stage_sizes)):
        raise ValueError(f"stage is {stage}; this network has the stages 2 to {1 + len(model.stage_sizes)}")
    last_block = f"res{stage}{block_names(model.stage_sizes[stage - 2])[-1]}"

    def logit_sum(offset: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the summed logits, with an offset added to the features. Each image affects only its own logit."""

        def add_offset(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            result = call(*args, **kwargs)
            is_last = (context.module.name, context.method_name) == (last_block, "__call__")
            return result + offset if is_last else result

        with nn.intercept_methods(add_offset):
            features = model.apply(variables, images, features=True)
        logits = features["logits"]
        selected = logits.max(1) if classes is None else jnp.take_along_axis(logits, classes[:, None], 1)
        return selected.sum(), features

    shape = jax.eval_shape(lambda: model.apply(variables, images, features=True))[f"stage{stage}"]
    gradient, features = jax.grad(logit_sum, has_aux=True)(jnp.zeros(shape.shape, shape.dtype))
    weights = gradient.astype(jnp.float32).mean((1, 2))  # (n, channels)
    maps = jnp.einsum("nhwc,nc->nhw", features[f"stage{stage}"].astype(jnp.float32), weights)
    return features["logits"], nn.relu(maps)


def default_stage(model: ResNet, image_size: tuple[int, int]) -> int:
    """Returns the number of the last stage whose feature map has at least 4×4 positions, or 2 if none has."""
    images = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, features=True)[0], images)
    result = 2
    for stage in range(2, 2 + len(model.stage_sizes)):
        if min(shapes[f"stage{stage}"].shape[1:3]) >= MIN_MAP_SIDE:
            result = stage
    return result


class GradCAM:
    """Explains up to `batch` images per call, with programs that are compiled for that batch size.

    Attributes:
      classifier: the classifier to explain.
      stage: the stage whose features are used.
      batch: largest number of images per call.
    """

    def __init__(self, classifier: Classifier, stage: int | None = None, batch: int = 1) -> None:
        """Prepares the program. The first call of `explain` compiles it.

        Args:
          classifier: the classifier to explain.
          stage: the stage whose features are used; None for the last one with a map of at least 4×4 positions.
          batch: largest number of images per call.

        Raises:
          UserError: `stage` is above the network's last stage.
        """
        model = classifier.model
        preprocessing = classifier.preprocessing
        last = 1 + len(model.stage_sizes)
        if stage is None:
            stage = default_stage(model, (preprocessing.height, preprocessing.width))
        if stage > last:
            raise UserError(f"--stage {stage} is not in this network; its last is {last}")
        self.classifier = classifier
        self.batch = batch
        self.stage = stage
        self._explain = jax.jit(
            lambda v, images, classes: grad_cam(model, v, preprocessing.preprocess_uint8(images), stage, classes)
        )

    def explain(self, images: np.ndarray, class_index: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Computes probabilities and heat maps.

        Args:
          images: (n, height, width, 3) uint8, n at most `batch`, in the network's input size.
          class_index: the class to explain; None for each image's most probable class.

        Returns:
          Probabilities (n, classes) float32, and maps (n, rows, columns) float32, at least 0.
        """
        classes = None if class_index is None else jnp.full(self.batch, class_index)
        logits, maps = self._explain(self.classifier.variables, pad_batch(images, self.batch), classes)
        count = len(images)
        return softmax(np.asarray(logits)[:count], self.classifier.temperature), np.asarray(maps)[:count]
