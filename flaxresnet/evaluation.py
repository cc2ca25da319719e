"""How good a saved run is on labelled images, and how sure one can be of that."""

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
LABEL_CHECK_IMAGES = 256  # images that tell whether labels are shifted
LABEL_CHECK_BYTES = 2**28  # of their pixels; of large images fewer are taken


@dataclass(frozen=True)
class Evaluation:
    """Figures of a classifier on labelled images.

    Attributes:
      loss: mean cross-entropy an image, nats.
      confusion: (classes, classes), images; row = true class, column = predicted class.
      class_names: of rows and columns.
      source: where the images came from, as words.
      split: which of its splits, or "all".
    """

    loss: float
    confusion: np.ndarray
    class_names: tuple[str, ...]
    source: str = ""
    split: str = "test"

    @property
    def count(self) -> int:
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Share of images whose most probable class is their label."""
        return float(np.trace(self.confusion) / self.count)

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """95% Wilson interval of the accuracy."""
        return wilson_interval(int(np.trace(self.confusion)), self.count)

    @property
    def warning(self) -> str | None:
        """What the confusion says of the labels: that they look shifted by one. None where it says nothing."""
        for shift, words in ((1, "one more"), (-1, "one less")):
            hits = int(np.trace(self.confusion, offset=shift))
            if hits > self.count / 2 and wilson_interval(hits, self.count)[0] > self.accuracy_interval[1]:
                return (
                    f"with each label {words} the accuracy would be {hits / self.count:.3f} and not "
                    f"{self.accuracy:.3f}; are the classes of these data numbered as those of the training were?"
                )
        return None

    @cached_property
    def per_class(self) -> list[dict[str, Any]]:
        """A row a class: name, images, precision, recall and F1 with their 95% intervals; None where undefined.

        Intervals are Wilson's; that of F1 is the one of J = hits / (hits and misses of both kinds), of which F1 is
        2J / (1 + J), as if those were drawn independently.
        """
        rows = []
        for index, name in enumerate(self.class_names):
            hits = int(self.confusion[index, index])
            truly, predicted = int(self.confusion[index].sum()), int(self.confusion[:, index].sum())
            either = wilson_interval(hits, truly + predicted - hits)
            rows.append(
                {
                    "class": name,
                    "images": truly,
                    "precision": hits / predicted if predicted else None,
                    "precision_interval": list(wilson_interval(hits, predicted)),
                    "recall": hits / truly if truly else None,
                    "recall_interval": list(wilson_interval(hits, truly)),
                    "f1": 2 * hits / (truly + predicted) if truly + predicted else None,
                    "f1_interval": [2 * bound / (1 + bound) for bound in either],
                }
            )
        return rows

    def to_json(self) -> dict[str, Any]:
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
    """Evaluates a run on labelled images.

    Args:
      run: the run's folder.
      data: as for `open_dataset`; None takes what the run was trained with.
      checkpoint: the latest, or the one that was best on the test images.
      split: which of the data's splits, or "all" of it. None: all, where nothing but their names divides the images of
        `data` and the run was not trained with them; else "test".
      max_corrupt_fraction: the largest share of pictures in `data` that may be unreadable and are then left out, in [0,
      1).

    Raises:
      UserError: the run or the data cannot be read, or they do not fit each other.
    """
    if split not in (None, *SPLITS):
        raise UserError(f"split is {split!r}; give {listed(SPLITS)}")
    splits = load_data(run, data, split or "test", max_corrupt_fraction)
    split = split or default_split(run, data, splits)
    source = f"{splits.source}{ALL_TOGETHER if split == 'all' else ''}"
    present = [part for part in (getattr(splits, name) for name in SPLITS[split]) if part is not None]
    if not present:
        other = "train" if split == "test" else "test"
        raise UserError(f"{splits.source} has no {split} split; give other --data, or --split {other}")
    classifier = Classifier.load(run, checkpoint)
    present = [remap_labels(classifier, dataset, splits.source) for dataset in present]
    logits = np.concatenate([classifier.logits(dataset.images) for dataset in present])
    labels = np.concatenate([dataset.labels for dataset in present])
    return replace(compute_metrics(logits, labels, classifier.class_names), source=source, split=split)


def load_test_data(run: str | Path, data: str | Path | None, max_corrupt_fraction: float = 0.0) -> Splits:
    """Data whose test images judge a run: those of `load_data`, or all of them, where `default_split` says so.

    Raises UserError where there are none.
    """
    splits = load_data(run, data, "test", max_corrupt_fraction)
    converted = RunDir(run).read_metadata().data["train_fingerprint"] is None  # any images may be what it learned from
    if default_split(run, data, splits) == "all" and not converted:
        return splits.merge_into_test()
    if splits.test is None:
        raise UserError(f"{splits.source} has no test split; give other --data")
    return splits


def default_split(run: str | Path, data: str | Path | None, splits: Splits) -> Split:
    """The split to judge a run by: all of given data that only names divide, unless it was trained with them."""
    known = RunDir(run).read_metadata().data
    own = splits.train is not None and is_same_data(splits.train.fingerprint(), known["train_fingerprint"])
    own |= splits.path is not None and splits.path == known["path"]  # with more pictures by now, or fewer
    return "all" if data and splits.hash_split and not own else "test"


def compute_metrics(logits: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> Evaluation:
    """The figures of (n, classes) logits of images with (n,) labels."""
    log_likelihoods = np.asarray(jax.nn.log_softmax(logits))[np.arange(len(labels)), labels]
    confusion = confusion_matrix(labels, logits.argmax(axis=1), len(class_names))
    return Evaluation(float(-log_likelihoods.mean()), confusion, class_names)


def label_shift_warning(run: str | Path, test: Dataset) -> str | None:
    """What a run's answers to some of the images say of their labels, see `Evaluation.warning`.

    Raises UserError where the run cannot be read.
    """
    classifier = Classifier.load(run, calibrated=False)
    count = min(LABEL_CHECK_IMAGES, max(1, LABEL_CHECK_BYTES // int(np.prod(test.images.shape[1:]))))
    some = np.unique(np.linspace(0, len(test) - 1, count, dtype=int))
    return compute_metrics(classifier.logits(test.images[some]), test.labels[some], classifier.class_names).warning


def load_data(run: str | Path, data: str | Path | None, split: str, max_corrupt_fraction: float = 0.0) -> Splits:
    """Opens data for a run: its training data if `data` is None (see `load_training_data`), else `data`.

    Pictures in folders are brought to the network's size, those of both splits as photos are.
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
        eval_preprocessing=True,
    )


def load_training_data(run: str | Path, split: str) -> Splits:
    """What the run was trained with, wherever the current folder is.

    Raises UserError where it is not here any more, or has another such split (one of `SPLITS`) now.
    """
    info = RunDir(run).read_metadata()
    stored = info.data
    path = stored["path"]
    if stored["train_fingerprint"] is None:
        raise UserError(f"{run} was made of {stored['source']} and knows no images; give --data")
    if path is not None and not os.path.exists(path):  # noqa: PTH110 - never raises, be the name too long
        raise UserError(f"{run} was trained with {path}, which is not here; give --data")
    if path is None:
        splits = load_default_signs()
    else:
        splits = open_dataset(path, _eval_options(info.preprocessing, info.config.max_corrupt_fraction))
    for name in SPLITS[split]:
        dataset = getattr(splits, name)
        if dataset is None or not is_same_data(dataset.fingerprint(), stored[f"{name}_fingerprint"]):
            what = path or "the hand signs that this version draws"
            raise UserError(f"{run} was trained with other {name} images than {what} has now; give --data")
    return splits


def require_size(preprocessing: Preprocessing, dataset: Dataset, source: str) -> None:
    """Raises UserError where the images are of another size than the network's."""
    size = (preprocessing.height, preprocessing.width)
    if dataset.image_size != size:
        raise UserError(f"{source} has images of {dataset.image_size} pixels, but the network takes {size}")


def remap_labels(classifier: Classifier, dataset: Dataset, source: str) -> Dataset:
    """The data with labels that count as the network's do: classes that have names are told apart by these.

    Raises UserError where the images are of another size, or some class is not among the network's.
    """
    require_size(classifier.preprocessing, dataset, source)
    mine, theirs = classifier.class_names, dataset.class_names
    if dataset.names_given and mine != theirs:
        if not set(theirs) <= set(mine):
            raise UserError(f"{source} has the classes {listed(theirs)}, but the network's are {listed(mine)}")
        number = np.array([mine.index(name) for name in theirs], dataset.labels.dtype)
        return replace(dataset, labels=number[dataset.labels], class_names=mine)
    if len(theirs) > len(mine):
        known = f"the network's {len(mine)} classes are 0 to {len(mine) - 1}"
        raise UserError(f"{source} holds the label {len(theirs) - 1}; {known}")
    return dataset
