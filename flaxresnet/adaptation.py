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

from flaxresnet.classifier import Answers, Classifier
from flaxresnet.config import Which
from flaxresnet.data.preprocess import Preprocessing
from flaxresnet.errors import UserError
from flaxresnet.interop.run_folders import no_images, require_free, write_variables
from flaxresnet.models.batch_stats import measure_batch_stats
from flaxresnet.models.resnet import ResNet
from flaxresnet.training.run_folder import RunFolder
from flaxresnet.trust.stored import Trust

LEAST, MOST = 16, 512  # photos: fewer say too little of how features vary, more say nothing new
AT_ONCE = 32  # at most
ONE_CLASS = 0.8  # of the photos in one class are too many


def adapt(run: str | Path, images: np.ndarray, target: str | Path, checkpoint: Which = "latest") -> str | None:
    """Makes a run of another, for photos of one place: of the same weights, with batch norm's statistics of these.

    It answers photos like them better where they all differ from the training images in the same way, as by a lamp, a
    camera or a distance. It knows no training images, and does not say any more which photos are unlike them.

    Args:
      run: folder of the run to start from, which stays as it is.
      images: (n, height, width, 3) uint8, in the network's size, without labels; at least 16, of all classes. Of more
        than 512, so many count, evenly taken.
      target: a folder that does not exist yet.
      checkpoint: of the run.

    Returns:
      What looks wrong with the images, in words: that nearly all are of one class, so that their statistics would be
      those of the class and other classes be taken for it. None where nothing does, or where most images are too unlike
      the training images to tell.

    Raises:
      UserError: the run cannot be read, images are too few or of another form, or the folder is there already.
    """
    require_free(target)
    classifier = Classifier.load(run, checkpoint)
    if len(images) < LEAST:
        raise UserError(f"{len(images)} photos are too few to adapt to; give {LEAST} or more, of all classes")
    warning = of_one_class(classifier.answers(images), classifier.class_names)
    params = classifier.variables["params"]
    statistics = statistics_of(classifier.model, params, classifier.preprocessing, images)
    info = RunFolder(run).read_info()
    config, source = replace(info.config, workdir=str(target)), f"{run} and {len(images)} photos without labels"
    info = replace(info, config=config, data=no_images(source))
    write_variables(info, {"params": params, "batch_stats": statistics}, target)
    if trust := classifier.trust:
        Trust(trust.weights, trust.temperature, trust.references[:0], trust.threshold).write(target)
    return warning


def of_one_class(answers: Answers, class_names: tuple[str, ...]) -> str | None:
    """That nearly all images are of one class, in words; None where they are not, or where most are strange."""
    if answers.strange is None or answers.strange.mean() > 0.5:
        return None
    counts = np.bincount(answers.probabilities[~answers.strange].argmax(axis=1), minlength=len(class_names))
    if counts.max() <= ONE_CLASS * counts.sum():
        return None
    most, name = counts.max(), class_names[int(counts.argmax())]
    return f"{most} of {len(answers.strange)} photos are taken for {name!r}; adapt to photos of all classes instead"


def statistics_of(model: ResNet, params: Any, preprocessing: Preprocessing, images: np.ndarray) -> Any:
    """Batch norm's statistics over images (n, height, width, 3) uint8; see `measure_batch_stats`.

    They are taken over batches that each have images from all over, for neighbours are often of one class.
    """
    count = min(len(images), MOST)
    batches = -(-count // AT_ONCE)
    places = np.linspace(0, len(images) - 1, count).astype(int)
    places = np.resize(places, (-(-count // batches), batches)).T  # some twice, so that batches are equal
    learning = model.clone(frozen=(), keep_statistics=False)

    def measure(params: Any, images: jax.Array) -> Any:
        return measure_batch_stats(learning, params, images, prepare=preprocessing.scaled)

    return jax.jit(measure)(params, np.stack([images[some] for some in places]))
