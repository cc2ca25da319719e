"""The report's charts."""

import warnings

import pytest

from flaxresnet.inspection.charts import learning_curves

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
