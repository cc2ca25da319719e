"""Where a network looks: Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxresnet.classifier import Classifier, pad_batch
from flaxresnet.models.resnet import ResNet, block_names
from flaxresnet.reliability.calibration import softmax
from flaxresnet.runtime.errors import UserError

SHARPEST = 4  # places a side that a map should have for a person to see where, not only whether


def grad_cam(
    model: ResNet, variables: Any, images: jax.Array, stage: int, classes: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Weighs a stage's features by how much the class's logit rises with them, and adds them up.

    With A the features and w = the mean over all places of ∂ logit / ∂ A, the map is ReLU(Σ w · A) over the channels
    (equations 1 and 2 of the paper).

    Args:
      model: a network.
      variables: its {"params", "batch_stats"}.
      images: (n, height, width, 3), scaled as the network takes them.
      stage: whose features: 2, 3, ….
      classes: (n,) int, whose logit; None: each image's most probable class.

    Returns:
      logits (n, classes) and maps (n, rows, columns), float32, at least 0; their unit is that of logits.

    Raises:
      ValueError: the network has no such stage.
    """
    if stage not in range(2, 2 + len(model.stage_sizes)):
        raise ValueError(f"stage is {stage}; this network's are 2 to {1 + len(model.stage_sizes)}")
    last = f"res{stage}{block_names(model.stage_sizes[stage - 2])[-1]}"

    def logit(change: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The logits' sum over the images, which do not see each other, after a change of the stage's features."""

        def changed(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            result = call(*args, **kwargs)
            is_last = (context.module.name, context.method_name) == (last, "__call__")
            return result + change if is_last else result

        with nn.intercept_methods(changed):
            seen = model.apply(variables, images, features=True)
        logits = seen["logits"]
        chosen = logits.max(1) if classes is None else jnp.take_along_axis(logits, classes[:, None], 1)
        return chosen.sum(), seen

    shape = jax.eval_shape(lambda: model.apply(variables, images, features=True))[f"stage{stage}"]
    slope, seen = jax.grad(logit, has_aux=True)(jnp.zeros(shape.shape, shape.dtype))
    weights = slope.astype(jnp.float32).mean((1, 2))  # (n, channels)
    maps = jnp.einsum("nhwc,nc->nhw", seen[f"stage{stage}"].astype(jnp.float32), weights)
    return seen["logits"], nn.relu(maps)


def default_stage(model: ResNet, image_size: tuple[int, int]) -> int:
    """The last stage whose map has at least 4×4 places; where none has, the first."""
    images = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
    seen = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, features=True)[0], images)
    sides = {stage: min(seen[f"stage{stage}"].shape[1:3]) for stage in range(2, 2 + len(model.stage_sizes))}
    return max((stage for stage, side in sides.items() if side >= SHARPEST), default=2)


class GradCAM:
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
        self.stage = default_stage(model, (preprocessing.height, preprocessing.width)) if stage is None else stage
        self._explain = jax.jit(
            lambda v, images, classes: grad_cam(model, v, preprocessing.preprocess_uint8(images), self.stage, classes)
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
        logits, maps = self._explain(self.classifier.variables, pad_batch(images, self.batch), classes)
        count = len(images)
        return softmax(np.asarray(logits)[:count], self.classifier.temperature), np.asarray(maps)[:count]
