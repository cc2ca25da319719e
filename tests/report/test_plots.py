"""The report's charts."""

import warnings

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import to_rgb

from flaxresnet.reliability.calibration import Bin
from flaxresnet.report.plots import THEMES, confusion_chart, contrast_color, learning_curves, reliability_chart

FIGURES = ("train_loss", "test_loss", "train_accuracy", "test_accuracy", "learning_rate")


@pytest.mark.parametrize("epochs", [1, 29, 60])  # from 30 on without a mark at each epoch
def test_learning_curves_go_through_all_epochs_without_a_word(epochs):
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


def test_a_last_learning_rate_of_zero_is_a_whole_point():
    rows = [{"epoch": epoch} | dict.fromkeys(FIGURES, 3.0 - epoch) for epoch in (1, 2, 3)]
    figure = learning_curves(rows, "light")
    figure.canvas.draw()
    rate = figure.axes[2]
    low, high = rate.get_window_extent().y0, rate.transData.transform((3, 0))[1]
    assert high - low > 3.5 / 72 * figure.dpi / 2  # half a mark


def contrast(first, second):
    """By WCAG 2, from 1 to 21."""
    linear = [[v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in to_rgb(c)] for c in (first, second)]
    dark, light = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in linear)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", THEMES)
def test_counts_can_be_read_on_every_shade(theme):
    inks = [THEMES[theme][name] for name in ("on_low", "on_high")]
    for share in np.linspace(0, 1, 101):
        shade = colormaps[THEMES[theme]["shades"]](share)[:3]
        ink = contrast_color(shade, inks)
        assert contrast(ink, shade) == max(contrast(one, shade) for one in inks) >= 4.5
    confusion = np.array([[50, 50], [0, 100]])
    words = {text.get_text(): text.get_color() for text in confusion_chart(confusion, "ab", theme).axes[0].texts}
    for count, share in (("50", 0.5), ("100", 1.0)):
        assert words[count] == contrast_color(colormaps[THEMES[theme]["shades"]](share), inks)


def test_the_legend_of_reliability_lies_on_no_curve():
    bins = [Bin(i / 10, (i + 1) / 10, 1, 1, i / 10 + 0.05) for i in range(10)]  # all right, be they ever so unsure
    figure = reliability_chart(bins, bins, "light")
    figure.canvas.draw()
    (legend,), curve = figure.legends, figure.axes[0]
    assert legend.get_window_extent().y0 >= curve.get_window_extent().y1
    assert legend.get_window_extent().x1 <= figure.bbox.x1
