"""Writes the report of a run: one HTML page that opens from disk, and its charts as PNGs."""

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

MAX_CLASSES = 200  # rows of the per-class table; with more classes, it shows those with the lowest F1
MAX_CONFUSIONS = 20  # rows of the table that replaces a large confusion matrix
DPI = 180  # dots per inch; keeps charts sharp on wide screens and on phones

ADAPTED = (
    "This run was adapted to photos of another site. These results describe the adapted site only if the test images "
    "come from it. The run's original test images do not; give labeled photos of the site with --data."
)
ADAPT_COMMANDS = "flaxresnet adapt {run} {target} photos/\nflaxresnet predict {target} photos/"
FINETUNE_COMMANDS = (
    "flaxresnet train --data mine/ --init {run} --recipe finetune --batch-size 10 --epochs 90 --workdir {target}\n"
    "flaxresnet evaluate {target}"
)
CURVES_NOTE = (
    "Training metrics are averages over the epoch's augmented batches. Test metrics use all test images after each "
    "epoch."
)


def write_report(run: str | Path, data: ReportData) -> Path:
    """Writes `index.html` and PNGs to the run's folder `report`, or `report-…` for other weights or test images.

    Args:
      run: the run folder.
      data: the data of the report.

    Returns:
      The path of the page.

    Raises:
      UserError: the folder cannot be written.
    """
    folder = Path(run) / "-".join(["report", *data.folder_suffix])
    with oserror_as_user_error(folder):
        folder.mkdir(exist_ok=True)
    name = Path(run).absolute().resolve().name
    content = html.page(f"{name}: report", page_parts(data, name, folder, str(run)))
    with atomic_write(folder / "index.html") as temporary:
        temporary.write_text(content, encoding="utf-8")
    return folder / "index.html"


def page_parts(data: ReportData, name: str, folder: Path, run: str) -> Iterator[str]:
    """Yields the parts of the page in order, and writes the charts.

    Args:
      data: the data of the report.
      name: title of the page.
      folder: folder for the charts.
      run: the run folder, for the commands on the page.
    """

    def chart(file: str, alt: str, draw: Callable[[str], Figure]) -> str:
        images = []
        for theme, suffix in (("light", ""), ("dark", "-dark")):
            path = folder / f"{file}{suffix}.png"
            save(draw(theme), path, DPI)
            images.append(path.read_bytes())
        return html.chart(images[0], images[1], alt)

    info = data.info
    result = data.result
    report = data.calibration_report
    yield f"<h1>{escape(name)}</h1>"
    yield html.paragraph(_subtitle(data), soft=True)
    yield html.metric_boxes(_headline(data))
    if info.is_adapted:
        yield html.paragraph(ADAPTED)
    if result.warning:
        yield html.paragraph(f"Warning: {result.warning}")
    if data.rows:
        alt = f"Loss, accuracy and learning rate of {len(data.rows)} epochs"
        curves = chart("curves", alt, lambda theme: learning_curves(data.rows, theme))
        yield html.section("Learning curves", curves, html.paragraph(CURVES_NOTE, soft=True))
    if len(info.class_names) <= MAX_MATRIX:
        alt = "Images by true and predicted class; the table of per-class metrics has the numbers"
        matrix = chart("confusion", alt, lambda theme: confusion_chart(result.confusion, info.class_names, theme))
    else:
        matrix = html.table(("true", "predicted", "images"), _top_confusions(result))
    yield html.section("Confusion matrix", matrix)
    yield html.section("Per-class metrics", *_per_class(result))
    alt = "Accuracy by confidence, before and after temperature scaling"
    reliability = chart("reliability", alt, lambda theme: reliability_chart(report.before, report.after, theme))
    yield html.section("Calibration", reliability, *map(html.paragraph, _calibration(data)))
    yield html.section("Out-of-distribution detection", *map(html.paragraph, _ood_detection(data)))
    yield html.section("Most confident mistakes", *_mistakes(data))
    yield html.section("Corruption robustness", *_robustness(data, run))
    yield html.section("Setup", *_setup(data))


def _subtitle(data: ReportData) -> str:
    network = data.info.config.network
    text = f"{network.model} ({network.variant}), {len(data.info.class_names)} classes"
    if data.rows:
        text += f", {data.rows[-1]['epoch']} epochs"
    if data.checkpoint == "best":
        text += ", weights of the epoch with the highest test accuracy (the metrics are optimistic)"
    elif data.rows:
        text += f", weights after epoch {data.rows[-1]['epoch']}"
    return f"{text}; tested on {data.result.count:,} images of {data.result.source}"


def _headline(data: ReportData) -> Iterator[tuple[str, str, str]]:
    """Yields the name, number and note of each headline metric."""
    low, high = data.result.accuracy_interval
    yield "Test accuracy", f"{data.result.accuracy:.4f}", f"95% interval {low:.3f} to {high:.3f}"
    yield "Test loss", f"{data.result.loss:.4f}", "nats"
    before = calibration_error(data.calibration_report.before)
    after = calibration_error(data.calibration_report.after)
    yield "Calibration error", f"{after:.3f}", f"{before:.3f} before temperature scaling"
    corruptions = data.robustness
    images = corruptions.clean.images
    note = f"mean accuracy over {len(corruptions.rows)} corruptions of {images} images"
    yield "Corruption robustness", f"{corruptions.mean:.3f}", note
    if data.rows:
        rate = statistics.median(row["images_per_second"] for row in data.rows)
        total = sum(row["seconds"] for row in data.rows)
        yield "Training speed", f"{rate:,.0f} images/s", f"{total / 60:,.1f} minutes of training steps"


def _top_confusions(result: Evaluation) -> Iterator[tuple[str, str, str]]:
    """Yields the most frequent confusions: true class, predicted class, images."""
    mistakes = result.confusion * (1 - np.eye(len(result.class_names), dtype=int))
    for flat_index in np.argsort(-mistakes, axis=None, kind="stable")[:MAX_CONFUSIONS]:
        true, predicted = np.unravel_index(flat_index, mistakes.shape)
        if mistakes[true, predicted]:
            yield result.class_names[true], result.class_names[predicted], f"{mistakes[true, predicted]:,}"


def _per_class(result: Evaluation) -> Iterator[str]:
    """Yields the table of per-class metrics, with notes."""
    rows = result.per_class
    if len(rows) > MAX_CLASSES:
        rows = sorted(rows, key=lambda row: (row["f1"] is None, row["f1"]))[:MAX_CLASSES]
        yield html.paragraph(f"These are the {MAX_CLASSES} classes with the lowest F1, of {len(result.class_names):,}.")
    cells = []
    for row in rows:
        metrics = [_with_interval(row[name], *row[f"{name}_interval"]) for name in ("precision", "recall", "f1")]
        cells.append((row["class"], f"{row['images']:,}", *metrics))
    yield html.table(("class", "images", "precision", "recall", "F1"), cells)
    yield html.paragraph("Values in parentheses are 95% intervals.", soft=True)


def _with_interval(value: float | None, low: float, high: float) -> str:
    return "–" if value is None else f"{value:.3f} ({low:.2f}–{high:.2f})"


def _calibration(data: ReportData) -> Iterator[str]:
    """Yields paragraphs about the temperature and the calibration error."""
    report = data.calibration_report
    before = calibration_error(report.before)
    after = calibration_error(report.after)
    yield (
        f"Temperature scaling divides the logits by T = {report.calibration.temperature:.3f} before the softmax. The "
        f"expected calibration error is {before:.3f} without it and {after:.3f} with it, cross-fitted on two halves of "
        "the test images."
    )
    if data.updates_calibration:
        yield "The temperature is fitted on these test images and stored with the run, for predict."
    else:
        yield f"The temperature is fitted on these test images and not stored with the run: {data.skip_reason}."


def _ood_detection(data: ReportData) -> Iterator[str]:
    """Yields paragraphs about the OOD score, its threshold and its false-positive rate."""
    report = data.calibration_report
    calibration = report.calibration
    if data.info.is_adapted:
        yield "An adapted run keeps the reference images and the OOD threshold of its source run."
        return
    if not len(calibration.references):
        yield "OOD detection needs the training images, which are not available."
        return
    if not np.isfinite(calibration.threshold):
        yield "OOD detection is off: there are too few test images to set its threshold."
        return
    yield (
        "The OOD score of a photo is one minus its cosine similarity to the fifth nearest of "
        f"{len(calibration.references):,} training images, in the features before the last layer. predict flags a "
        f"photo as out of distribution if its score exceeds {calibration.threshold:.4f}. The target false-positive "
        f"rate is {TARGET_FPR:.0%} for test-like photos."
    )
    if report.num_scored:
        rate = report.false_alarms / report.num_scored
        low, high = wilson_interval(report.false_alarms, report.num_scored)
        yield (
            f"Cross-fitted on two halves, it flags {report.false_alarms} of {report.num_scored} test images "
            f"({rate:.1%}; 95% interval {low:.1%} to {high:.1%})."
        )
    else:
        yield "The false-positive rate cannot be measured with so few test images."


def _mistakes(data: ReportData) -> Iterator[str]:
    """Yields the misclassified images."""
    names = data.info.class_names
    total = data.result.count - int(np.trace(data.result.confusion))
    if not total:
        yield html.paragraph("None: the network classifies every test image correctly.")
        return
    text = f"{total:,} of {data.result.count:,} test images are misclassified"
    if len(data.mistakes) < total:
        text += f"; the {len(data.mistakes)} most confident ones are shown"
    yield html.paragraph(f"{text}. Wrong labels often appear here.")
    photos = []
    for mistake in data.mistakes:
        caption = html.mistake_caption(names[mistake.true], names[mistake.predicted], mistake.confidence)
        photos.append((mistake.image, caption))
    yield html.photos(photos)


def _robustness(data: ReportData, run: str) -> Iterator[str]:
    """Yields the table of corruptions, examples of mistakes, and advice for misclassified photos."""
    result = data.robustness
    names = data.info.class_names
    low, high = wilson_interval(result.clean.correct, result.clean.images)
    mirror = "" if data.info.config.hflip else " Mirror images are not among them, because training used none."
    yield html.paragraph(
        f"Evaluated: {result.clean.images:,} of the test images, each with {len(result.rows)} corruptions of medium "
        f"severity. Mean accuracy: {result.mean:.3f}; worst corruption: {result.rows[0].accuracy:.3f}; unchanged "
        f"images: {result.clean.accuracy:.3f} ({low:.2f}–{high:.2f}).{mirror}"
    )
    yield html.table(("corruption", "correct", "accuracy"), map(_corruption_row, result.rows))
    yield html.paragraph(
        "Values in parentheses are 95% intervals. On the corrupted images, the expected calibration error is "
        f"{calibration_error(result.before):.3f}, and {calibration_error(result.after):.3f} with temperature scaling, "
        "cross-fitted on two halves.",
        soft=True,
    )
    if result.failures:
        yield html.paragraph("The most confident mistake of each corruption, among images that are correct without it:")
        photos = []
        for failure in result.failures:
            caption = html.mistake_caption(names[failure.true], names[failure.predicted], failure.probability)
            photos.append((failure.image, f"{failure.corruption}: {caption}"))
        yield html.photos(photos)
    yield "<h3>If your photos are misclassified</h3>"
    yield html.paragraph(
        "Photos that other people take differ in more ways than these corruptions. Crop photos so that the object "
        "fills the frame, as in the training images."
    )
    if not data.info.is_adapted:
        yield html.paragraph(
            "If all your photos differ in the same way (lighting, camera or distance), adapt the run to at least 16 of "
            "them, of all classes, without labels:"
        )
        yield html.command(_commands(ADAPT_COMMANDS, run, "-here"))
    yield html.paragraph(
        "Labels help more: put 20 or more of your photos in mine/train/CLASS/ and others in mine/test/CLASS/, and "
        "fine-tune the run:"
    )
    yield html.command(_commands(FINETUNE_COMMANDS, run, "-mine"))


def _corruption_row(row: CorruptionResult) -> tuple[str, str, str]:
    low, high = wilson_interval(row.correct, row.images)
    return row.corruption, f"{row.correct:,} of {row.images:,}", _with_interval(row.accuracy, low, high)


def _commands(template: str, run: str, suffix: str) -> str:
    """Returns command lines for a run and a target folder beside it."""
    return template.format(run=shlex.quote(run), target=shlex.quote(run.rstrip("/") + suffix))


def _setup(data: ReportData) -> Iterator[str]:
    """Yields the data, versions and options of the run."""
    info = data.info
    run_data = info.data
    pairs = [("trained on", f"{run_data['source']}: {_count(run_data, 'train')} images")]
    if info.is_adapted:
        pairs.append(("adapted", run_data["adapted"]))
    pairs += [
        ("tested on", f"{data.result.source}: {data.result.count:,} images"),
        ("device", info.device or "not recorded"),
        ("versions", ", ".join(f"{name} {version}" for name, version in info.versions.items())),
        ("report written", datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")),
    ]
    yield html.key_value_table(pairs)
    config = dataclasses.replace(info.config, data=info.config.data or run_data["path"])
    trained = "the training of the source run" if info.is_adapted else "the training"
    yield html.paragraph(f"To repeat {trained}, with another --workdir if its folder still holds the run:")
    yield html.command(train_command(config))
    yield html.details("All options", json.dumps(info.config.to_json(), indent=2))
    fingerprints = f"training images: {run_data['train_fingerprint']}\ntest images: {data.test_fingerprint}"
    yield html.details("Fingerprints of the data", fingerprints)


def _count(run_data: dict[str, Any], split: str) -> str:
    count = run_data.get(f"{split}_images")
    return f"{count:,}" if isinstance(count, int) else "an unknown number of"


def train_command(config: TrainConfig) -> str:
    """Returns the command line that trains with these options."""
    defaults = TrainConfig(recipe=config.recipe).resolve()
    words = ["flaxresnet train"]
    if config.recipe != TrainConfig().recipe:
        words.append(f"--recipe {config.recipe}")
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name == "recipe" or value is None or value == getattr(defaults, field.name):
            continue
        if isinstance(value, bool):
            words.append(flag(field.name) if value else flag(f"no-{field.name}"))
        else:
            values = value if isinstance(value, tuple) else (value,)
            items = [shlex.quote(str(item)) for item in values]
            if items[0].startswith("-"):  # the parser would take a separate word for a flag
                items = [f"{flag(field.name)}={items[0]}"]
            else:
                words.append(flag(field.name))
            words += items
    return " ".join(words)
