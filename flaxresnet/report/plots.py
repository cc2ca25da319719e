"""The report's charts in a light and a dark theme: learning curves, confusion matrix, reliability diagram."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from flaxresnet.reliability.calibration import Bin
from flaxresnet.visualize.plot_style import families, replace_unrenderable

# Colors by theme. `on_high` and `on_low` are the two text colors for the cells of the confusion matrix.
THEMES = {
    "light": {
        "paper": "#ffffff",
        "ink": "#1b1f24",
        "faint": "#d0d7de",
        "train": "#8a94a6",
        "test": "#0550ae",
        "colormap": "Blues",
        "on_high": "#ffffff",
        "on_low": "#000000",
    },
    "dark": {
        "paper": "#0d1117",
        "ink": "#e6edf3",
        "faint": "#30363d",
        "train": "#8b949e",
        "test": "#79c0ff",
        "colormap": "cividis",
        "on_high": "#000000",
        "on_low": "#ffffff",
    },
}
WIDTH = 5.0  # inches; text stays legible at the width of a phone
MAX_MATRIX = 40  # classes; the labels of a larger confusion matrix are not legible
MAX_NAME = 18  # characters of a class name


@contextmanager
def theme_style(theme: str) -> Iterator[dict[str, str]]:
    """Applies the theme to Matplotlib within the `with` block, and yields its colors."""
    colors = THEMES[theme]
    ink = colors["ink"]
    faint = colors["faint"]
    settings: Any = {
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), colors["paper"]),
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), ink),
        **dict.fromkeys(("axes.edgecolor", "grid.color", "xtick.color", "ytick.color"), faint),
        "axes.grid": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "font.size": 9.5,
        "legend.frameon": False,
        "text.parse_math": False,
        "font.family": families(),
    }
    with rc_context(settings):
        yield colors


def learning_curves(rows: Sequence[dict[str, Any]], theme: str) -> Figure:
    """Plots loss, accuracy and learning rate by epoch in three panels.

    Args:
      rows: the rows of `metrics.jsonl`, at least one.
      theme: "light" or "dark".
    """
    epochs = [row["epoch"] for row in rows]
    marker = "o" if len(rows) < 30 else ""
    with theme_style(theme) as colors:
        figure = Figure(figsize=(WIDTH, 6.2), layout="constrained")
        loss, accuracy, rate = figure.subplots(3, sharex=True, height_ratios=(3, 3, 1.3))
        for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
            for split in ("train", "test"):
                values = [row[f"{split}_{name}"] for row in rows]
                axes.plot(epochs, values, marker=marker, ms=3.5, color=colors[split], label=split)
        loss.set_ylabel("loss, nats")
        accuracy.set_ylabel("accuracy")
        accuracy.set_ylim(0, 1.02)
        loss.set_ylim(bottom=0)
        loss.legend(ncols=2, loc="upper right")
        rate.plot(epochs, [row["learning_rate"] for row in rows], marker=marker, ms=3.5, color=colors["ink"])
        rate.set(ylabel="learning rate", xlabel="epoch")
        rate.set_ylim(bottom=-0.08 * rate.get_ylim()[1])  # the axis does not cut off a marker at zero
        rate.xaxis.get_major_locator().set_params(integer=True)
    return figure


def contrast_color(background: Sequence[float], inks: Sequence[str]) -> str:
    """Returns the ink with the highest WCAG 2 contrast ratio on a background (red, green, blue, …) in [0, 1]."""

    def luminance(color: Any) -> float:
        levels = np.array(to_rgb(color))
        linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722)) + 0.05

    behind = luminance(tuple(background)[:3])
    return max(inks, key=lambda ink: max(luminance(ink), behind) / min(luminance(ink), behind))


def confusion_chart(confusion: np.ndarray, class_names: Sequence[str], theme: str) -> Figure:
    """Plots the confusion matrix. Text shows counts, and shades show fractions of each row.

    Args:
      confusion: (classes, classes), int, rows are true classes; at most `MAX_MATRIX` classes.
      class_names: names of rows and columns.
      theme: "light" or "dark".
    """
    count = len(class_names)
    names = []
    for name in replace_unrenderable(class_names):
        names.append(name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…")
    fractions = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = 1.4 + 0.5 * count if count <= 7 else min(3.2 + 0.25 * count, 10)  # inches; may exceed a phone's width
    with theme_style(theme) as colors:
        figure = Figure(figsize=(max(side, 3.4), max(side * 0.95, 3.0)), layout="constrained")
        axes = figure.subplots()
        colormap = axes.imshow(fractions, cmap=colors["colormap"], vmin=0, vmax=1).get_cmap()
        axes.set_xticks(range(count), names, rotation=90 if max(map(len, names)) > 3 else 0)
        axes.set_yticks(range(count), names)
        axes.set(xlabel="predicted", ylabel="true")
        axes.grid(False)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        font_size = 10 if count <= 12 else 7 if count <= 25 else 5
        for row, column in np.argwhere(confusion):
            ink = contrast_color(colormap(fractions[row, column]), (colors["on_low"], colors["on_high"]))
            text = str(confusion[row, column])
            axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=font_size)
    return figure


def reliability_chart(before: Sequence[Bin], after: Sequence[Bin], theme: str) -> Figure:
    """Plots accuracy by confidence, and below it a histogram of the confidences.

    Args:
      before: bins without temperature scaling.
      after: bins with temperature scaling, of the same width.
      theme: "light" or "dark".
    """
    with theme_style(theme) as colors:
        figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
        curve, counts = figure.subplots(2, sharex=True, height_ratios=(3, 1))
        curve.plot([0, 1], [0, 1], "--", color=colors["ink"], lw=1, label="ideal")
        series = (("uncalibrated", before, "train", -1), ("temperature scaling", after, "test", 1))
        for label, bins, color, side in series:
            filled = [b for b in bins if b.count]
            accuracies = [b.correct / b.count for b in filled]
            confidences = [b.confidence for b in filled]
            # The axis does not cut off a marker at zero.
            curve.plot(confidences, accuracies, "o-", ms=4, color=colors[color], label=label, clip_on=False)
            width = bins[0].high - bins[0].low
            centers = [(b.low + b.high) / 2 + side * width * 0.21 for b in bins]
            counts.bar(centers, [b.count for b in bins], width * 0.4, color=colors[color])
        curve.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
        figure.legend(*curve.get_legend_handles_labels(), loc="outside upper left", ncols=3)  # not over the curves
        counts.set(xlabel="confidence (highest probability)", ylabel="images")
    return figure
