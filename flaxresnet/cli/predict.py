"""`flaxresnet predict RUN PHOTO…`."""

import csv
import json
import os
import shutil
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from rich.cells import cell_len

from flaxresnet.classifier import BATCH_SIZE, Classifier
from flaxresnet.cli.image_args import (
    OOD_MESSAGE,
    ImageArguments,
    ImageReader,
    check,
    most_probable,
    note_if_uncalibrated,
)
from flaxresnet.runtime.compilation_cache import use_compilation_cache
from flaxresnet.runtime.errors import UserError, listed
from flaxresnet.runtime.terminal import align, ellipsize, status

MIN_FILE_WIDTH = 16  # terminal columns
MAX_LABEL_WIDTH = 24  # terminal columns of a class name if the terminal is narrow


@dataclass(frozen=True)
class Arguments(ImageArguments):
    """Classifies photos and prints a table: file, label, probability and the next best class.

    If the run has a report, probabilities are calibrated and out-of-distribution photos are flagged. Training ends with
    a report; `flaxresnet report` writes one at any time. Crop photos so that the object fills the frame,
    as in the training images.

    Example: flaxresnet predict runs/default photo.jpg more/photos --top-k 3
    """

    tta: bool = False
    """Test-time augmentation: average over crops at several scales, and mirror images if training used them. Slower,
    sometimes more accurate. Calibration is fitted without it."""

    json: bool = False
    """Print one JSON object per photo, with the probabilities of all classes."""

    csv: bool = False
    """Print comma-separated values, with the probabilities of all classes."""


@dataclass(frozen=True)
class PhotoPrediction:
    """The prediction for one photo.

    Attributes:
      file: the photo's path.
      probabilities: (classes,), float.
      ood_score: the OOD score, or None if the run is not calibrated.
      is_ood: whether the score is above the run's threshold, or None if the run has no threshold.
    """

    file: str
    probabilities: np.ndarray
    ood_score: float | None
    is_ood: bool | None


def main(arguments: Arguments) -> int:
    check(arguments)
    if arguments.json and arguments.csv:
        raise UserError("--json and --csv exclude each other; give one of them")
    use_compilation_cache()
    with status("Loading the run…"):
        classifier = Classifier.load(arguments.run, arguments.checkpoint)
    reader = ImageReader(arguments.photos, classifier.preprocessing.load, BATCH_SIZE)
    with status("Classifying the photos…"):
        writer = _new_writer(arguments, classifier.class_names)
        for batch in reader.batches:
            for prediction in _predict(classifier, batch, arguments.tta):
                writer.write(prediction)
            sys.stdout.flush()
    writer.finish(reader.num_unreadable)
    if reader.num_read:
        note_if_uncalibrated(classifier, arguments)
    return reader.exit_status()


def _predict(classifier: Classifier, batch: list[tuple[str, np.ndarray]], tta: bool) -> list[PhotoPrediction]:
    images = np.stack([image for _, image in batch])
    result = classifier.predict_batch(images, tta=tta)
    predictions = []
    for index, (file, _) in enumerate(batch):
        ood_score = None if result.ood_score is None else float(result.ood_score[index])
        is_ood = None if result.is_ood is None else bool(result.is_ood[index])
        predictions.append(PhotoPrediction(file, result.probabilities[index], ood_score, is_ood))
    return predictions


class Writer(Protocol):
    """Prints predictions."""

    def write(self, prediction: PhotoPrediction) -> None:
        """Prints or collects one prediction."""

    def finish(self, num_unreadable: int) -> None:
        """Prints the remaining output after the last prediction."""


def _new_writer(arguments: Arguments, names: tuple[str, ...]) -> Writer:
    if arguments.json:
        return JsonWriter(names, arguments.top_k)
    if arguments.csv:
        return CsvWriter(names, arguments.top_k)
    return TableWriter(names, arguments.top_k)


class TableWriter:
    """Prints an aligned table and a summary after the last prediction."""

    def __init__(self, names: tuple[str, ...], top_k: int) -> None:
        self.names = names
        self.num_ranks = min(max(2, top_k), len(names))
        self.predictions: list[PhotoPrediction] = []

    def write(self, prediction: PhotoPrediction) -> None:
        """Collects a prediction."""
        self.predictions.append(prediction)

    def finish(self, num_unreadable: int) -> None:
        """Prints the table, as wide as the terminal, and the summary."""
        if not self.predictions:
            return
        folder = common_folder([prediction.file for prediction in self.predictions])
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        for line in self.lines(folder, width):
            print(line)
        print()
        print(self.summary(folder, num_unreadable))

    def lines(self, folder: str, width: int | None) -> list[str]:
        """Returns the lines of the table.

        Args:
          folder: leading folder to leave out of the files' paths.
          width: terminal columns to cut the lines to, or None for lines of any length.
        """
        rows = [self._header()]
        for prediction in self.predictions:
            rows.append(self._row(prediction, folder, None))
        if width is not None and _table_width(rows) > width:
            rows = [self._header()]
            for prediction in self.predictions:
                rows.append(self._row(prediction, folder, MAX_LABEL_WIDTH))
            file_width = max(cell_len(row[0]) for row in rows)
            file_width = max(MIN_FILE_WIDTH, file_width - (_table_width(rows) - width))
            for row in rows:
                row[0] = _keep_end(row[0], file_width)
        lines = align(rows, right=range(2, 2 * self.num_ranks + 1, 2))
        if width is None:
            return lines
        return [ellipsize(line, width) for line in lines]

    def _header(self) -> list[str]:
        header = ["file", "label", "probability"]
        for rank in range(2, self.num_ranks + 1):
            header += ["next best" if rank == 2 else f"rank {rank}", ""]
        return header

    def _row(self, prediction: PhotoPrediction, folder: str, label_width: int | None) -> list[str]:
        row = [prediction.file.removeprefix(folder)]
        for index in most_probable(prediction.probabilities, self.num_ranks):
            name = self.names[index]
            label = name if label_width is None else ellipsize(name, label_width)
            row += [label, f"{prediction.probabilities[index]:.4f}"]
        if prediction.is_ood:
            row.append(OOD_MESSAGE)
        return row

    def summary(self, folder: str, num_unreadable: int) -> str:
        """Returns the summary line, such as "3 photos in photos/: 2 cat, 1 dog; 1 out of distribution"."""
        total = len(self.predictions)
        labels = Counter(self.names[int(prediction.probabilities.argmax())] for prediction in self.predictions)
        counts = listed([f"{count} {name}" for name, count in labels.most_common()])
        where = f" in {folder}" if folder else ""
        parts = [f"{total:,} {'photo' if total == 1 else 'photos'}{where}: {counts}"]
        num_ood = sum(bool(prediction.is_ood) for prediction in self.predictions)
        if num_ood:
            parts.append(f"{num_ood:,} {OOD_MESSAGE}")
        if num_unreadable:
            parts.append(f"{num_unreadable:,} unreadable")
        return "; ".join(parts)


def common_folder(files: list[str]) -> str:
    """Returns the leading folder that all paths share, with a final separator, or "" if there is none."""
    folders = {str(Path(file).parent) for file in files}
    try:
        folder = os.path.commonpath(folders)
    except ValueError:  # absolute and relative paths
        return ""
    prefix = folder if folder.endswith(os.sep) else folder + os.sep
    return prefix if all(file.startswith(prefix) for file in files) else ""


def _table_width(rows: list[list[str]]) -> int:
    return max(cell_len(line) for line in align(rows))


def _keep_end(text: str, width: int) -> str:
    """Returns the text, with "…" instead of its beginning if it is wider than `width` terminal columns."""
    if cell_len(text) <= width:
        return text
    while cell_len(text) > width - 1:
        text = text[1:]
    return f"…{text}"


class JsonWriter:
    """Prints one JSON object per prediction."""

    def __init__(self, names: tuple[str, ...], top_k: int) -> None:
        self.names = names
        self.top_k = top_k

    def write(self, prediction: PhotoPrediction) -> None:
        """Prints the object."""
        probabilities = dict(zip(self.names, prediction.probabilities.tolist(), strict=True))
        top = [self.names[index] for index in most_probable(prediction.probabilities, self.top_k)]
        values: dict[str, object] = {
            "file": prediction.file,
            "label": top[0],
            "probability": probabilities[top[0]],
        }
        if self.top_k > 1:
            values["top"] = [{"label": name, "probability": probabilities[name]} for name in top]
        values["ood_score"] = prediction.ood_score
        values["is_ood"] = prediction.is_ood
        values["probabilities"] = probabilities
        print(json.dumps(values))

    def finish(self, num_unreadable: int) -> None:
        """Prints nothing."""


class CsvWriter:
    """Prints a header and one line of comma-separated values per prediction."""

    def __init__(self, names: tuple[str, ...], top_k: int) -> None:
        self.num_ranks = min(top_k, len(names))
        self.names = names
        self.table = csv.writer(sys.stdout, lineterminator="\n")
        header = ["file", "label", "probability"]
        for rank in range(2, self.num_ranks + 1):
            header += [f"label {rank}", f"probability {rank}"]
        self.table.writerow([*header, "ood_score", "is_ood", *(f"p({name})" for name in names)])

    def write(self, prediction: PhotoPrediction) -> None:
        """Prints the line."""
        cells = [prediction.file]
        for index in most_probable(prediction.probabilities, self.num_ranks):
            cells += [self.names[index], f"{prediction.probabilities[index]:.6f}"]
        cells.append("" if prediction.ood_score is None else f"{prediction.ood_score:.6f}")
        cells.append("" if prediction.is_ood is None else str(prediction.is_ood).lower())
        cells += [f"{probability:.6f}" for probability in prediction.probabilities]
        self.table.writerow(cells)

    def finish(self, num_unreadable: int) -> None:
        """Prints nothing."""
