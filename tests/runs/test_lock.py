"""The lock on a run's folder."""

import errno
import os
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import TINY_CONFIG

import flaxresnet as fr
import train
from flaxresnet.cli import exit_status
from flaxresnet.runs import lock
from flaxresnet.runs.lock import NAME, WorkdirLock
from flaxresnet.runs.run_dir import RunDir

HOLDER = """
import sys
from pathlib import Path
from flaxresnet.runs.lock import WorkdirLock
with WorkdirLock(print) as lock:
    lock.acquire(Path(sys.argv[1]))
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Starts a process that holds the lock of `tmp_path / "run"`."""
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_train_refuses_locked_folder(holder, data_folder, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    flags = ["--data", str(data_folder), "--workdir", str(run), "--no-report"]
    for more in ([], ["--no-resume"]):
        monkeypatch.setattr(sys, "argv", ["train.py", *flags, *more])
        assert exit_status.run(train.main) == 2
        assert capsys.readouterr().err.splitlines() == [
            f"error: --workdir {run} is in use by another training (process {holder.pid} on {os.uname().nodename}); "
            "wait for it, or give another --workdir"
        ]
        assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_killed_process_releases_lock(holder, tmp_path):
    with WorkdirLock(print) as own:
        with pytest.raises(fr.UserError, match="is in use by another training"):
            own.acquire(tmp_path / "run")
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        assert (tmp_path / "run" / NAME).exists()
        own.acquire(tmp_path / "run")
        assert f"process {os.getpid()} on" in (tmp_path / "run" / NAME).read_text()
    assert not (tmp_path / "run" / NAME).exists()


def test_lock_follows_renamed_folder(tmp_path):
    (tmp_path / "a").mkdir()
    with WorkdirLock(print) as first, WorkdirLock(print) as second:
        first.acquire(tmp_path / "a")
        (tmp_path / "a").rename(tmp_path / "b")
        first.rename(tmp_path / "b")
        (tmp_path / "a").mkdir()
        second.acquire(tmp_path / "a")
        first.release()
        assert not (tmp_path / "b" / NAME).exists()
        with pytest.raises(fr.UserError, match="is in use by another training"):
            first.acquire(tmp_path / "a")


def test_acquire_replaces_deleted_file(tmp_path, monkeypatch):
    deleted = []

    def flock(handle, how, real=lock.fcntl.flock):
        if not deleted:
            deleted.append((tmp_path / NAME).unlink())
        real(handle, how)

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with WorkdirLock(print) as own, WorkdirLock(print) as other:
        own.acquire(tmp_path)
        assert deleted
        with pytest.raises(fr.UserError, match="is in use by another training"):
            other.acquire(tmp_path)


def test_acquire_tolerates_missing_locks(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    notes = []
    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with WorkdirLock(notes.append) as own:
        own.acquire(tmp_path)
    (message,) = notes
    assert f"the disk of {tmp_path} does not support locks (No locks available); run only one" in message
    monkeypatch.setattr(lock, "fcntl", None)
    with WorkdirLock(notes.append) as own:
        own.acquire(tmp_path)
    assert len(notes) == 1


def test_fit_holds_lock(finished_run, data_folder, tmp_path, monkeypatch):
    def write_metrics(*arguments, real=RunDir.write_metrics):
        with WorkdirLock(print) as other, pytest.raises(fr.UserError, match="is in use by another training"):
            other.acquire(copy)
        calls.append(True)
        real(*arguments)

    copy = shutil.copytree(finished_run, tmp_path / "copy")
    calls = []
    monkeypatch.setattr(RunDir, "write_metrics", write_metrics)
    fr.fit(fr.TrainConfig(data=data_folder, workdir=copy, epochs=3, **TINY_CONFIG), quiet=True)
    assert calls == [True]
    assert sorted(path.name for path in copy.iterdir()) == ["checkpoints", "config.json", "metrics.jsonl"]
