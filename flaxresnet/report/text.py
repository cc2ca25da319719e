"""The report of a run: one page that opens from disk, with its figures as PNGs beside it."""

import dataclasses
import json
import shlex
import statistics
from collections.abc import Callable, Iterator
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from flaxresnet.config.train_config import TrainConfig
from flaxresnet.config.validation import flag
from flaxresnet.evaluation import Evaluation
from flaxresnet.reliability.calibration import calibration_error
from flaxresnet.reliability.intervals import wilson_interval
from flaxresnet.reliability.ood import TARGET_FPR
from flaxresnet.reliability.robustness import CorruptionResult
from flaxresnet.report import html
from flaxresnet.report.collect import ReportData
from flaxresnet.report.plots import MAX_MATRIX, confusion_chart, learning_curves, reliability_chart
from flaxresnet.runtime.atomic_io import atomic_write
from flaxresnet.runtime.errors import oserror_as_user_error
from flaxresnet.visualize.plot_style import save

MAX_CLASSES = 200  # rows of the table; the worst, where there are more
MAX_CONFUSIONS = 20  # rows, where the matrix is too large to draw
DPI = 180  # dots to an inch: figures are sharp where a page shows them large, and on telephones


def write_report(run: str | Path, found: ReportData) -> Path:
    """Writes `report/index.html` and its PNGs into a run's folder; of other weights or images, beside that.

    Args:
      run: the run's folder.
      found: what to tell of it.

    Returns:
      The page's path.

    Raises:
      UserError: the folder cannot be written.
    """
    folder = Path(run) / "-".join(["report", *found.differs])
    with oserror_as_user_error(folder):
        folder.mkdir(exist_ok=True)
    name = Path(run).absolute().resolve().name
    content = html.page(f"{name}: report", parts_of(found, name, folder, str(run)))
    with atomic_write(folder / "index.html") as temporary:
        temporary.write_text(content, encoding="utf-8")
    return folder / "index.html"


def parts_of(found: ReportData, name: str, folder: Path, run: str) -> Iterator[str]:
    """The page's parts, in order; figures are written into the folder on the way. `run` is the run's folder."""

    def chart(file: str, alt: str, draw: Callable[[str], Figure]) -> str:
        for theme, path in (("light", folder / f"{file}.png"), ("dark", folder / f"{file}-dark.png")):
            save(draw(theme), path, DPI)
        return html.chart((folder / f"{file}.png").read_bytes(), (folder / f"{file}-dark.png").read_bytes(), alt)

    info, result, assessment = found.info, found.result, found.assessment
    network = info.config.network
    yield f"<h1>{escape(name)}</h1>"
    epochs = f", {found.rows[-1]['epoch']} epochs" if found.rows else ""
    if found.checkpoint == "best":
        epochs += ", of which the weights are taken that were best on the test images (a flattering choice)"
    yield html.paragraph(
        f"{network.model} ({network.variant}), {len(info.class_names)} classes{epochs}; tested on "
        f"{result.count:,} images of {result.source}",
        soft=True,
    )
    yield html.figures(_headline(found))
    if found.info.is_adapted:
        yield html.paragraph(ADAPTED)
    if result.warning:
        yield html.paragraph(f"Warning: {result.warning}")
    if found.rows:
        alt = f"Loss, accuracy and learning rate of {len(found.rows)} epochs"
        curves = chart("curves", alt, lambda theme: learning_curves(found.rows, theme))
        yield html.section("Learning curves", curves, html.paragraph(CURVES, soft=True))
    if len(info.class_names) <= MAX_MATRIX:
        alt = "Images by true and predicted class; the table of classes below has the figures"
        matrix = chart("confusion", alt, lambda theme: confusion_chart(result.confusion, info.class_names, theme))
    else:
        matrix = html.table(("true", "predicted", "images"), _confusions(result))
    yield html.section("What is taken for what", matrix)
    yield html.section("Classes", *_classes(result))
    alt = "Accuracy by confidence, before and after the temperature"
    curve = chart("reliability", alt, lambda theme: reliability_chart(assessment.before, assessment.after, theme))
    yield html.section("Does it know when it is sure?", curve, *map(html.paragraph, _calibration(found)))
    yield html.section("The most confident mistakes", *_mistakes(found))
    yield html.section("Photos taken otherwise", *_robustness(found, run))
    yield html.section("Set-up", *_set_up(found))


ADAPTED = (
    "The run was adapted to photos of another place. What this page tells of test images holds for that place if they "
    "are of it; the run's own ones are not. Labelled photos of it can be given with --data."
)
ADAPTING = "flaxresnet adapt {run} {to} photos/\nflaxresnet predict {to} photos/"
FINETUNING = (
    "python train.py --data mine/ --init {run} --recipe finetune --batch-size 10 --epochs 90 --workdir {to}\n"
    "flaxresnet evaluate {to}"
)
CURVES = (
    "Training figures are of the augmented images, while the weights moved; test figures of all test images after each "
    "epoch."
)


def _headline(found: ReportData) -> Iterator[tuple[str, str, str]]:
    low, high = found.result.accuracy_interval
    yield "Test accuracy", f"{found.result.accuracy:.4f}", f"95% interval {low:.3f} to {high:.3f}"
    yield "Test loss", f"{found.result.loss:.4f}", "nats"
    error = calibration_error(found.assessment.after)
    yield "Calibration error", f"{error:.3f}", f"as trained {calibration_error(found.assessment.before):.3f}"
    told = found.robustness
    yield (
        "Photos taken otherwise",
        f"{told.mean:.3f}",
        f"mean of {len(told.rows)} changes of {told.clean.images} images",
    )
    if found.rows:
        rate = statistics.median(row["images_per_second"] for row in found.rows)
        total = sum(row["seconds"] for row in found.rows)
        yield "Training", f"{rate:,.0f} images/s", f"{total / 60:,.1f} minutes of steps"


def _confusions(result: Evaluation) -> Iterator[tuple[str, str, str]]:
    """The commonest mistakes, of classes too many for a matrix."""
    wrong = result.confusion * (1 - np.eye(len(result.class_names), dtype=int))
    for place in np.argsort(-wrong, axis=None, kind="stable")[:MAX_CONFUSIONS]:
        true, predicted = np.unravel_index(place, wrong.shape)
        if wrong[true, predicted]:
            yield result.class_names[true], result.class_names[predicted], f"{wrong[true, predicted]:,}"


def _classes(result: Evaluation) -> Iterator[str]:
    rows = result.per_class
    if len(rows) > MAX_CLASSES:
        rows = sorted(rows, key=lambda row: (row["f1"] is None, row["f1"]))[:MAX_CLASSES]
        yield html.paragraph(f"The {MAX_CLASSES} classes with the lowest F1, of {len(result.class_names):,}.")

    def figure(row: dict[str, Any], name: str) -> str:
        low, high = row[f"{name}_interval"]
        return "–" if row[name] is None else f"{row[name]:.3f} ({low:.2f}–{high:.2f})"

    names = ("precision", "recall", "f1")
    cells = ((row["class"], f"{row['images']:,}", *(figure(row, name) for name in names)) for row in rows)
    yield html.table(("class", "images", "precision", "recall", "F1"), cells)
    yield html.paragraph("In brackets: 95% intervals.", soft=True)


def _calibration(found: ReportData) -> Iterator[str]:
    assessment, calibration = found.assessment, found.assessment.calibration
    before, after = calibration_error(assessment.before), calibration_error(assessment.after)
    kept = "and kept with the run" if found.is_own else f"and not kept: {found.skip_reason}"
    yield (
        f"A photo's probability is softmax(logits / T) with the temperature T = {calibration.temperature:.3f}, fitted "
        f"on these test images {kept}. The expected calibration error is {before:.3f} without it and {after:.3f} with "
        "it, where each half of every class was judged by the temperature of the other half."
    )
    if found.info.is_adapted:
        yield "predict goes by the temperature, and by the training images, that the run knew before it was adapted."
        return
    if not len(calibration.references):
        yield "OOD detection needs the training images, which are not here."
        return
    if not np.isfinite(calibration.threshold):
        yield "OOD detection is off: there are too few test images to set its threshold."
        return
    yield (
        "predict flags a photo as unlike the training images if its OOD score (1 - cosine to the fifth nearest of "
        f"{len(calibration.references):,} of them, in the features before the last layer) is above "
        f"{calibration.threshold:.4f}. The target false-positive rate is {TARGET_FPR:.0%}, for photos like the test's."
    )
    if assessment.num_scored:
        share = assessment.false_alarms / assessment.num_scored
        low, high = wilson_interval(assessment.false_alarms, assessment.num_scored)
        yield (
            f"Cross-fitted on two halves, it flags {assessment.false_alarms} of {assessment.num_scored} test images "
            f"({share:.1%}; 95% interval {low:.1%} to {high:.1%})."
        )
    else:
        yield "The false-positive rate cannot be measured with so few test images."


def _mistakes(found: ReportData) -> Iterator[str]:
    names, wrong = found.info.class_names, found.result.count - int(np.trace(found.result.confusion))
    if not wrong:
        yield html.paragraph("None: every test image was answered rightly.")
        return
    more = f"; the first {len(found.mistakes)}" if len(found.mistakes) < wrong else ""
    yield html.paragraph(f"{wrong:,} of {found.result.count:,} test images{more}:")
    yield html.photos(
        (image, f"{escape(names[true])}, taken for <b class=wrong>{escape(names[other])}</b> ({sure:.3f})")
        for image, true, other, sure in found.mistakes
    )


def _robustness(found: ReportData, run: str) -> Iterator[str]:
    told, names = found.robustness, found.info.class_names
    low, high = wilson_interval(told.clean.correct, told.clean.images)
    yield html.paragraph(
        f"{told.clean.images:,} of the test images, each changed in {len(told.rows)} ways to a middling degree: "
        f"{told.mean:.3f} of them are answered rightly on average, and {told.rows[0].share:.3f} in the worst way; "
        f"as they are, {told.clean.share:.3f} ({low:.2f}–{high:.2f})."
        f"{'' if found.info.config.hflip else ' Mirror images are not among them, for training was to have none.'}"
    )
    yield html.table(("change", "right", "accuracy"), map(_row_of_change, told.rows))
    before, after = calibration_error(told.before), calibration_error(told.after)
    yield html.paragraph(
        f"In brackets: 95% intervals. On these photos the expected calibration error is {before:.3f}, and {after:.3f} "
        "with the temperature, where each half of every class was judged by that of the other half.",
        soft=True,
    )
    yield html.paragraph(
        "Photos of other people differ in more ways than these. If yours are classified badly, let what is to be told "
        "apart fill the picture, as in the training images."
    )
    if not found.info.is_adapted:
        yield html.paragraph(
            "If all of yours differ in one way, by your lamp, your camera or your distance, adapt the run to some of "
            "them, sixteen at least and of all classes; they need no labels:"
        )
        yield _command(ADAPTING, run, "-here")
    yield html.paragraph(
        "With labels there is more to gain: let it learn from twenty or more of yours, laid into mine/train/CLASS/, "
        "and lay others into mine/test/CLASS/:"
    )
    yield _command(FINETUNING, run, "-mine")
    if told.failures:
        yield html.paragraph("The surest mistake of each kind, of images that are answered rightly as they are:")
        yield html.photos(
            (
                one.image,
                f"{one.change}: {escape(names[one.true])}, taken for <b class=wrong>{escape(names[one.predicted])}</b> "
                f"({one.sure:.3f})",
            )
            for one in told.failures
        )


def _row_of_change(row: CorruptionResult) -> tuple[str, str, str]:
    low, high = wilson_interval(row.correct, row.images)
    return row.change, f"{row.correct:,} of {row.images:,}", f"{row.share:.3f} ({low:.2f}–{high:.2f})"


def _command(lines: str, run: str, ending: str) -> str:
    """What to type, for a run, into one beside it."""
    return f"<pre>{escape(lines.format(run=shlex.quote(run), to=shlex.quote(run.rstrip('/') + ending)))}</pre>"


def _set_up(found: ReportData) -> Iterator[str]:
    info, data = found.info, found.info.data
    fingerprint = f", fingerprint {data['train_fingerprint']}" if data["train_fingerprint"] else ""
    yield html.key_value_table(
        [
            ("trained on", f"{data['source']}: {_count(data, 'train')} images{fingerprint}"),
            *([("made of", data["adapted"])] if info.is_adapted else []),
            (
                "tested on",
                f"{found.result.source}: {found.result.count:,} images, fingerprint {found.test_fingerprint}",
            ),
            ("device", info.device or "not recorded"),
            ("versions", ", ".join(f"{name} {version}" for name, version in info.versions.items())),
            ("report written", datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")),
        ]
    )
    yield html.paragraph("The training of its weights again:" if info.is_adapted else "The same run again:")
    yield f"<pre>{escape(command_of(dataclasses.replace(info.config, data=info.config.data or data['path'])))}</pre>"
    yield html.details("All options", json.dumps(info.config.to_json(), indent=2))


def _count(data: dict[str, Any], split: str) -> str:
    count = data.get(f"{split}_images")
    return f"{count:,}" if isinstance(count, int) else "an unknown number of"


def command_of(config: TrainConfig) -> str:
    """The command line that trains like this, into a folder of its own."""
    usual = TrainConfig(recipe=config.recipe).resolve()
    words = ["python train.py"]
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if f.name in ("recipe", "workdir") or value is None or value == getattr(usual, f.name):
            continue
        if isinstance(value, bool):
            words.append(flag(f.name) if value else flag(f"no-{f.name}"))
        else:
            values = value if isinstance(value, tuple) else (value,)
            words.append(" ".join([flag(f.name), *(shlex.quote(str(one)) for one in values)]))
    if config.recipe != TrainConfig().recipe:
        words.insert(1, f"--recipe {config.recipe}")
    return " ".join(words)
