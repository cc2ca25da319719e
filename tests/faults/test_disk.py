"""Failing disks: corrupt checkpoints, truncated metrics, full and read-only disks, and a clock that is set back.

After each fault, the run resumes from the newest intact checkpoint, names the corrupt one with the reason, and ends
with the weights of an uninterrupted run. The fast tier damages a sample of the files.
`python -m pytest --campaign tests/faults/test_disk.py -s` truncates every file of a checkpoint and flips its bits, and
leaves more and less free space on the disk.
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
from flaxresnet.runs.checkpoint_io import EpochCheckpoints
from flaxresnet.runs.run_dir import RunDir
from flaxresnet.training import trainer

METRICS = ("epoch", "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate")


class KilledError(BaseException):
    """Simulates a killed process. No handler catches it."""


def train(data, workdir, quiet=False):
    """Trains for three epochs with the options of `finished_run`, whose compiled programs it shares."""
    return fr.fit(fr.TrainConfig(data=data, workdir=workdir, epochs=3, **TINY_CONFIG), quiet=quiet)


def metrics_of(run):
    return [[row[name] for name in METRICS] for row in RunDir(run).read_metrics()]


def assert_equal_runs(run, expected):
    assert metrics_of(run) == metrics_of(expected)
    for which in ("latest", "best"):
        variables = fr.Classifier.load(run, which).variables
        jax.tree.map(np.testing.assert_array_equal, variables, fr.Classifier.load(expected, which).variables)


@pytest.fixture(scope="module")
def interrupted_run(data_folder, tmp_path_factory):
    """A run that was killed after two epochs, with checkpoints 5 and 10."""
    workdir = tmp_path_factory.mktemp("runs") / "interrupted"

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
    assert len(metrics_of(workdir)) == 2
    return workdir


@pytest.fixture
def copy(interrupted_run, tmp_path):
    return shutil.copytree(interrupted_run, tmp_path / "copy")


def truncate(content, _):
    return content[: len(content) // 2]


def flip_bits(content, rng):
    damaged = bytearray(content)
    for index in rng.sample(range(len(content)), min(3, len(content))):
        damaged[index] ^= 1 << rng.randrange(8)
    return bytes(damaged)


DAMAGES = {"truncated": truncate, "flipped": flip_bits}


def files_of(checkpoint):
    return sorted(path.relative_to(checkpoint) for path in checkpoint.rglob("*") if path.is_file())


def resume_damaged(interrupted_run, finished_run, data_folder, copy, capsys, names, damage):
    """Damages files of the newest checkpoint and resumes the run. Returns whether training fell back to step 5."""
    rng = random.Random(0)
    shutil.copytree(interrupted_run, copy)
    assert names
    for name in names:
        file = copy / "checkpoints" / "10" / name
        file.write_bytes(DAMAGES[damage](file.read_bytes(), rng))
    train(data_folder, copy)
    output = capsys.readouterr().out.replace("\n", " ")
    fell_back = "10 cannot be restored: " in output and (copy / "corrupt").is_dir()
    assert fell_back == ("after epoch 1 of" in output)
    if fell_back:
        assert len([*(copy / "corrupt").iterdir()]) == 1
    assert_equal_runs(copy, finished_run)
    return fell_back


def test_corrupt_checkpoint_costs_one_epoch(interrupted_run, finished_run, data_folder, tmp_path, capsys):
    files = files_of(interrupted_run / "checkpoints" / "10")
    arrays = [path for path in files if path.match("params/*/d/*")]  # the files with values differ between runs
    metrics = [path for path in files if path.name == "metrics"]
    for names, damage in ((arrays, "flipped"), (metrics, "truncated")):
        folder = tmp_path / damage
        assert resume_damaged(interrupted_run, finished_run, data_folder, folder, capsys, names, damage), damage


def test_damaged_older_metrics_cost_nothing(finished_run, data_folder, copy, capsys):
    (copy / "checkpoints" / "5" / "metrics" / "metrics").write_text("")
    train(data_folder, copy)
    output = capsys.readouterr().out
    assert "checkpoints/5 cannot be restored: its metrics are damaged" in output
    assert "after epoch 2 of 3" in output
    assert metrics_of(copy) == metrics_of(finished_run)


@pytest.mark.campaign
def test_damaged_files_cost_one_epoch(interrupted_run, finished_run, data_folder, tmp_path, capsys):
    outcomes = Counter()
    max_seconds = 0.0
    for name in files_of(interrupted_run / "checkpoints" / "10"):
        for damage in DAMAGES:
            start = time.monotonic()
            folder = tmp_path / "damaged"
            fell_back = resume_damaged(interrupted_run, finished_run, data_folder, folder, capsys, [name], damage)
            max_seconds = max(max_seconds, time.monotonic() - start)
            shutil.rmtree(folder)
            outcomes[damage, "fell back to step 5" if fell_back else "did no harm"] += 1
    with capsys.disabled():
        print(f"\n{dict(outcomes)}, at most {max_seconds:.1f} s to the end")


@pytest.mark.parametrize("name", ["metrics/metrics", "params/manifest.ocdbt"])
def test_resume_refuses_corrupt_checkpoints(copy, data_folder, name):
    for step in ("5", "10"):
        (copy / "checkpoints" / step / name).write_bytes(b"")
    before = sorted(str(path) for path in copy.rglob("*"))
    with pytest.raises(fr.UserError, match=r"cannot be restored: .*no other checkpoint is intact"):
        train(data_folder, copy)
    assert sorted(str(path) for path in copy.rglob("*")) == before


def test_flipped_bit_is_refused(interrupted_run, copy):
    expected = fr.Classifier.load(interrupted_run).variables
    refused = 0
    for file in (copy / "checkpoints" / "10" / "params").glob("**/d/*"):
        content = file.read_bytes()
        file.write_bytes(flip_bits(content, random.Random(0)))
        try:
            variables = fr.Classifier.load(copy).variables
        except fr.UserError as error:
            refused += "10 cannot be restored: " in str(error)
        else:  # a file without values
            jax.tree.map(np.testing.assert_array_equal, variables, expected)
        file.write_bytes(content)
    assert refused


def test_truncated_metrics_are_rewritten(copy, finished_run, data_folder):
    path = copy / "metrics.jsonl"
    content = path.read_bytes()
    for length, epochs in ((len(content) - 40, [1]), (len(content) // 2 + 10, [1]), (1, [])):
        path.write_bytes(content[:length])
        assert [row["epoch"] for row in RunDir(copy).read_metrics()] == epochs
    path.write_bytes(content[:-40])
    train(data_folder, copy)
    assert_equal_runs(copy, finished_run)


def test_clock_set_back_changes_nothing(copy, finished_run, data_folder, monkeypatch):
    calls = []

    def backwards():
        calls.append(None)
        return 1_000_000_000.0 - 3600 * len(calls)

    with monkeypatch.context() as patch:
        patch.setattr(time, "time", backwards)
        patch.setattr(time, "time_ns", lambda: int(backwards() * 1e9))
        train(data_folder, copy)
    assert len(calls) > 3
    assert_equal_runs(copy, finished_run)
    with EpochCheckpoints(copy / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.latest_step() == 15


def sizes(size, *campaign):
    """Returns parameters: a size for the fast tier, and sizes for the campaign."""
    return [size, *(pytest.param(other, marks=pytest.mark.campaign) for other in campaign)]


@contextmanager
def limit_file_size(size):
    """Makes writes beyond `size` bytes of a file fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", sizes(2000, 100, 8000))
def test_run_resumes_after_failed_write(copy, finished_run, data_folder, size):
    best = fr.evaluate(copy, data_folder, checkpoint="best").accuracy
    with limit_file_size(size), pytest.raises(fr.UserError, match=r"cannot be written.*(File too large|No space)"):
        train(data_folder, copy, quiet=True)  # quiet, because pytest writes printed text to a file
    assert fr.evaluate(copy, data_folder, checkpoint="best").accuracy >= best
    train(data_folder, copy)
    assert_equal_runs(copy, finished_run)


@pytest.fixture
def mount_disk(tmp_path):
    """Returns a function that mounts a disk of so many KiB, which only root may do."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size):
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", str(folder)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("only root may mount a disk")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True)


@pytest.mark.parametrize("free_kib", sizes(160, 40, 100, 250))
def test_run_resumes_after_full_disk(interrupted_run, finished_run, data_folder, mount_disk, free_kib):
    size = sum(path.stat().st_blocks for path in interrupted_run.rglob("*")) // 2
    disk = mount_disk(size + 4096)
    run = shutil.copytree(interrupted_run, disk / "run")
    ballast = disk / "ballast"
    free = shutil.disk_usage(disk).free
    ballast.write_bytes(bytes(max(0, free - free_kib * 1024)))
    before = fr.evaluate(run, data_folder, checkpoint="best").accuracy
    with pytest.raises(fr.UserError, match=r"cannot be written.*No space left on device"):
        train(data_folder, run)
    assert fr.evaluate(run, data_folder, checkpoint="best").accuracy >= before
    ballast.unlink()
    train(data_folder, run)
    assert_equal_runs(run, finished_run)


def test_read_only_run_stays_unchanged(interrupted_run, data_folder, mount_disk):
    disk = mount_disk(8192)
    run = shutil.copytree(interrupted_run, disk / "run")
    before = {str(path): path.stat().st_mtime_ns for path in run.rglob("*")}
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(fr.UserError, match="cannot be written: Read-only file system"):
        train(data_folder, run)
    assert {str(path): path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert fr.evaluate(run, data_folder).count == 19  # evaluation writes no files


def test_failed_first_step_keeps_epochs(copy, finished_run, data_folder, monkeypatch):
    """A resumed run records its number of epochs before its first step, which then runs out of memory."""
    path = copy / "config.json"
    values = json.loads(path.read_text())
    values["config"]["epochs"] = 2
    path.write_text(json.dumps(values))

    def fail(text):
        def next_batch(*_):
            raise jax.errors.JaxRuntimeError(text)

        return next_batch

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "next_batch", fail("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.\nmore"))
        message = (
            r"not enough memory for --batch-size 8 \(RESOURCE_EXHAUSTED: .* 123 bytes.\); give a smaller one, or --"
        )
        with pytest.raises(fr.UserError, match=message):
            train(data_folder, copy)
        patch.setattr(trainer, "next_batch", fail("INTERNAL"))
        with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
            train(data_folder, copy)
    assert json.loads(path.read_text())["config"]["epochs"] == 3
    train(data_folder, copy)
    assert_equal_runs(copy, finished_run)
