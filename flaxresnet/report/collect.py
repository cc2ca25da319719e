"""What a report tells of a run: found by looking at its weights and test images, before a word is written."""

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

MAX_MISTAKES = 24  # pictures
MAX_CHANGED = 100  # test images that are changed, each in nineteen ways: two thousand answers say enough
SAMPLE_STREAM = 0x5E7  # of the random numbers that choose images


@dataclass(frozen=True)
class ReportData:
    """What a report tells.

    Attributes:
      info: the run's description.
      rows: of `metrics.jsonl`; empty for weights that were not trained here.
      result: on the test images.
      assessment: how far answers can be trusted.
      robustness: on the test images as others would have taken them.
      mistakes: the most confident ones first: (image, true class, predicted class, its calibrated probability).
      checkpoint: which weights.
      test_fingerprint: of the test images.
      path: of the data; None for what this version draws.
    """

    info: RunMetadata
    rows: list[dict[str, Any]]
    result: Evaluation
    assessment: CalibrationReport
    robustness: Robustness
    mistakes: list[tuple[np.ndarray, int, int, float]]
    checkpoint: CheckpointChoice
    test_fingerprint: str
    path: str | None = None

    @property
    def is_own(self) -> bool:
        """Whether this is of the weights and test images that the run is about, so that it may keep what was learned.

        A run of weights from elsewhere has no images of its own; any will do. One that was adapted to other photos is
        about these, which it does not have.
        """
        return not self.differs and not self.info.is_adapted

    @property
    def skip_reason(self) -> str:
        """In words."""
        if self.info.is_adapted:
            return "it is that of before the run was adapted to other photos"
        return "these are not its own test images, or not its latest weights"

    @property
    def differs(self) -> tuple[str, ...]:
        """What sets this apart from the run's own latest weights and test images, as words for a folder's name."""
        known = self.info.data["test_fingerprint"]
        own = known is None or is_same_data(known, self.test_fingerprint)
        other = re.sub(r"[^\w.-]+", "-", Path(self.path).name) if self.path else "other"
        return (*(["best"] if self.checkpoint == "best" else []), *([] if own else [other]))

    def named_mistakes(self) -> Iterator[tuple[np.ndarray, str]]:
        """The mistakes' images, each with what it is and was taken for."""
        names = self.info.class_names
        for place, (image, true, other, sure) in enumerate(self.mistakes, start=1):
            yield image, f"{place}: {names[true]} taken for {names[other]} ({sure:.3f})"


def collect_report_data(run: str | Path, splits: Splits, checkpoint: CheckpointChoice = "latest") -> ReportData:
    """Looks at a run.

    Args:
      run: the run's folder.
      splits: with the test images that the report is about, and the training images, if there are any here.
      checkpoint: the latest, or the one that was best on the test images.

    Raises:
      UserError: there is no run, or the data do not fit it.
    """
    folder, test = RunDir(run), splits.test
    if test is None:
        raise UserError(f"{splits.source} has no test split, which a report is about; give other --data")
    # Without what the run knew of itself so far, which may be damaged.
    info, classifier = folder.read_metadata(), Classifier.load(run, checkpoint, calibrated=False)
    test = remap_labels(classifier, test, splits.source)
    logits, embeddings = classifier.forward(test.images)
    references = _references(classifier, splits.train, info)
    assessment = assess(digest(classifier.variables["params"]), logits, test.labels, embeddings, references)
    result = dataclasses.replace(compute_metrics(logits, test.labels, info.class_names), source=splits.source)
    some = _sample(len(test), MAX_CHANGED, info)
    changed = test.images[some], test.labels[some], assessment.temperatures[some]
    without = () if info.config.hflip else ("mirror",)  # which may be of another class, or of none
    return ReportData(
        info=info,
        rows=folder.read_metrics(),
        result=result,
        assessment=assessment,
        robustness=robustness(classifier.logits, *changed, without),
        mistakes=most_confident_mistakes(test, softmax(logits, assessment.calibration.temperature)),
        checkpoint=checkpoint,
        test_fingerprint=test.fingerprint(),
        path=splits.path,
    )


def _references(classifier: Classifier, train: Dataset | None, info: RunMetadata) -> np.ndarray:
    """Embeddings of training images, some of them where there are many; of none where there are none, or others.

    Of none as well for a run that was adapted: to its statistics these images are out-of-distribution.
    """
    known, none = info.data["train_fingerprint"], np.zeros((0, 1), np.float32)
    if train is None or train.image_size != (info.preprocessing.height, info.preprocessing.width):
        return none
    if info.is_adapted or (known is not None and not is_same_data(train.fingerprint(), known)):
        return none
    return classifier.forward(train.images[_sample(len(train), REFERENCES, info)])[1]


def _sample(count: int, most: int, info: RunMetadata) -> np.ndarray:
    """Indices of so many at most of `count` images, in order, the same ones always for a run."""
    order = np.random.default_rng((SAMPLE_STREAM, info.config.seed)).permutation(count)
    return np.sort(order[:most])


def most_confident_mistakes(
    dataset: Dataset, probabilities: np.ndarray, most: int = MAX_MISTAKES
) -> list[tuple[np.ndarray, int, int, float]]:
    """Wrongly classified images, the surest first, as `ReportData.mistakes` has them; (n, classes) probabilities."""
    predicted, sure = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != dataset.labels)
    chosen = wrong[np.argsort(-sure[wrong], kind="stable")][:most]
    return [(dataset.images[i], int(dataset.labels[i]), int(predicted[i]), float(sure[i])) for i in chosen]
