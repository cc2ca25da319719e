"""The checkpoint that a run resumes from if its processes see different ones."""

import shutil

import pytest
from conftest import TINY_CONFIG

import flaxresnet as fr
from flaxresnet.runs import checkpoint_store
from flaxresnet.runs.checkpoint_store import CheckpointStore
from flaxresnet.runs.run_dir import RunDir

EPOCHS = 1  # the index of the manager of epochs' checkpoints; an epoch has five steps


@pytest.fixture
def run(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "run")


def test_available_steps_are_common_ones(run, monkeypatch):
    with CheckpointStore(RunDir(run), print) as store:
        assert store.available_steps() == [(10, EPOCHS), (15, EPOCHS)]
        monkeypatch.setattr(checkpoint_store, "all_gather_json", lambda value: [value, [[5, EPOCHS], [10, EPOCHS]]])
        assert store.available_steps() == [(10, EPOCHS)]
        monkeypatch.setattr(checkpoint_store, "all_gather_json", lambda value: [[], []])
        assert store.available_steps() == []


def test_available_steps_reject_separate_disks(run, monkeypatch):
    monkeypatch.setattr(checkpoint_store, "all_gather_json", lambda value: [value, []])
    with (
        CheckpointStore(RunDir(run), print) as store,
        pytest.raises(fr.UserError, match=r"the processes see different checkpoints in .* \(this one sees 2\)"),
    ):
        store.available_steps()


def test_run_resumes_from_common_step(run, data_folder, monkeypatch):
    def all_gather_json(value):
        return [value, [[10, EPOCHS]] if isinstance(value, list) else value]

    monkeypatch.setattr(checkpoint_store, "all_gather_json", all_gather_json)
    config = fr.TrainConfig(data=data_folder, workdir=run, epochs=3, **TINY_CONFIG)
    before = RunDir(run).read_metrics()
    history = fr.fit(config, quiet=True).history
    assert [row["step"] for row in history] == [5, 10, 15]
    assert history[1] == before[1]
    assert history[2]["test_loss"] == before[2]["test_loss"]


def test_corruption_in_other_process_counts(run, data_folder, monkeypatch, capsys):
    errors = ["checkpoint 15 cannot be restored: the checksum of its training does not match"]

    def all_gather_json(value):  # the other process cannot read its part of the first checkpoint
        other = value
        if isinstance(value, str):
            other = errors.pop() if errors else ""
        return [value, other]

    monkeypatch.setattr(checkpoint_store, "all_gather_json", all_gather_json)
    config = fr.TrainConfig(data=data_folder, workdir=run, epochs=3, **TINY_CONFIG)
    before = RunDir(run).read_metrics()
    assert fr.fit(config).history[2]["test_loss"] == before[2]["test_loss"]
    assert not errors
    assert "the checksum of its training does not match; trying step 10" in capsys.readouterr().out
    assert [path.name for path in (run / "corrupt").iterdir()] == ["checkpoints-15.1"]
