"""A disk that fails: damaged checkpoints, half a table, no room, no permission, a clock that goes back.

After each the run goes on from the newest intact checkpoint, says which one and why, and ends with the weights of a run
that was left alone. A sample in every run of the tests; `python -m pytest --campaign tests/faults/test_disk.py -s`
damages every file of a checkpoint, cut off and with flipped bits, and leaves more and less room on the disk.
"""

import json
import random
import resource
import shutil
import subprocess
import time
from collections import Counter
from contextlib import contextmanager

import jax
import numpy as np
import pytest
from conftest import TINY_CONFIG

import flaxresnet as fr
from flaxresnet.runs.checkpoint_manager import EpochCheckpoints
from flaxresnet.runs.run_dir import RunDir
from flaxresnet.training import trainer

FIGURES = ("epoch", "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate")


class KilledError(BaseException):
    """Nothing catches it."""


def train(data, workdir, quiet=False):
    """Trains to the third epoch: the options of `finished_run`, with which it shares its programs."""
    return fr.fit(fr.TrainConfig(data=data, workdir=workdir, epochs=3, **TINY_CONFIG), quiet=quiet)


def figures(workdir):
    return [[row[name] for name in FIGURES] for row in RunDir(workdir).read_metrics()]


def assert_same_run(mine, theirs):
    assert figures(mine) == figures(theirs)
    for which in ("latest", "best"):
        weights = (fr.Classifier.load(run, which).variables for run in (mine, theirs))
        jax.tree.map(np.testing.assert_array_equal, *weights)


@pytest.fixture(scope="module")
def whole(finished_run):
    """A run of three epochs that was left alone."""
    return finished_run


@pytest.fixture(scope="module")
def begun(data_folder, tmp_path_factory):
    """The same after two epochs, with checkpoints 5 and 10."""
    workdir = tmp_path_factory.mktemp("runs") / "begun"

    def next_batch(session, batches, state, metrics, real=trainer.next_batch):
        if state.step == 10:
            session.output.checkpoints.wait()
            raise KilledError
        return real(session, batches, state, metrics)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "next_batch", next_batch)
        with pytest.raises(KilledError):
            train(data_folder, workdir)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["10", "5"]
    assert len(figures(workdir)) == 2
    return workdir


def cut(content, _):
    return content[: len(content) // 2]


def flipped(content, rng):
    damaged = bytearray(content)
    for place in rng.sample(range(len(content)), min(3, len(content))):
        damaged[place] ^= 1 << rng.randrange(8)
    return bytes(damaged)


DAMAGES = {"cut": cut, "flipped": flipped}


def files_of(checkpoint):
    return sorted(path.relative_to(checkpoint) for path in checkpoint.rglob("*") if path.is_file())


def worst_damages(checkpoint):
    """What is damaged together and how, of the kinds that are worst to miss."""
    files = files_of(checkpoint)
    arrays = [path for path in files if path.match("params/*/d/*")]  # which of them hold values differs
    return [(arrays, "flipped"), ([path for path in files if path.name == "metrics"], "cut")]


def go_on_damaged(begun, whole, data_folder, copy, capsys, damage):
    """Damages files of the newest checkpoint, together and in one way, and trains on: whether it went back."""
    (names, kind), rng = damage, random.Random(0)
    shutil.copytree(begun, copy)
    assert names
    for name in names:
        file = copy / "checkpoints" / "10" / name
        file.write_bytes(DAMAGES[kind](file.read_bytes(), rng))
    train(data_folder, copy)
    said = capsys.readouterr().out.replace("\n", " ")
    back = "10 cannot be restored: " in said and (copy / "corrupt").is_dir()
    assert back == ("after epoch 1 of" in said)
    if back:
        assert len([*(copy / "corrupt").iterdir()]) == 1  # put aside, not deleted
    assert_same_run(copy, whole)
    return back


def test_damage_to_the_newest_checkpoint_is_said_and_costs_an_epoch_at_most(
    begun, whole, data_folder, tmp_path, capsys
):
    for number, damage in enumerate(worst_damages(begun / "checkpoints" / "10")):
        assert go_on_damaged(begun, whole, data_folder, tmp_path / str(number), capsys, damage), damage


@pytest.mark.campaign
def test_damage_to_any_file_costs_an_epoch(begun, whole, data_folder, tmp_path, capsys):
    outcomes, longest = Counter(), 0.0
    for name in files_of(begun / "checkpoints" / "10"):
        for kind in DAMAGES:
            start = time.monotonic()
            back = go_on_damaged(begun, whole, data_folder, tmp_path / "copy", capsys, ([name], kind))
            longest = max(longest, time.monotonic() - start)
            shutil.rmtree(tmp_path / "copy")
            outcomes[kind, "went back to step 5" if back else "did no harm"] += 1
    with capsys.disabled():
        print(f"\n{dict(outcomes)}, at most {longest:.1f} s to the end")


def test_where_no_checkpoint_is_intact_nothing_is_lost_or_begun_anew_unasked(begun, data_folder, tmp_path):
    for name in ("metrics/metrics", "params/manifest.ocdbt"):
        copy = shutil.copytree(begun, tmp_path / name.replace("/", "-"))
        for step in ("5", "10"):
            (copy / "checkpoints" / step / name).write_bytes(b"")
        before = sorted(str(path) for path in copy.rglob("*"))
        with pytest.raises(fr.UserError, match=r"cannot be restored: .*no other checkpoint is intact"):
            train(data_folder, copy)
        assert sorted(str(path) for path in copy.rglob("*")) == before


def test_a_flipped_bit_is_refused_or_changes_nothing(begun, tmp_path):
    copy, whole = shutil.copytree(begun, tmp_path / "copy"), fr.Classifier.load(begun).variables
    refused = 0
    for file in (copy / "checkpoints" / "10" / "params").glob("**/d/*"):  # which of them hold the arrays differs
        content = file.read_bytes()
        file.write_bytes(flipped(content, random.Random(0)))
        try:
            found = fr.Classifier.load(copy).variables
        except fr.UserError as error:
            refused += "10 cannot be restored: " in str(error)
        else:
            jax.tree.map(np.testing.assert_array_equal, found, whole)
        file.write_bytes(content)
    assert refused


def test_half_a_row_of_figures_is_written_again(begun, whole, data_folder, tmp_path):
    copy = shutil.copytree(begun, tmp_path / "copy")
    rows = (copy / "metrics.jsonl").read_bytes()
    for kept in (len(rows) - 40, len(rows) // 2 + 10, 1):
        (copy / "metrics.jsonl").write_bytes(rows[:kept])
        found = RunDir(copy).read_metrics()
        assert [row["epoch"] for row in found] == ([1] if kept > len(rows) // 2 else [])
    (copy / "metrics.jsonl").write_bytes(rows[:-40])
    train(data_folder, copy)
    assert_same_run(copy, whole)


def test_a_clock_that_goes_back_changes_nothing(begun, whole, data_folder, tmp_path, monkeypatch):
    copy, calls = shutil.copytree(begun, tmp_path / "copy"), []

    def backwards():
        calls.append(None)
        return 1_000_000_000.0 - 3600 * len(calls)

    with monkeypatch.context() as patch:
        patch.setattr(time, "time", backwards)
        patch.setattr(time, "time_ns", lambda: int(backwards() * 1e9))
        train(data_folder, copy)
    assert len(calls) > 3
    assert_same_run(copy, whole)
    with EpochCheckpoints(copy / "checkpoints", read_only=True) as kept:
        assert kept.latest_step() == 15


def rooms(usual, *others):
    """How much room there is left: the others are for the campaign."""
    return [usual, *(pytest.param(room, marks=pytest.mark.campaign) for room in others)]


@contextmanager
def files_of_at_most(size):
    """No file may grow beyond this, as where a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", rooms(2000, 100, 8000))
def test_no_room_for_a_checkpoint_is_a_sentence_and_the_run_goes_on_when_there_is(
    begun, whole, data_folder, tmp_path, room
):
    copy = shutil.copytree(begun, tmp_path / "copy")
    best = fr.evaluate(copy, data_folder, checkpoint="best").accuracy
    with files_of_at_most(room), pytest.raises(fr.UserError, match=r"cannot be written.*(File too large|No space)"):
        train(data_folder, copy, quiet=True)  # or pytest, which writes down what is printed, has no room either
    assert fr.evaluate(copy, data_folder, checkpoint="best").accuracy >= best
    train(data_folder, copy)
    assert_same_run(copy, whole)


@pytest.fixture
def disk(tmp_path):
    """Makes a disk of so many KiB, mounted; only root may."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size):
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", str(folder)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("only root may mount a disk to fill")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True)


@pytest.mark.parametrize("room", rooms(160, 40, 100, 250))
def test_a_full_disk_is_a_sentence_and_the_run_goes_on_when_there_is_room(begun, whole, data_folder, disk, room):
    size = sum(path.stat().st_blocks for path in begun.rglob("*")) // 2
    folder = disk(size + 4096)
    copy = shutil.copytree(begun, folder / "copy")
    ballast = folder / "ballast"
    free = shutil.disk_usage(folder).free
    ballast.write_bytes(bytes(max(0, free - room * 1024)))
    before = fr.evaluate(copy, data_folder, checkpoint="best").accuracy
    with pytest.raises(fr.UserError, match=r"cannot be written.*No space left on device"):
        train(data_folder, copy)
    assert fr.evaluate(copy, data_folder, checkpoint="best").accuracy >= before
    ballast.unlink()
    train(data_folder, copy)
    assert_same_run(copy, whole)


def test_a_folder_that_may_only_be_read_is_a_sentence_and_left_as_it_is(begun, data_folder, disk):
    folder = disk(8192)
    copy = shutil.copytree(begun, folder / "copy")
    before = {str(path): path.stat().st_mtime_ns for path in copy.rglob("*")}
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    with pytest.raises(fr.UserError, match="cannot be written: Read-only file system"):
        train(data_folder, copy)
    assert {str(path): path.stat().st_mtime_ns for path in copy.rglob("*")} == before
    assert fr.evaluate(copy, data_folder).count == 19  # reading needs no more


def test_too_little_memory_at_the_first_step_says_what_to_lower(data_folder, begun, whole, tmp_path, monkeypatch):
    copy = shutil.copytree(begun, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config["config"]["epochs"] = 2  # as if the third were asked for now
    (copy / "config.json").write_text(json.dumps(config))

    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.\nmore")

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "next_batch", full)
        said = r"not enough memory for --batch-size 8 \(RESOURCE_EXHAUSTED: .* 123 bytes.\); give a smaller one, or --"
        with pytest.raises(fr.UserError, match=said):
            train(data_folder, copy)
        patch.setattr(trainer, "next_batch", lambda *_: (_ for _ in ()).throw(jax.errors.JaxRuntimeError("INTERNAL")))
        with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
            train(data_folder, copy)
    assert json.loads((copy / "config.json").read_text())["config"]["epochs"] == 3
    train(data_folder, copy)
    assert_same_run(copy, whole)
