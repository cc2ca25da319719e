"""Stopped within an epoch, by a signal or by death, a run goes on with the next picture to the same weights."""

import json
import os
import signal
import threading

import jax
import numpy as np
import pytest
from conftest import TINY_CONFIG, draw_blobs

import flaxresnet as fr
from flaxresnet.runtime.errors import TrainingInterrupted
from flaxresnet.training import preemption, trainer
from flaxresnet.training.preemption import PreemptionHandler

FIGURES = ("epoch", "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate")


class KilledError(BaseException):
    """Nothing catches it."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return draw_blobs(tmp_path_factory.mktemp("pictures"), 44, 19)


def train(data, workdir, **options):
    given = {"image_size": (32, 32), "epochs": 2, "input": "stream", "workers": 0} | options
    return fr.fit(fr.TrainConfig(data=data, workdir=workdir, **TINY_CONFIG | given), quiet=True)


def figures(workdir):
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [[row[name] for name in FIGURES] for row in rows]


def assert_same_run(mine, theirs):
    assert figures(mine) == figures(theirs)
    weights = (fr.Classifier.load(run).variables for run in (mine, theirs))
    jax.tree.map(np.testing.assert_array_equal, *weights)


def killed_at(pictures, workdir, monkeypatch, step, every=2):
    """A run that saved at every so many steps and died before this one, counted from 0."""

    def next_batch(session, batches, state, metrics, real=trainer.next_batch):
        if state.step == step:
            session.output.checkpoints.wait()
            raise KilledError
        return real(session, batches, state, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "next_batch", next_batch)
        with pytest.raises(KilledError):
            train(pictures, workdir, checkpoint_steps=every)


def told_at(patch, step):
    """Has runs be told to stop after this step."""

    def stop_if_preempted(session, state, metrics, real=trainer.stop_if_preempted):
        patch.setattr(PreemptionHandler, "wanted", lambda _: signal.SIGTERM if state.step >= step else None)
        real(session, state, metrics)

    patch.setattr(trainer, "stop_if_preempted", stop_if_preempted)


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    train(pictures, workdir)
    return workdir


@pytest.mark.parametrize(  # of 10 steps, five in an epoch
    ("step", "source"),
    [
        (5, "stream"),
        (7, "memory"),
        pytest.param(1, "stream", marks=pytest.mark.campaign),
        pytest.param(10, "stream", marks=pytest.mark.campaign),
    ],
)
def test_a_run_that_was_told_to_stop_goes_on_with_the_next_step(
    pictures, whole, tmp_path, monkeypatch, step, source, capsys
):
    with monkeypatch.context() as patch:
        told_at(patch, step)
        with pytest.raises(
            TrainingInterrupted, match=f"stopped by SIGTERM after step {step}, saved in .* s; repeat the command"
        ):
            train(pictures, tmp_path / "run")
    assert (tmp_path / "run" / "mid_epoch" / str(step)).is_dir()
    options = TINY_CONFIG | {"image_size": (32, 32), "epochs": 2, "input": source, "workers": 0}
    fr.fit(fr.TrainConfig(data=pictures, workdir=tmp_path / "run", **options))
    within = (step - 1) % 5 + 1
    said = f"resuming {tmp_path / 'run'} in epoch {(step - 1) // 5 + 1}, after step {within} of 5"
    assert said in capsys.readouterr().out
    assert_same_run(tmp_path / "run", whole)
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
def test_a_run_that_was_killed_goes_on_from_its_newest_checkpoint(
    pictures, whole, tmp_path, monkeypatch, every, death, kept
):
    killed_at(pictures, tmp_path / "run", monkeypatch, death, every)
    assert [int(p.name) for p in (tmp_path / "run").glob("mid_epoch/*")] == ([kept] if kept else [])
    train(pictures, tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)


def damage(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


def test_a_damaged_checkpoint_within_an_epoch_is_passed_over(pictures, whole, tmp_path, monkeypatch, capsys):
    killed_at(pictures, tmp_path / "run", monkeypatch, 8)
    damage(tmp_path / "run" / "mid_epoch" / "8")
    options = {"image_size": (32, 32), "epochs": 2, "input": "stream", "workers": 0}
    fr.fit(fr.TrainConfig(data=pictures, workdir=tmp_path / "run", **TINY_CONFIG | options))
    said = capsys.readouterr().out
    assert "mid_epoch/8 cannot be restored: " in said
    assert "; trying step 5" in said
    assert_same_run(tmp_path / "run", whole)


def test_what_is_saved_after_going_back_counts(pictures, tmp_path, monkeypatch):
    killed_at(pictures, tmp_path / "run", monkeypatch, 8)
    damage(tmp_path / "run" / "mid_epoch" / "8")
    told_at(monkeypatch, 7)
    with pytest.raises(TrainingInterrupted):
        train(pictures, tmp_path / "run")
    assert [p.name for p in (tmp_path / "run" / "mid_epoch").iterdir()] == ["7"]


def test_where_nothing_else_is_left_the_damage_is_said(pictures, tmp_path, monkeypatch):
    killed_at(pictures, tmp_path / "run", monkeypatch, 4)
    damage(tmp_path / "run" / "mid_epoch" / "4")
    said = r"mid_epoch/4 cannot be restored: .*; no other checkpoint is intact; give --no-resume"
    with pytest.raises(fr.UserError, match=said):
        train(pictures, tmp_path / "run")


def test_a_stop_within_evaluation_saves_what_was_trained(pictures, whole, tmp_path, monkeypatch):
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
    assert figures(tmp_path / "run") == []
    train(pictures, tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_waits_for_the_step_and_a_second_one_does_not(number, status):
    before = signal.getsignal(number)
    with PreemptionHandler() as heard:
        with pytest.raises(TrainingInterrupted, match="stopped; everything written so far is kept") as stop:
            signal.raise_signal(number)  # nothing to save yet
        assert stop.value.status == status
    with PreemptionHandler() as heard:
        heard.begin()
        assert heard.wanted() is None
        signal.raise_signal(number)
        assert heard.wanted() == number
        with pytest.raises(TrainingInterrupted):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_ctrl_c_reaches_all_processes(monkeypatch):
    sent = []
    monkeypatch.setattr(preemption.distributed, "is_multiprocess", lambda: True)
    monkeypatch.setattr(preemption.distributed, "preemption_requested", lambda asked: bool(sent))
    monkeypatch.setattr(preemption.distributed, "all_gather_json", lambda heard: [False, heard])
    monkeypatch.setattr(preemption.os, "kill", lambda process, number: sent.append((process, number)))
    with PreemptionHandler() as heard:
        heard.begin()
        assert heard.wanted() is None
        signal.raise_signal(signal.SIGINT)
        assert sent == [(os.getpid(), signal.SIGTERM)]  # which JAX passes on to the other processes
        assert heard.wanted() == signal.SIGINT


def test_another_thread_leaves_signals_alone():
    before, found = signal.getsignal(signal.SIGINT), []

    def use():
        with PreemptionHandler() as heard:
            found.append(signal.getsignal(signal.SIGINT) is before and heard.wanted() is None)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert found == [True]


def test_a_worker_that_dies_of_the_same_signal_is_waited_for(pictures, tmp_path, monkeypatch):
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
