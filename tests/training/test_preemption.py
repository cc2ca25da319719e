"""Tests that a run which stops within an epoch resumes with the next batch and ends with the same weights."""

import json
import os
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from conftest import TINY_CONFIG, draw_blobs

import flaxresnet as fr
from flaxresnet.runtime.errors import TrainingInterrupted
from flaxresnet.training import preemption, trainer
from flaxresnet.training.preemption import PreemptionHandler

METRICS = ("epoch", "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate")


class KilledError(BaseException):
    """Stands for the end of a process; the package does not catch it."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return draw_blobs(tmp_path_factory.mktemp("pictures"), 44, 19)


def train(data, workdir, **options):
    given = {"image_size": (32, 32), "epochs": 2, "input": "stream", "workers": 0} | options
    return fr.fit(fr.TrainConfig(data=data, workdir=workdir, **TINY_CONFIG | given), quiet=True)


def metric_rows(workdir):
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [[row[name] for name in METRICS] for row in rows]


def assert_same_run(a, b):
    assert metric_rows(a) == metric_rows(b)
    weights = (fr.Classifier.load(run).variables for run in (a, b))
    jax.tree.map(np.testing.assert_array_equal, *weights)


def killed_at(pictures, workdir, monkeypatch, step, every=2):
    """Trains a run that saves every `every` steps and dies before `step`, counted from 0."""

    def next_batch(session, batches, state, metrics, real=trainer.next_batch):
        if state.step == step:
            session.output.checkpoints.wait()
            raise KilledError
        return real(session, batches, state, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "next_batch", next_batch)
        with pytest.raises(KilledError):
            train(pictures, workdir, checkpoint_steps=every)


def preempt_at(patch, step):
    """Makes runs receive SIGTERM after a step."""

    def stop_if_preempted(session, state, metrics, real=trainer.stop_if_preempted):
        patch.setattr(PreemptionHandler, "wanted", lambda _: signal.SIGTERM if state.step >= step else None)
        real(session, state, metrics)

    patch.setattr(trainer, "stop_if_preempted", stop_if_preempted)


@pytest.fixture(scope="module")
def uninterrupted(pictures, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    train(pictures, workdir)
    return workdir


@pytest.mark.parametrize(  # 10 steps, five in each epoch
    ("step", "source"),
    [
        (5, "stream"),
        (7, "memory"),
        pytest.param(1, "stream", marks=pytest.mark.campaign),
        pytest.param(10, "stream", marks=pytest.mark.campaign),
    ],
)
def test_stopped_run_resumes_at_next_step(pictures, uninterrupted, tmp_path, monkeypatch, step, source, capsys):
    with monkeypatch.context() as patch:
        preempt_at(patch, step)
        with pytest.raises(
            TrainingInterrupted, match=f"stopped by SIGTERM after step {step}, saved in .* s; repeat the command"
        ):
            train(pictures, tmp_path / "run")
    assert (tmp_path / "run" / "mid_epoch" / str(step)).is_dir()
    options = TINY_CONFIG | {"image_size": (32, 32), "epochs": 2, "input": source, "workers": 0}
    fr.fit(fr.TrainConfig(data=pictures, workdir=tmp_path / "run", **options))
    step_in_epoch = (step - 1) % 5 + 1
    message = f"resuming {tmp_path / 'run'} in epoch {(step - 1) // 5 + 1}, after step {step_in_epoch} of 5"
    assert message in capsys.readouterr().out
    assert_same_run(tmp_path / "run", uninterrupted)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["checkpoints", "config.json", "metrics.jsonl"]


@pytest.mark.parametrize(
    ("every", "death", "kept"),
    [
        (2, 5, 4),
        (100, 8, None),
        pytest.param(4, 9, 8, marks=pytest.mark.campaign),
        pytest.param(1, 1, 1, marks=pytest.mark.campaign),
    ],
)
def test_killed_run_resumes_from_newest_checkpoint(pictures, uninterrupted, tmp_path, monkeypatch, every, death, kept):
    killed_at(pictures, tmp_path / "run", monkeypatch, death, every)
    assert [int(p.name) for p in (tmp_path / "run").glob("mid_epoch/*")] == ([kept] if kept else [])
    train(pictures, tmp_path / "run")
    assert_same_run(tmp_path / "run", uninterrupted)


def damage(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


def test_damaged_mid_epoch_checkpoint_is_skipped(pictures, uninterrupted, tmp_path, monkeypatch, capsys):
    killed_at(pictures, tmp_path / "run", monkeypatch, 8)
    damage(tmp_path / "run" / "mid_epoch" / "8")
    options = {"image_size": (32, 32), "epochs": 2, "input": "stream", "workers": 0}
    fr.fit(fr.TrainConfig(data=pictures, workdir=tmp_path / "run", **TINY_CONFIG | options))
    message = capsys.readouterr().out
    assert "mid_epoch/8 cannot be restored: " in message
    assert "; trying step 5" in message
    assert_same_run(tmp_path / "run", uninterrupted)


def test_checkpoint_after_fallback_is_kept(pictures, tmp_path, monkeypatch):
    killed_at(pictures, tmp_path / "run", monkeypatch, 8)
    damage(tmp_path / "run" / "mid_epoch" / "8")
    preempt_at(monkeypatch, 7)
    with pytest.raises(TrainingInterrupted):
        train(pictures, tmp_path / "run")
    assert [p.name for p in (tmp_path / "run" / "mid_epoch").iterdir()] == ["7"]


def test_only_damaged_checkpoint_raises(pictures, tmp_path, monkeypatch):
    killed_at(pictures, tmp_path / "run", monkeypatch, 4)
    damage(tmp_path / "run" / "mid_epoch" / "4")
    message = r"mid_epoch/4 cannot be restored: .*; no other checkpoint is intact; give --no-resume"
    with pytest.raises(fr.UserError, match=message):
        train(pictures, tmp_path / "run")


def test_stop_within_evaluation_saves_state(pictures, uninterrupted, tmp_path, monkeypatch):
    evaluating = []

    def evaluate(*arguments, real=trainer.evaluate):
        evaluating.append(True)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "evaluate", evaluate)
        patch.setattr(PreemptionHandler, "wanted", lambda *_: signal.SIGINT if evaluating else None)
        with pytest.raises(TrainingInterrupted) as stop:
            train(pictures, tmp_path / "run")
    assert stop.value.status == 130
    assert metric_rows(tmp_path / "run") == []
    train(pictures, tmp_path / "run")
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.fixture
def default_hangup():
    """Lets SIGHUP end the process, as in a terminal. The tests may run under `nohup`, which ignores it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_second_signal_exits_at_once(number, status):
    before = signal.getsignal(number)
    with PreemptionHandler() as handler:
        with pytest.raises(TrainingInterrupted, match="stopped; everything written so far is kept") as stop:
            signal.raise_signal(number)  # there is nothing to save yet
        assert stop.value.status == status
    with PreemptionHandler() as handler:
        handler.begin()
        assert handler.wanted() is None
        signal.raise_signal(number)
        assert handler.wanted() == number
        with pytest.raises(TrainingInterrupted):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_hangup_stops_as_sigterm(default_hangup):
    with PreemptionHandler() as handler, pytest.raises(TrainingInterrupted) as stop:
        signal.raise_signal(signal.SIGHUP)
    assert stop.value.status == 129
    with PreemptionHandler() as handler:
        handler.begin()
        for _ in range(2):  # a shell may send a second one
            signal.raise_signal(signal.SIGHUP)
        assert handler.wanted() == signal.SIGHUP
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


def test_nohup_ignores_hangup(default_hangup):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with PreemptionHandler() as handler:
        handler.begin()
        signal.raise_signal(signal.SIGHUP)
        assert handler.wanted() is None


def test_hangup_discards_terminal_output():
    """A closed terminal raises an OSError at each write. A file, as of `> log`, keeps its content."""
    program = """
import os, signal
from flaxresnet.training.preemption import PreemptionHandler
signal.signal(signal.SIGHUP, signal.SIG_DFL)
with PreemptionHandler() as handler:
    handler.begin()
    os.read(0, 1)
    signal.raise_signal(signal.SIGHUP)
    print("saving", flush=True)
    os.write(int(os.environ["REPORT"]), b"saved by " + handler.wanted().name.encode())
"""
    master, slave = os.openpty()
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=slave,
        stderr=slave,
        env=os.environ | {"REPORT": str(write)},
        pass_fds=[write],
    )
    os.close(slave)
    os.close(write)
    os.close(master)
    process.communicate(b"x")
    assert os.read(read, 100) == b"saved by SIGHUP"
    os.close(read)


def test_handler_passes_ctrl_c_on(monkeypatch):
    sent = []
    monkeypatch.setattr(preemption.distributed, "is_multiprocess", lambda: True)
    monkeypatch.setattr(preemption.distributed, "preemption_requested", lambda asked: bool(sent))
    monkeypatch.setattr(preemption.distributed, "all_gather_json", lambda handler: [False, handler])
    monkeypatch.setattr(preemption.os, "kill", lambda process, number: sent.append((process, number)))
    with PreemptionHandler() as handler:
        handler.begin()
        assert handler.wanted() is None
        signal.raise_signal(signal.SIGINT)
        assert sent == [(os.getpid(), signal.SIGTERM)]  # JAX passes it on to the other processes
        assert handler.wanted() == signal.SIGINT


def test_handler_ignores_other_threads():
    before, unchanged = signal.getsignal(signal.SIGINT), []

    def use():
        with PreemptionHandler() as handler:
            unchanged.append(signal.getsignal(signal.SIGINT) is before and handler.wanted() is None)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert unchanged == [True]


def test_dead_worker_waits_for_signal(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "SIGNAL_GRACE", 0.0)

    def broken(*_):
        raise RuntimeError("the worker is gone")
        yield

    monkeypatch.setattr("flaxresnet.data.streaming.StreamSource.train", broken)
    with pytest.raises(RuntimeError, match="the worker is gone"):
        train(pictures, tmp_path / "run")
    monkeypatch.setattr(preemption.PreemptionHandler, "wanted", lambda *_: signal.SIGTERM)
    with pytest.raises(TrainingInterrupted, match="after step 0"):
        train(pictures, tmp_path / "run")
