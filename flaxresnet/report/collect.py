"""Collects the data of a run's report from its weights and test images."""

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flaxresnet.classifier import Classifier
from flaxresnet.config.train_config import CheckpointChoice
from flaxresnet.data.dataset import Dataset, Splits, is_same_data
from flaxresnet.evaluation import Evaluation, compute_metrics, remap_labels
from flaxresnet.reliability.calibration import softmax
from flaxresnet.reliability.calibration_file import digest
from flaxresnet.reliability.cross_fit import CalibrationReport, assess
from flaxresnet.reliability.ood import REFERENCES
from flaxresnet.reliability.robustness import Robustness, robustness
from flaxresnet.runs.metadata import RunMetadata
from flaxresnet.runs.run_dir import RunDir
from flaxresnet.runtime.errors import UserError

MAX_MISTAKES = 24  # images
MAX_CORRUPTED = 100  # test images to corrupt, each with 19 corruptions, or 18 without mirroring
SAMPLE_STREAM = 0x5E7  # combined with the run's seed, for the random samples of images


class Mistake(NamedTuple):
    """A misclassified test image.

    Attributes:
      image: (height, width, 3), uint8.
      true: index of the true class.
      predicted: index of the predicted class.
      confidence: calibrated probability of the predicted class.
    """

    image: np.ndarray
    true: int
    predicted: int
    confidence: float


@dataclass(frozen=True)
class ReportData:
    """The data of a report.

    Attributes:
      info: the run's metadata.
      rows: rows of `metrics.jsonl`; empty for converted and for adapted runs.
      result: metrics on the test images.
      calibration_report: the calibration that was fitted on the test images, and its cross-fitted metrics.
      robustness: accuracy on corrupted test images.
      mistakes: misclassified test images, the most confident first.
      checkpoint: checkpoint that the weights come from.
      test_fingerprint: fingerprint of the test images.
      path: path of the data; None for drawn hand signs.
    """

    info: RunMetadata
    rows: list[dict[str, Any]]
    result: Evaluation
    calibration_report: CalibrationReport
    robustness: Robustness
    mistakes: list[Mistake]
    checkpoint: CheckpointChoice
    test_fingerprint: str
    path: str | None = None

    @property
    def updates_calibration(self) -> bool:
        """Whether the run may store the calibration, which must be of the run's latest weights and own test images.

        Converted weights come without test images, so all test images qualify. An adapted run keeps the
        calibration of its source run.
        """
        return not self.folder_suffix and not self.info.is_adapted

    @property
    def skip_reason(self) -> str:
        """The reason why the run does not store the calibration, as a clause, if `updates_calibration` is False."""
        if self.info.is_adapted:
            return "an adapted run keeps the calibration of its source run"
        return "the report is not about the run's own test images and latest weights"

    @property
    def folder_suffix(self) -> tuple[str, ...]:
        """Words to append to the report folder's name; empty for the latest weights and the run's own test images."""
        words = []
        if self.checkpoint == "best":
            words.append("best")
        own_fingerprint = self.info.data["test_fingerprint"]
        if own_fingerprint is not None and not is_same_data(own_fingerprint, self.test_fingerprint):
            words.append(re.sub(r"[^\w.-]+", "-", Path(self.path).name) if self.path else "other")
        return tuple(words)

    def named_mistakes(self) -> Iterator[tuple[np.ndarray, str]]:
        """Yields the image of each mistake with a caption, such as "1: cat predicted as dog (0.987)"."""
        names = self.info.class_names
        for number, mistake in enumerate(self.mistakes, start=1):
            classes = f"{names[mistake.true]} predicted as {names[mistake.predicted]}"
            yield mistake.image, f"{number}: {classes} ({mistake.confidence:.3f})"


def collect_report_data(run: str | Path, splits: Splits, checkpoint: CheckpointChoice = "latest") -> ReportData:
    """Evaluates a run for its report.

    Args:
      run: the run folder.
      splits: the test images, and the training images if they are available.
      checkpoint: "latest", or "best" for the epoch with the highest test accuracy.

    Raises:
      UserError: there is no run, there are no test images, or the data do not fit the run.
    """
    run_dir = RunDir(run)
    test = splits.test
    if test is None:
        raise UserError(f"{splits.source} has no test split, which the report needs; give other --data")
    info = run_dir.read_metadata()
    classifier = Classifier.load(run, checkpoint, calibrated=False)  # the stored calibration may be corrupt
    test = remap_labels(classifier, test, splits.source)
    logits, embeddings = classifier.forward(test.images)
    references = _reference_embeddings(classifier, splits.train, info)
    calibration_report = assess(digest(classifier.variables["params"]), logits, test.labels, embeddings, references)
    result = compute_metrics(logits, test.labels, info.class_names)
    sample = _sample(len(test), MAX_CORRUPTED, info)
    return ReportData(
        info=info,
        rows=run_dir.read_metrics(),
        result=dataclasses.replace(result, source=splits.source),
        calibration_report=calibration_report,
        robustness=robustness(
            classifier.logits,
            test.images[sample],
            test.labels[sample],
            calibration_report.temperatures[sample],
            () if info.config.hflip else ("mirror",),  # a mirror image may belong to another class
        ),
        mistakes=most_confident_mistakes(test, softmax(logits, calibration_report.calibration.temperature)),
        checkpoint=checkpoint,
        test_fingerprint=test.fingerprint(),
        path=splits.path,
    )


def _reference_embeddings(classifier: Classifier, train: Dataset | None, info: RunMetadata) -> np.ndarray:
    """Returns (n, features) embeddings of a sample of the training images.

    The array is empty if the run's training images are not available. It is also empty for an adapted run, because its
    training images are out of distribution for its batch norm statistics.
    """
    none = np.zeros((0, 1), np.float32)
    if train is None or train.image_size != (info.preprocessing.height, info.preprocessing.width):
        return none
    own_fingerprint = info.data["train_fingerprint"]
    if info.is_adapted or (own_fingerprint is not None and not is_same_data(train.fingerprint(), own_fingerprint)):
        return none
    _, embeddings = classifier.forward(train.images[_sample(len(train), REFERENCES, info)])
    return embeddings


def _sample(count: int, max_size: int, info: RunMetadata) -> np.ndarray:
    """Returns sorted indices of at most `max_size` of `count` images, drawn at random with the run's seed."""
    order = np.random.default_rng((SAMPLE_STREAM, info.config.seed)).permutation(count)
    return np.sort(order[:max_size])


def most_confident_mistakes(
    dataset: Dataset, probabilities: np.ndarray, max_mistakes: int = MAX_MISTAKES
) -> list[Mistake]:
    """Returns the misclassified images with the highest confidence, in descending order.

    Args:
      dataset: n images.
      probabilities: (n, classes) float.
      max_mistakes: maximum number of images to return.
    """
    predicted = probabilities.argmax(axis=1)
    confidence = probabilities.max(axis=1)
    misclassified = np.flatnonzero(predicted != dataset.labels)
    order = np.argsort(-confidence[misclassified], kind="stable")
    mistakes = []
    for index in misclassified[order[:max_mistakes]]:
        true = int(dataset.labels[index])
        mistakes.append(Mistake(dataset.images[index], true, int(predicted[index]), float(confidence[index])))
    return mistakes
