"""Which checkpoint a run goes on from where its processes do not all see the same ones."""

import shutil

import pytest
from conftest import SMALL

import flaxresnet as fr
from flaxresnet.training import saved
from flaxresnet.training.run_folder import RunFolder
from flaxresnet.training.saved import Saved

EPOCHS = 1  # the place of epochs' checkpoints among the kinds; each is five steps long


@pytest.fixture
def run(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "run")


def test_the_steps_that_all_processes_see_count(run, monkeypatch):
    with Saved(RunFolder(run), print) as kept:
        assert kept.there() == [(10, EPOCHS), (15, EPOCHS)]
        monkeypatch.setattr(saved, "gathered", lambda mine: [mine, [[5, EPOCHS], [10, EPOCHS]]])
        assert kept.there() == [(10, EPOCHS)]
        monkeypatch.setattr(saved, "gathered", lambda mine: [[], []])
        assert kept.there() == []


def test_a_run_goes_on_from_the_newest_of_them(run, data_folder, monkeypatch):
    monkeypatch.setattr(saved, "gathered", lambda mine: [mine, [[10, EPOCHS]]])
    config = fr.TrainConfig(data=data_folder, workdir=run, epochs=3, augment=0.0, **SMALL)
    before = RunFolder(run).read_metrics()
    history = fr.fit(config, verbose=False).history
    assert [row["step"] for row in history] == [5, 10, 15]
    assert history[1] == before[1]
    assert history[2]["test_loss"] == before[2]["test_loss"]


def test_a_folder_that_only_some_processes_have_is_a_sentence(run, monkeypatch):
    monkeypatch.setattr(saved, "gathered", lambda mine: [mine, []])
    with (
        Saved(RunFolder(run), print) as kept,
        pytest.raises(fr.UserError, match=r"the processes see different .* \(th"),
    ):
        kept.there()
