"""Evaluation of a run on labeled images: loss, accuracy, confusion matrix and confidence intervals."""

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from flaxresnet.classifier import Classifier
from flaxresnet.config.train_config import CheckpointChoice
from flaxresnet.data.dataset import ALL_TOGETHER, Dataset, Splits, is_same_data
from flaxresnet.data.hand_signs.cache import load_default_signs
from flaxresnet.data.open import open_dataset
from flaxresnet.data.preprocess import Preprocessing
from flaxresnet.data.read_options import ReadOptions
from flaxresnet.reliability.confusion_matrix import confusion_matrix
from flaxresnet.reliability.intervals import wilson_interval
from flaxresnet.runs.run_dir import RunDir
from flaxresnet.runtime.errors import UserError, listed

Split = Literal["test", "train", "all"]
SPLITS: dict[str, tuple[str, ...]] = {"test": ("test",), "train": ("train",), "all": ("train", "test")}
LABEL_CHECK_IMAGES = 256  # images for the check of shifted labels
LABEL_CHECK_BYTES = 2**28  # at most, of these images' pixels


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a classifier on labeled images.

    Attributes:
      loss: mean cross-entropy per image, in nats.
      confusion: (classes, classes) number of images; row = true class, column = predicted class.
      class_names: names of rows and columns.
      source: the origin of the images, for people.
      split: the split of the data, or "all".
    """

    loss: float
    confusion: np.ndarray
    class_names: tuple[str, ...]
    source: str = ""
    split: str = "test"

    @property
    def count(self) -> int:
        """Returns the number of images."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Returns the fraction of images whose most probable class is their label, in [0, 1]."""
        return float(np.trace(self.confusion) / self.count)

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """Returns the 95% Wilson interval of the accuracy."""
        return wilson_interval(int(np.trace(self.confusion)), self.count)

    @property
    def warning(self) -> str | None:
        """Returns a warning if the labels seem to be shifted by one, else None."""
        for shift, verb in ((1, "adding 1 to"), (-1, "subtracting 1 from")):
            hits = int(np.trace(self.confusion, offset=shift))
            if hits > self.count / 2 and wilson_interval(hits, self.count)[0] > self.accuracy_interval[1]:
                return (
                    f"{verb} each label would change the accuracy from {self.accuracy:.3f} to {hits / self.count:.3f}; "
                    "check that these data number the classes as the training data do"
                )
        return None

    @cached_property
    def per_class(self) -> list[dict[str, Any]]:
        """Returns a row for each class: name, images, precision, recall and F1 with 95% intervals; None if undefined.

        Intervals are Wilson intervals. F1 = 2J / (1 + J) increases with the Jaccard index
        J = hits / (hits + misses + false alarms), so the same formula maps the interval of J to that of F1.
        """
        rows = []
        for index, name in enumerate(self.class_names):
            hits = int(self.confusion[index, index])
            actual = int(self.confusion[index].sum())
            predicted = int(self.confusion[:, index].sum())
            jaccard_interval = wilson_interval(hits, actual + predicted - hits)
            rows.append(
                {
                    "class": name,
                    "images": actual,
                    "precision": hits / predicted if predicted else None,
                    "precision_interval": list(wilson_interval(hits, predicted)),
                    "recall": hits / actual if actual else None,
                    "recall_interval": list(wilson_interval(hits, actual)),
                    "f1": 2 * hits / (actual + predicted) if actual + predicted else None,
                    "f1_interval": [2 * bound / (1 + bound) for bound in jaccard_interval],
                }
            )
        return rows

    def to_json(self) -> dict[str, Any]:
        """Returns all metrics as JSON values."""
        return {
            "loss": self.loss,
            "accuracy": self.accuracy,
            "accuracy_interval": list(self.accuracy_interval),
            "images": self.count,
            "data": self.source,
            "split": self.split,
            "warning": self.warning,
            "class_names": list(self.class_names),
            "per_class": self.per_class,
            "confusion": self.confusion.tolist(),
        }


def evaluate(
    run: str | Path,
    data: str | Path | None = None,
    *,
    checkpoint: CheckpointChoice = "latest",
    split: Split | None = None,
    max_corrupt_fraction: float = 0.0,
) -> Evaluation:
    """Evaluates a run on labeled images.

    Args:
      run: the run's folder.
      data: a path for `open_dataset`; None means the data that the run was trained on.
      checkpoint: "latest", or "best" for the epoch with the best test accuracy.
      split: "test", "train" or "all". None means the split that `default_split` returns.
      max_corrupt_fraction: maximum fraction of images in `data` that may be unreadable and are skipped, in [0, 1).

    Raises:
      UserError: the run or the data cannot be read, or the data do not fit the network.
    """
    if split not in (None, *SPLITS):
        raise UserError(f"split is {split!r}; give one of {listed(SPLITS)}")
    splits = load_data(run, data, split or "test", max_corrupt_fraction)
    split = split or default_split(run, data, splits)
    datasets = [getattr(splits, name) for name in SPLITS[split]]
    datasets = [dataset for dataset in datasets if dataset is not None]
    if not datasets:
        other = "train" if split == "test" else "test"
        raise UserError(f"{splits.source} has no {split} split; give other --data, or --split {other}")
    classifier = Classifier.load(run, checkpoint)
    datasets = [remap_labels(classifier, dataset, splits.source) for dataset in datasets]
    logits = np.concatenate([classifier.logits(dataset.images) for dataset in datasets])
    labels = np.concatenate([dataset.labels for dataset in datasets])
    source = f"{splits.source}{ALL_TOGETHER if split == 'all' else ''}"
    return replace(compute_metrics(logits, labels, classifier.class_names), source=source, split=split)


def load_test_data(run: str | Path, data: str | Path | None, max_corrupt_fraction: float = 0.0) -> Splits:
    """Opens data whose test split is for the evaluation of a run.

    The test split has all images of `data` if `default_split` returns "all". Converted weights are an exception:
    their training images are unknown.

    Args:
      run: the run's folder.
      data: a path for `open_dataset`; None means the data that the run was trained on.
      max_corrupt_fraction: maximum fraction of images in `data` that may be unreadable and are skipped, in [0, 1).

    Raises:
      UserError: there is no test split, or the run or the data cannot be read.
    """
    splits = load_data(run, data, "test", max_corrupt_fraction)
    is_converted = RunDir(run).read_metadata().data["train_fingerprint"] is None
    if default_split(run, data, splits) == "all" and not is_converted:
        return splits.merge_into_test()
    if splits.test is None:
        raise UserError(f"{splits.source} has no test split; give other --data")
    return splits


def default_split(run: str | Path, data: str | Path | None, splits: Splits) -> Split:
    """Returns the split to evaluate on if the user names none.

    Returns "all" if the run was not trained on `data` and only a hash of the file names splits them, because all images
    are then new to the run. Returns "test" otherwise.
    """
    trained_on = RunDir(run).read_metadata().data
    is_training_data = splits.train is not None and is_same_data(
        splits.train.fingerprint(), trained_on["train_fingerprint"]
    )
    # The same path is training data, too, if images have been added or removed since.
    is_training_data |= splits.path is not None and splits.path == trained_on["path"]
    return "all" if data and splits.hash_split and not is_training_data else "test"


def compute_metrics(logits: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> Evaluation:
    """Returns the metrics of (n, classes) logits for (n,) integer labels."""
    log_likelihoods = np.asarray(jax.nn.log_softmax(logits))[np.arange(len(labels)), labels]
    confusion = confusion_matrix(labels, logits.argmax(axis=1), len(class_names))
    return Evaluation(float(-log_likelihoods.mean()), confusion, class_names)


def label_shift_warning(run: str | Path, test: Dataset) -> str | None:
    """Returns `Evaluation.warning` for a sample of the images.

    Raises UserError if the run cannot be read.
    """
    classifier = Classifier.load(run, calibrated=False)
    count = min(LABEL_CHECK_IMAGES, max(1, LABEL_CHECK_BYTES // int(np.prod(test.images.shape[1:]))))
    sample = np.unique(np.linspace(0, len(test) - 1, count, dtype=int))
    return compute_metrics(classifier.logits(test.images[sample]), test.labels[sample], classifier.class_names).warning


def load_data(run: str | Path, data: str | Path | None, split: str, max_corrupt_fraction: float = 0.0) -> Splits:
    """Opens data for a run; images in folders get the preprocessing of photos to predict, in all splits.

    Args:
      run: the run's folder.
      data: a path for `open_dataset`; None means the data that the run was trained on.
      split: a key of `SPLITS`, for `load_training_data`.
      max_corrupt_fraction: maximum fraction of images in `data` that may be unreadable and are skipped, in [0, 1).

    Raises:
      UserError: the run or the data cannot be read.
    """
    if data is None:
        return load_training_data(run, split)
    preprocessing = RunDir(run).read_metadata().preprocessing
    return open_dataset(data, _eval_options(preprocessing, max_corrupt_fraction))


def _eval_options(preprocessing: Preprocessing, max_corrupt_fraction: float) -> ReadOptions:
    """Returns options with which every image is preprocessed as the images to predict are."""
    return ReadOptions(
        image_size=(preprocessing.height, preprocessing.width),
        max_corrupt_fraction=max_corrupt_fraction,
        crop_pct=preprocessing.crop_pct,
        resize=preprocessing.resize_mode,
        eval_preprocessing=True,
    )


def load_training_data(run: str | Path, split: str) -> Splits:
    """Opens the data that a run was trained on, from any working directory.

    Args:
      run: the run's folder.
      split: a key of `SPLITS`; only these splits must be unchanged.

    Raises:
      UserError: the run has no training data, or the data no longer exist or have changed.
    """
    info = RunDir(run).read_metadata()
    stored = info.data
    path = stored["path"]
    if stored["train_fingerprint"] is None:
        raise UserError(f"{run} holds {stored['source']} and no data; give labeled images with --data PATH")
    if path is not None and not os.path.exists(path):  # noqa: PTH110 - Path.exists raises for overlong names
        raise UserError(f"{run} was trained on {path}, which does not exist; give --data")
    if path is None:
        splits = load_default_signs()
    else:
        splits = open_dataset(path, _eval_options(info.preprocessing, info.config.max_corrupt_fraction))
    for name in SPLITS[split]:
        dataset = getattr(splits, name)
        if dataset is None or not is_same_data(dataset.fingerprint(), stored[f"{name}_fingerprint"]):
            source = path or "the hand signs that this version draws"
            raise UserError(f"{run} was trained on other {name} images than those of {source}; give --data")
    return splits


def require_size(preprocessing: Preprocessing, dataset: Dataset, source: str) -> None:
    """Raises UserError unless the images have the network's size; the message calls the data `source`."""
    size = (preprocessing.height, preprocessing.width)
    if dataset.image_size != size:
        raise UserError(
            f"{source} has images of {dataset.image_size} pixels, but the network takes {size}; resize them"
        )


def remap_labels(classifier: Classifier, dataset: Dataset, source: str) -> Dataset:
    """Returns the data with the network's class numbers; classes with names are matched by name.

    Args:
      classifier: the network.
      dataset: the data.
      source: the name of the data in messages.

    Raises:
      UserError: the images do not have the network's size, or the network does not have all classes.
    """
    require_size(classifier.preprocessing, dataset, source)
    known = classifier.class_names
    names = dataset.class_names
    if dataset.names_given and names != known:
        if not set(names) <= set(known):
            raise UserError(
                f"{source} has the classes {listed(names)}, but the network's are {listed(known)}; use its names"
            )
        new_labels = np.array([known.index(name) for name in names], dataset.labels.dtype)
        return replace(dataset, labels=new_labels[dataset.labels], class_names=known)
    if len(names) > len(known):
        raise UserError(
            f"{source} has the label {len(names) - 1}, but the network's {len(known)} classes are 0 to {len(known) - 1}"
        )
    return dataset
