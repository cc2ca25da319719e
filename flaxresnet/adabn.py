"""AdaBN: adaptation of a run to unlabeled photos by measuring batch norm's statistics on them.

Li et al. 2016, "Revisiting Batch Normalization For Practical Domain Adaptation", arXiv:1603.04779. Another camera,
light or distance shifts the means and variances of features. Statistics of the new photos normalize the features to the
range that the weights expect.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxresnet.classifier import BatchPrediction, Classifier
from flaxresnet.config.train_config import CheckpointChoice
from flaxresnet.data.preprocess import Preprocessing
from flaxresnet.models.precise_bn import measure_batch_stats
from flaxresnet.models.resnet import ResNet
from flaxresnet.runs.run_dir import RunDir
from flaxresnet.runtime.errors import UserError
from flaxresnet.runtime.x64 import x64_disabled
from flaxresnet.weights.run_weights import require_absent, write_variables

# In the room experiment, 4 photos lowered accuracy and 24 helped as much as 48 (`benchmarks/RESULTS.md`).
MIN_PHOTOS = 16
MAX_PHOTOS = 512  # as many images as training measures the statistics on
BATCH_SIZE = 32  # maximum; the statistics are averages over batches
MAX_CLASS_FRACTION = 0.8  # of photos predicted as one class, above which `adapt` warns


@x64_disabled()
def adapt(
    run: str | Path, images: np.ndarray, target: str | Path, checkpoint: CheckpointChoice = "latest"
) -> str | None:
    """Makes a run with the weights of another run and batch norm statistics of new photos.

    Accuracy improves on photos that all differ from the training images in the same way, such as by light, camera or
    distance. The new run keeps the temperature, reference embeddings and OOD threshold of the old one, because the new
    statistics bring features back to the old range.

    Args:
      run: the old run's folder, which does not change.
      images: (n, height, width, 3) uint8, in the network's size, without labels. At least 16 images of all classes; if
        there are more than 512, 512 evenly spaced ones are used.
      target: the new run's folder; it must not exist.
      checkpoint: "latest", or "best" for the epoch with the best test accuracy.

    Returns:
      A warning if nearly all photos are predicted as one class, because statistics of one class bias predictions
      toward it. None otherwise, and also if most photos are out of distribution or the run has no OOD threshold.

    Raises:
      UserError: the run cannot be read, there are too few images, they have another shape or dtype, or `target` exists.
    """
    require_absent(target)
    classifier = Classifier.load(run, checkpoint)
    if len(images) < MIN_PHOTOS:
        raise UserError(f"too few photos to adapt to ({len(images)}); give {MIN_PHOTOS} or more, of all classes")
    images = images[subsample_indices(len(images))]
    warning = single_class_warning(classifier.predict_batch(images), classifier.class_names)
    params = classifier.variables["params"]
    batch_stats = compute_bn_stats(classifier.model, params, classifier.preprocessing, images)
    info = RunDir(run).read_metadata()
    info = replace(
        info,
        config=replace(info.config, workdir=str(target)),
        data=info.data | {"adapted": f"the weights of {run}, adapted to {len(images)} photos"},
    )
    write_variables(info, {"params": params, "batch_stats": batch_stats}, target, classifier.calibration)
    return warning


def subsample_indices(count: int) -> np.ndarray:
    """Returns the indices of at most `MAX_PHOTOS` of `count` photos, evenly spaced from the first to the last."""
    return np.linspace(0, max(count - 1, 0), min(count, MAX_PHOTOS)).astype(int)


def single_class_warning(predictions: BatchPrediction, class_names: tuple[str, ...]) -> str | None:
    """Returns a warning if nearly all in-distribution photos are of one class.

    Returns None also if most photos are out of distribution, or if the run has no OOD threshold.
    """
    if predictions.is_ood is None or predictions.is_ood.mean() > 0.5:
        return None
    labels = predictions.probabilities[~predictions.is_ood].argmax(axis=1)
    counts = np.bincount(labels, minlength=len(class_names))
    most = int(counts.argmax())
    if counts[most] <= MAX_CLASS_FRACTION * len(labels):
        return None
    return (
        f"{counts[most]} of {len(labels)} photos that resemble the training images are predicted as "
        f"{class_names[most]!r}; adapt to photos of all classes instead"
    )


def compute_bn_stats(model: ResNet, params: Any, preprocessing: Preprocessing, images: np.ndarray) -> Any:
    """Returns batch norm statistics over images (n, height, width, 3) uint8; see `measure_batch_stats`.

    The batches are random, because neighboring photos are often of one class.
    """
    num_batches = -(-len(images) // BATCH_SIZE)
    batch_size = -(-len(images) // num_batches)
    order = np.random.default_rng(0).permutation(len(images))
    indices = np.resize(order, (num_batches, batch_size))  # repeats some images so that all batches are full
    trainable = model.clone(frozen=(), freeze_bn_stats=False)

    def measure(params: Any, batches: jax.Array) -> Any:
        return measure_batch_stats(trainable, params, batches, prepare=preprocessing.preprocess_uint8)

    return jax.jit(measure)(params, images[indices])
