"""Which checkpoint a run goes on from where its processes do not all see the same ones."""

import shutil

import pytest
from conftest import TINY_CONFIG

import flaxresnet as fr
from flaxresnet.runs import checkpoint_store
from flaxresnet.runs.checkpoint_store import CheckpointStore
from flaxresnet.runs.run_dir import RunDir

EPOCHS = 1  # the place of epochs' checkpoints among the kinds; each is five steps long


@pytest.fixture
def run(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "run")


def test_the_steps_that_all_processes_see_count(run, monkeypatch):
    with CheckpointStore(RunDir(run), print) as kept:
        assert kept.available_steps() == [(10, EPOCHS), (15, EPOCHS)]
        monkeypatch.setattr(checkpoint_store, "all_gather_json", lambda mine: [mine, [[5, EPOCHS], [10, EPOCHS]]])
        assert kept.available_steps() == [(10, EPOCHS)]
        monkeypatch.setattr(checkpoint_store, "all_gather_json", lambda mine: [[], []])
        assert kept.available_steps() == []


def test_a_run_goes_on_from_the_newest_of_them(run, data_folder, monkeypatch):
    monkeypatch.setattr(
        checkpoint_store, "all_gather_json", lambda mine: [mine, [[10, EPOCHS]] if isinstance(mine, list) else mine]
    )
    config = fr.TrainConfig(data=data_folder, workdir=run, epochs=3, **TINY_CONFIG)
    before = RunDir(run).read_metrics()
    history = fr.fit(config, quiet=True).history
    assert [row["step"] for row in history] == [5, 10, 15]
    assert history[1] == before[1]
    assert history[2]["test_loss"] == before[2]["test_loss"]


def test_what_is_damaged_to_one_process_alone_is_passed_over_by_all(run, data_folder, monkeypatch, capsys):
    damage = ["checkpoint 15 cannot be restored: the checksum of its training does not match"]

    def all_gather_json(mine):  # another process, which cannot read its part of the first that they try
        return [mine, (damage.pop() if damage else "") if isinstance(mine, str) else mine]

    monkeypatch.setattr(checkpoint_store, "all_gather_json", all_gather_json)
    config = fr.TrainConfig(data=data_folder, workdir=run, epochs=3, **TINY_CONFIG)
    before = RunDir(run).read_metrics()
    assert fr.fit(config).history[2]["test_loss"] == before[2]["test_loss"]
    assert not damage
    said = capsys.readouterr().out
    assert "cannot be restored: the checksum of its training does not match; trying step 10" in said
    assert [path.name for path in (run / "corrupt").iterdir()] == ["checkpoints-15.1"]


def test_a_folder_that_only_some_processes_have_is_a_sentence(run, monkeypatch):
    monkeypatch.setattr(checkpoint_store, "all_gather_json", lambda mine: [mine, []])
    with (
        CheckpointStore(RunDir(run), print) as kept,
        pytest.raises(fr.UserError, match=r"the processes see different .* \(th"),
    ):
        kept.available_steps()
