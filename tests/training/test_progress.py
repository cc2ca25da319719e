"""What a run shows in a terminal and elsewhere."""

import io

import pytest
from rich.console import Console

from flaxresnet.training import progress

ROW = {
    "epoch": 3, "train_loss": 0.41234, "train_accuracy": 0.85, "test_loss": 0.30211, "test_accuracy": 0.9,
    "images_per_second": 51.4, "seconds": 19.9, "precise_bn_seconds": 1.24,
}  # fmt: skip


def reporter(monkeypatch, terminal: bool) -> tuple[progress.ProgressLogger, io.StringIO]:
    said = io.StringIO()
    console = Console(file=said, force_terminal=terminal, width=120, soft_wrap=True, legacy_windows=False)
    monkeypatch.setattr(progress, "Console", lambda **_: console)
    made = progress.ProgressLogger(quiet=False, epochs=20, batch_size=32)
    made.steps_per_epoch = 10
    return made, said


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (75, "1:15"), (3675, "1:01:15")])
def test_durations_read_like_a_clock(seconds, text):
    assert progress.duration(seconds) == text


def test_an_epochs_line_has_train_and_test_figures_and_the_cost_of_the_statistics(monkeypatch):
    made, said = reporter(monkeypatch, terminal=False)
    made.row(ROW)
    assert said.getvalue() == (
        "epoch  3/20  train loss 0.4123 accuracy 0.850  test loss 0.3021 accuracy 0.900  19.9 s + 1.2 s\n"
    )


def test_a_terminal_sees_progress_and_the_time_left_for_the_whole_run(monkeypatch):
    made, said = reporter(monkeypatch, terminal=True)
    clock = iter([100.0, 104.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    with made.epoch(19) as update:
        update(2, 0.5, 0.75)  # two steps in four seconds; 8 steps of this epoch and 10 of the last are left
        monkeypatch.undo()
    text = said.getvalue()
    assert "epoch 19/20" in text
    assert "2/10" in text
    assert "loss 0.5000  accuracy 0.750  16 images/s  0:36 left" in text


def test_an_epochs_line_fits_a_terminal_of_100_columns(monkeypatch):
    made, said = reporter(monkeypatch, terminal=False)
    made.row(ROW | {"epoch": 20, "train_loss": 12.3456, "test_loss": 12.3456, "seconds": 1234.5})
    assert len(said.getvalue()) <= 100


def test_nothing_but_lines_goes_to_a_file(monkeypatch):
    made, said = reporter(monkeypatch, terminal=False)
    with made.epoch(1) as update:
        update(1, 0.5, 0.75)
    assert said.getvalue() == ""
