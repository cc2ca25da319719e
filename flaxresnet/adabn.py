"""A run that has got used to other photos, without their labels: batch norm's statistics, measured on them.

Li et al. 2016, "Revisiting Batch Normalization For Practical Domain Adaptation", arXiv:1603.04779: another lamp or
another distance moves the means and variances of features; with those of the new photos they are where the weights
expect them.
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
from flaxresnet.weights.run_weights import require_absent, write_variables

# Photos. Of a room, 4 cost accuracy and 24 gain as much as 48 (`benchmarks/RESULTS.md`); training measures on 512.
MIN_PHOTOS, MAX_PHOTOS = 16, 512
BATCH_SIZE = 32  # photos of a batch at most, which is normalised by its own statistics
MAX_CLASS_FRACTION = 0.8  # of the photos in one class are too many


def adapt(
    run: str | Path, images: np.ndarray, target: str | Path, checkpoint: CheckpointChoice = "latest"
) -> str | None:
    """Makes from a run another one, for photos of one place: the same weights, with batch norm's statistics of these.

    It answers photos like them better where they all differ from the training images in the same way, as by a lamp, a
    camera or a distance. Its temperature is that of the old run, and photos are unlike the training images where they
    are so in its features from what these were in the old run's, to which the new statistics are to bring them.

    Args:
      run: folder of the run to start from, which stays as it is.
      images: (n, height, width, 3) uint8, in the network's size, without labels; at least 16, of all classes. Of more
        than 512, so many count, evenly taken.
      target: a folder that does not exist yet.
      checkpoint: of the run.

    Returns:
      What looks wrong with the images, in words: that nearly all are of one class, so that their statistics would be
      those of the class and other classes be taken for it. None where nothing does, or where that cannot be told: most
      images are too unlike the training images, or the run does not know these.

    Raises:
      UserError: the run cannot be read, images are too few or of another form, or the folder is there already.
    """
    require_absent(target)
    classifier = Classifier.load(run, checkpoint)
    if len(images) < MIN_PHOTOS:
        raise UserError(f"too few photos to adapt to ({len(images)}); give {MIN_PHOTOS} or more, of all classes")
    images = images[subsample_indices(len(images))]
    warning = single_class_warning(classifier.predict_batch(images), classifier.class_names)
    params, info = classifier.variables["params"], RunDir(run).read_metadata()
    statistics = compute_bn_stats(classifier.model, params, classifier.preprocessing, images)
    told = {"adapted": f"the weights of {run}, adapted to {len(images)} photos"}
    info = replace(info, config=replace(info.config, workdir=str(target)), data=info.data | told)
    write_variables(info, {"params": params, "batch_stats": statistics}, target, classifier.calibration)
    return warning


def subsample_indices(count: int, most: int = MAX_PHOTOS) -> np.ndarray:
    """The places of so many among `count` things at most, from the first to the last."""
    return np.linspace(0, max(count - 1, 0), min(count, most)).astype(int)


def single_class_warning(answers: BatchPrediction, class_names: tuple[str, ...]) -> str | None:
    """Returns a warning if nearly all images are of one class; None also if most are out-of-distribution."""
    if answers.is_ood is None or answers.is_ood.mean() > 0.5:
        return None
    counts = np.bincount(answers.probabilities[~answers.is_ood].argmax(axis=1), minlength=len(class_names))
    if counts.max() <= MAX_CLASS_FRACTION * counts.sum():
        return None
    most, name = counts.max(), class_names[int(counts.argmax())]
    known = f"{counts.sum()} photos that are like the training images"
    return f"{most} of {known} are taken for {name!r}; adapt to photos of all classes instead"


def compute_bn_stats(model: ResNet, params: Any, preprocessing: Preprocessing, images: np.ndarray) -> Any:
    """Batch norm's statistics over images (n, height, width, 3) uint8; see `measure_batch_stats`.

    They are taken over batches of a random order, for neighbours are often of one class.
    """
    batches = -(-len(images) // BATCH_SIZE)
    order = np.random.default_rng(0).permutation(len(images))
    places = np.resize(order, (batches, -(-len(images) // batches)))  # some twice, so that batches are equal
    learning = model.clone(frozen=(), freeze_bn_stats=False)

    def measure(params: Any, images: jax.Array) -> Any:
        return measure_batch_stats(learning, params, images, prepare=preprocessing.preprocess_uint8)

    return jax.jit(measure)(params, np.stack([images[some] for some in places]))
