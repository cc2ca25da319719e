"""The report's figures, in light and in dark: learning curves, confusion matrix, reliability."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from flaxresnet.reliability.calibration import Bin
from flaxresnet.visualize.plot_style import families, replace_unrenderable

# `on_high` and `on_low` are for words on the matrix's shades.
THEMES = {
    "light": {"paper": "#ffffff", "ink": "#1b1f24", "faint": "#d0d7de", "train": "#8a94a6", "test": "#0550ae"}
    | {"shades": "Blues", "on_high": "#ffffff", "on_low": "#000000"},
    "dark": {"paper": "#0d1117", "ink": "#e6edf3", "faint": "#30363d", "train": "#8b949e", "test": "#79c0ff"}
    | {"shades": "cividis", "on_high": "#000000", "on_low": "#ffffff"},
}
WIDTH = 5.0  # inches: in a phone's width, words are still large enough to read
MAX_MATRIX = 40  # classes; more cannot be told apart on a page


@contextmanager
def theme_style(theme: str) -> Iterator[dict[str, str]]:
    """Matplotlib's settings for a theme; yields its colours."""
    colours = THEMES[theme]
    ink, faint = colours["ink"], colours["faint"]
    settings: Any = {
        **{f"{place}.facecolor": colours["paper"] for place in ("figure", "axes", "savefig")},
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
        yield colours


def learning_curves(rows: Sequence[dict[str, Any]], theme: str) -> Figure:
    """Loss, accuracy and learning rate by epoch, one above the other; `rows` are those of `metrics.jsonl`."""
    epochs = [row["epoch"] for row in rows]
    marker = "o" if len(rows) < 30 else ""
    with theme_style(theme) as colours:
        figure = Figure(figsize=(WIDTH, 6.2), layout="constrained")
        loss, accuracy, rate = figure.subplots(3, sharex=True, height_ratios=(3, 3, 1.3))
        for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
            for split in ("train", "test"):
                values = [row[f"{split}_{name}"] for row in rows]
                axes.plot(epochs, values, marker=marker, ms=3.5, color=colours[split], label=split)
            axes.set_ylabel(name if name == "accuracy" else "loss, nats")
        accuracy.set_ylim(0, 1.02)
        loss.set_ylim(bottom=0)
        loss.legend(ncols=2, loc="upper right")
        rate.plot(epochs, [row["learning_rate"] for row in rows], marker=marker, ms=3.5, color=colours["ink"])
        rate.set(ylabel="learning rate", xlabel="epoch")
        rate.set_ylim(bottom=-0.08 * rate.get_ylim()[1])  # so that a last rate of zero is a whole point
        rate.xaxis.get_major_locator().set_params(integer=True)
    return figure


def contrast_color(ground: Sequence[float], inks: Sequence[str]) -> str:
    """The ink of the highest contrast on a colour (red, green, blue, …) in [0, 1]; by WCAG 2's relative luminance."""

    def luminance(colour: Any) -> float:
        levels = np.array(to_rgb(colour))
        linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722)) + 0.05

    here = luminance(tuple(ground)[:3])
    return max(inks, key=lambda ink: max(luminance(ink), here) / min(luminance(ink), here))


def confusion_chart(confusion: np.ndarray, class_names: Sequence[str], theme: str) -> Figure:
    """Images by true class (rows) and predicted class (columns), each row's share as shade.

    Args:
      confusion: (classes, classes), int, of at most `MAX_MATRIX` classes.
      class_names: of rows and columns.
      theme: "light" or "dark".
    """
    count = len(class_names)
    names = [name if len(name) <= 18 else name[:17] + "…" for name in replace_unrenderable(class_names)]
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = 1.4 + 0.5 * count if count <= 7 else min(3.2 + 0.25 * count, 10)  # inches; wider than a phone if need be
    with theme_style(theme) as colours:
        figure = Figure(figsize=(max(side, 3.4), max(side * 0.95, 3.0)), layout="constrained")
        axes = figure.subplots()
        shades = axes.imshow(share, cmap=colours["shades"], vmin=0, vmax=1).get_cmap()
        axes.set_xticks(range(count), names, rotation=90 if max(map(len, names)) > 3 else 0)
        axes.set_yticks(range(count), names)
        axes.set(xlabel="predicted", ylabel="true")
        axes.grid(False)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        size = 10 if count <= 12 else 7 if count <= 25 else 5
        for row, column in np.argwhere(confusion):
            ink = contrast_color(shades(share[row, column]), (colours["on_low"], colours["on_high"]))
            axes.text(column, row, str(confusion[row, column]), ha="center", va="center", color=ink, fontsize=size)
    return figure


def reliability_chart(before: Sequence[Bin], after: Sequence[Bin], theme: str) -> Figure:
    """Accuracy by confidence, before and after the temperature, over the number of images at each confidence."""
    with theme_style(theme) as colours:
        figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
        curve, counts = figure.subplots(2, sharex=True, height_ratios=(3, 1))
        curve.plot([0, 1], [0, 1], "--", color=colours["ink"], lw=1, label="as sure as right")
        kinds = (("as trained", before, "train", -1), ("with the temperature", after, "test", 1))
        for label, bins, colour, side in kinds:
            filled = [b for b in bins if b.count]
            shares = [b.correct / b.count for b in filled]
            confidences = [b.confidence for b in filled]
            # A share of zero, on the edge, is a whole point.
            curve.plot(confidences, shares, "o-", ms=4, color=colours[colour], label=label, clip_on=False)
            width = bins[0].high - bins[0].low
            middles = [(b.low + b.high) / 2 + side * width * 0.21 for b in bins]
            counts.bar(middles, [b.count for b in bins], width * 0.4, color=colours[colour])
        curve.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
        figure.legend(*curve.get_legend_handles_labels(), loc="outside upper left", ncols=3)  # no curve is there
        counts.set(xlabel="confidence: the highest probability", ylabel="images")
    return figure
