"""Tests of the lines, the progress bar and the spinner of a training run."""

import io

import pytest
from rich.console import Console

from flaxresnet.training import progress

ROW = {
    "epoch": 3, "train_loss": 0.41234, "train_accuracy": 0.85, "test_loss": 0.30211, "test_accuracy": 0.9,
    "images_per_second": 51.4, "seconds": 19.9, "precise_bn_seconds": 1.24, "evaluate_seconds": 0.5,
}  # fmt: skip


@pytest.fixture
def make_logger(monkeypatch):
    """Returns a function that makes a logger and the text that it prints to."""

    def make(terminal: bool = False, **options) -> tuple[progress.ProgressLogger, io.StringIO]:
        output = io.StringIO()
        console = Console(file=output, force_terminal=terminal, width=120, soft_wrap=True, legacy_windows=False)
        monkeypatch.setattr(progress, "Console", lambda **_: console)
        logger = progress.ProgressLogger(epochs=20, batch_size=32, **options)
        logger.steps_per_epoch = 10
        return logger, output

    return make


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (75, "1:15"), (3675, "1:01:15")])
def test_duration_formats_as_clock(seconds, text):
    assert progress.duration(seconds) == text


def test_row_prints_metrics_and_seconds(make_logger):
    logger, output = make_logger()
    logger.row(ROW)
    line = "epoch  3/20  train loss 0.4123 accuracy 0.850  test loss 0.3021 accuracy 0.900  21.6 s\n"
    assert output.getvalue() == line


def test_row_fits_100_columns(make_logger):
    logger, output = make_logger()
    logger.row(ROW | {"epoch": 20, "train_loss": 12.3456, "test_loss": 12.3456, "seconds": 1234.5})
    assert len(output.getvalue()) <= 100


def test_bar_shows_remaining_time_of_run(make_logger, monkeypatch):
    logger, output = make_logger(terminal=True)
    clock = iter([100.0, 104.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    with logger.epoch(19) as update:
        update(2, 0.5, 0.75)  # two steps in four seconds; 8 steps of this epoch and 10 of the last one are left
        monkeypatch.undo()
    text = output.getvalue()
    assert "epoch 19/20" in text
    assert "2/10" in text
    assert "loss 0.5000  accuracy 0.750  16 images/s  0:36 left" in text


def test_pipe_receives_lines_only(make_logger):
    logger, output = make_logger()
    with logger.epoch(1) as update:
        update(1, 0.5, 0.75)
    logger.note("done")
    assert output.getvalue() == "done\n"


@pytest.mark.parametrize(("options", "text"), [({}, "Compiling…\n"), ({"terminal_only": True}, "")])
def test_status_prints_line_without_terminal(make_logger, capsys, options, text):
    logger, _ = make_logger()
    with logger.status("Compiling…", **options):
        pass
    assert capsys.readouterr().err == text


@pytest.mark.parametrize("verbose", [True, False])
def test_detail_prints_if_verbose(make_logger, verbose):
    logger, output = make_logger(verbose=verbose)
    logger.detail("compiled in 12 s")
    assert (output.getvalue() == "compiled in 12 s\n") == verbose
