"""The report's charts."""

import warnings

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import to_rgb

from flaxresnet.reliability.calibration import Bin
from flaxresnet.report.plots import THEMES, confusion_chart, contrast_color, learning_curves, reliability_chart

FIGURES = ("train_loss", "test_loss", "train_accuracy", "test_accuracy", "learning_rate")


@pytest.mark.parametrize("epochs", [1, 29, 60])  # no markers from 30 epochs on
def test_learning_curves_show_all_epochs(epochs):
    rows = [{"epoch": epoch} | dict.fromkeys(FIGURES, epoch / 100) for epoch in range(1, epochs + 1)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = learning_curves(rows, "light")
        figure.canvas.draw()
    lines = [line for axes in figure.axes for line in axes.get_lines()]
    assert len(lines) == 5
    for line in lines:
        assert list(line.get_ydata()) == [epoch / 100 for epoch in range(1, epochs + 1)]
        assert line.get_linestyle() == "-"
        assert (line.get_marker() == "o") == (epochs < 30)


def test_zero_learning_rate_marker_is_visible():
    rows = [{"epoch": epoch} | dict.fromkeys(FIGURES, 3.0 - epoch) for epoch in (1, 2, 3)]
    figure = learning_curves(rows, "light")
    figure.canvas.draw()
    rate = figure.axes[2]
    low = rate.get_window_extent().y0
    high = rate.transData.transform((3, 0))[1]
    assert high - low > 3.5 / 72 * figure.dpi / 2  # half a marker


def contrast(first, second):
    """Returns the WCAG 2 contrast ratio, from 1 to 21."""
    luminances = []
    for color in (first, second):
        red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in to_rgb(color))
        luminances.append(0.2126 * red + 0.7152 * green + 0.0722 * blue)
    return (max(luminances) + 0.05) / (min(luminances) + 0.05)


@pytest.mark.parametrize("theme", THEMES)
def test_confusion_counts_are_legible(theme):
    inks = [THEMES[theme][name] for name in ("on_low", "on_high")]
    for fraction in np.linspace(0, 1, 101):
        shade = colormaps[THEMES[theme]["colormap"]](fraction)[:3]
        ink = contrast_color(shade, inks)
        assert contrast(ink, shade) == max(contrast(other, shade) for other in inks) >= 4.5
    confusion = np.array([[50, 50], [0, 100]])
    texts = confusion_chart(confusion, "ab", theme).axes[0].texts
    colors = {text.get_text(): text.get_color() for text in texts}
    for count, fraction in (("50", 0.5), ("100", 1.0)):
        assert colors[count] == contrast_color(colormaps[THEMES[theme]["colormap"]](fraction), inks)


def test_reliability_legend_is_outside():
    bins = [Bin(i / 10, (i + 1) / 10, 1, 1, i / 10 + 0.05) for i in range(10)]  # accuracy 1 at every confidence
    figure = reliability_chart(bins, bins, "light")
    figure.canvas.draw()
    (legend,) = figure.legends
    curve = figure.axes[0]
    assert legend.get_window_extent().y0 >= curve.get_window_extent().y1
    assert legend.get_window_extent().x1 <= figure.bbox.x1
