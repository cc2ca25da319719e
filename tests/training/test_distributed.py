"""Tests of runs with several processes on one machine, which communicate over loopback."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import XLA_TEST_FLAGS, draw_blobs

import flaxresnet as fr
from flaxresnet.config.train_config import TrainConfig
from flaxresnet.runtime import distributed
from flaxresnet.runtime.errors import UserError

ROOT = str(Path(__file__).parents[2])
PROGRAM = """
import sys
sys.path.append(sys.argv[1])
from flaxresnet.cli import exit_status
from flaxresnet.models.resnet import SIZES
SIZES["resnet14"] = {"stage_sizes": (1,), "bottleneck": False}  # as in the tests' own process
if "--endless" in sys.argv:  # an evaluation that never ends
    import itertools, time
    from flaxresnet.data.loader import Loader
    once = Loader.eval_batches
    def endless(self):
        print("evaluating", flush=True)
        for _ in itertools.count():
            for batch in once(self):
                time.sleep(0.05)
                yield batch
    Loader.eval_batches = endless
    sys.argv.remove("--endless")
sys.argv = ["train.py", *sys.argv[2:]]
import train
sys.exit(exit_status.run(train.main))
"""
FLAGS = ["--model", "resnet14", "--width", "4", "--batch-size", "8", "--image-size", "32", "32", "--no-report"]
FLAGS += ["--recipe", "fast", "--optimizer", "sgd", "--learning-rate", "0.01", "--input", "stream", "--workers", "0"]
FIGURES = ("epoch", "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy")
PATIENCE = 240  # seconds
EPOCHS = 8  # of the compared runs; long enough to stop one and to kill a process
processes_of_a_run = pytest.mark.parity


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return draw_blobs(tmp_path_factory.mktemp("pictures"), 68, 18)


@pytest.fixture
def start(cache, pictures, tmp_path):
    """Starts the processes of one run. Each writes its output to a log file."""
    begun = []

    def start(count, workdir, *flags, slurm=False):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        explicit = count > 1 and not slurm
        together = ["--coordinator-address", address, "--num-processes", str(count)] if explicit else []
        environment = os.environ | {
            "XLA_FLAGS": XLA_TEST_FLAGS,
            "JAX_PLATFORMS": "cpu",
            "XDG_CACHE_HOME": str(cache),
            "PYTHONUNBUFFERED": "1",
        }
        processes = []
        for number in range(count):
            local = [*together, "--process-id", str(number)] if together else []
            if slurm:  # the variables that srun sets
                tasks = {"JOB_ID": address.rpartition(":")[2], "STEP_NODELIST": "localhost", "NTASKS": count}
                tasks |= {"PROCID": number, "LOCALID": number, "STEP_TASKS_PER_NODE": count}
                environment |= {f"SLURM_{name}": str(value) for name, value in tasks.items()}
                local = ["--distributed"]
            argv = [sys.executable, "-c", PROGRAM, ROOT, "--data", str(pictures), "--workdir", str(workdir)]
            output = (tmp_path / f"{workdir.name}-{number}.log").open("w")
            argv += [*FLAGS, *map(str, flags), *local]
            process = subprocess.Popen(argv, env=environment, stdout=output, stderr=output)
            process.log = Path(output.name)
            processes.append(process)
        begun.extend(processes)
        return processes

    yield start
    for process in begun:
        process.kill()


def statuses(processes):
    return [process.wait(PATIENCE) for process in processes]


def figures(workdir):
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [[row[name] for name in FIGURES] for row in rows]


def until_epoch(workdir, epoch, processes):
    """Waits until the run has trained `epochs` epochs."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and all(process.poll() is None for process in processes):
        if (workdir / "metrics.jsonl").exists() and len(figures(workdir)) >= epoch:
            return
        time.sleep(0.02)
    raise AssertionError("\n".join(process.log.read_text() for process in processes))


def until_said(words, processes):
    """Waits until process 0 has printed the text."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and all(process.poll() is None for process in processes):
        if words in processes[0].log.read_text():
            return
        time.sleep(0.02)
    raise AssertionError("\n".join(process.log.read_text() for process in processes))


@pytest.fixture(scope="module")
def one_process(pictures, tmp_path_factory):
    """Returns the folder of a run with one process."""
    options = {
        "optimizer": "sgd",
        "learning_rate": 0.01,
        "epochs": EPOCHS,
        "model": "resnet14",
        "width": 4,
        "batch_size": 8,
        "image_size": (32, 32),
        "report": False,
    }
    workdir = tmp_path_factory.mktemp("one") / "run"
    fr.fit(TrainConfig(data=pictures, workdir=workdir, recipe="fast", **options), quiet=True)
    return workdir


def assert_same_training(run, expected, exact=False):
    """Asserts that two runs have equal metrics and weights, up to the rounding of about twenty steps."""
    weights, expected_weights = (fr.Classifier.load(folder).variables for folder in (run, expected))
    if exact:
        assert figures(run) == figures(expected)
        jax.tree.map(np.testing.assert_array_equal, weights, expected_weights)
        return
    for row, expected_row in zip(figures(run), figures(expected), strict=True):
        assert row == pytest.approx(expected_row, rel=1e-5, abs=1e-5)  # a test loss of 0.05 is small
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), weights, expected_weights)


@pytest.mark.parametrize(
    ("count", "slurm", "flags"),
    [
        pytest.param(2, True, ["--input", "memory"], id="2, by Slurm, in memory", marks=processes_of_a_run),
        pytest.param(2, False, ["--shard-optimizer"], id="2, sharded", marks=pytest.mark.campaign),
        pytest.param(4, False, [], id="4", marks=pytest.mark.campaign),
    ],
)
def test_processes_train_as_one(start, tmp_path, one_process, count, slurm, flags):
    processes = start(count, tmp_path / "run", "--epochs", EPOCHS, *flags, slurm=slurm)
    assert statuses(processes) == [0] * count, processes[0].log.read_text()
    assert_same_training(tmp_path / "run", one_process)
    assert "Test Accuracy = " in processes[0].log.read_text()
    for process in processes[1:]:  # only process 0 prints
        lines = process.log.read_text().splitlines()
        assert [line for line in lines if "Gloo" not in line and not line.startswith("WARNING:jax")] == []


def lose_a_process(start, workdir, count, epochs):
    """Kills one process of a run after an epoch. The others exit by themselves."""
    before = len(figures(workdir)) if workdir.exists() else 0
    processes = start(count, workdir, "--epochs", epochs, "--checkpoint-steps", "3")
    until_epoch(workdir, before + 1, processes)
    processes[-1].kill()
    lost = time.monotonic()
    for left in processes[:-1]:
        assert left.wait(PATIENCE) in (distributed.EXIT_TEMPFAIL, -signal.SIGABRT)
    assert time.monotonic() - lost < distributed.HEARTBEAT_TIMEOUT
    message = processes[0].log.read_text()
    assert "start all processes again to resume from the last checkpoint" in message or "another task died" in message
    assert len(figures(workdir)) < epochs


@processes_of_a_run
def test_run_survives_stopped_and_lost_processes(start, tmp_path, one_process):
    """Stops two processes by SIGTERM to one, resumes, kills one, and resumes with a single process."""
    run = tmp_path / "run"
    processes = start(2, run, "--epochs", EPOCHS, "--checkpoint-steps", "3")
    until_epoch(run, 1, processes)
    processes[1].send_signal(signal.SIGTERM)
    assert statuses(processes) == [143, 143]
    assert "stopped by SIGTERM after step" in processes[0].log.read_text()
    lose_a_process(start, run, 2, EPOCHS)
    alone = start(1, run, "--epochs", EPOCHS, "--checkpoint-steps", "3")
    assert statuses(alone) == [0]
    assert "resuming" in alone[0].log.read_text()
    assert_same_training(run, one_process)


@pytest.mark.campaign
@pytest.mark.parametrize("count", [2, 4])
def test_lost_process_ends_others(start, tmp_path, count):
    assert statuses(start(count, tmp_path / "whole", "--epochs", 8)) == [0] * count
    lose_a_process(start, tmp_path / "killed", count, 8)
    again = start(count, tmp_path / "killed", "--epochs", 8, "--checkpoint-steps", "3")
    assert statuses(again) == [0] * count
    assert "resuming" in again[0].log.read_text()
    assert_same_training(tmp_path / "killed", tmp_path / "whole", exact=True)


@pytest.mark.campaign
def test_ctrl_c_stops_all_processes_soon(start, tmp_path):
    processes = start(2, tmp_path / "run", "--epochs", "2", "--endless")
    for process in processes:
        until_said("evaluating", [process])
    processes[1].send_signal(signal.SIGINT)
    stopped_at = time.monotonic()
    assert statuses(processes) == [130, 130]
    assert time.monotonic() - stopped_at < 20  # seconds, on a busy machine
    assert "stopped by SIGINT after step 8, saved in" in processes[0].log.read_text()
    assert figures(tmp_path / "run") == []


def test_join_rejects_incomplete_options(monkeypatch):
    def fails(*_, **__):
        raise ValueError("Number of processes must be defined.")

    monkeypatch.setattr("jax.distributed.initialize", fails)
    message = r"the processes of the run could not be joined \(Number of processes must be defined\.\); give --coordin"
    with pytest.raises(fr.UserError, match=message):
        distributed.join_processes(process_id=0)
    with pytest.raises(fr.UserError, match="or --distributed under Slurm"):
        distributed.join_processes(distributed=True)
    distributed.join_processes()  # alone


@processes_of_a_run
def test_join_reports_unreachable_coordinator():
    with socket.socket() as free:  # no process listens on this port
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    program = f"""
from flaxresnet.runtime import distributed
distributed.JOIN_TIMEOUT = 2
distributed.join_processes(coordinator_address={address!r}, num_processes=2, process_id=1)
"""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == distributed.EXIT_TEMPFAIL
    expected = rf"error: the processes of the run \(--coordinator-address {address}\) did not all join within 2 s"
    assert re.search(expected, done.stderr)
    assert "Traceback" not in done.stderr


def test_processes_must_be_equal(monkeypatch):
    distributed.require_equal_across_processes(data="mine", seed=3)  # alone
    for other, different in (({}, None), ({"data": "'yours'"}, "data"), ({"seed": "4"}, "seed")):
        monkeypatch.setattr(distributed, "all_gather_json", lambda local, other=other: [local, local | other])
        if different is None:
            distributed.require_equal_across_processes(data="mine", seed=3)
            continue
        with pytest.raises(
            UserError, match=rf"have different {different} \(process 0 has (mine|3)\); start all of them"
        ):
            distributed.require_equal_across_processes(data="mine", seed=3)


def test_error_on_process_zero_reaches_all():
    def fails():
        raise fr.UserError("no room")

    with pytest.raises(fr.UserError, match="no room"):
        distributed.run_on_process_zero(fails)
    assert distributed.run_on_process_zero(lambda: 3) == 3


def test_user_error_on_process_zero_ends_others(monkeypatch):
    monkeypatch.setattr(distributed, "is_multiprocess", lambda: True)
    monkeypatch.setattr(distributed, "is_process_zero", lambda: False)
    monkeypatch.setattr(distributed.multihost_utils, "sync_global_devices", lambda _: None)
    for failed in (False, True):
        monkeypatch.setattr(distributed.multihost_utils, "broadcast_one_to_all", lambda _, failed=failed: failed)
        if failed:
            with pytest.raises(fr.UserError, match="process 0 failed; see its error message"):
                distributed.run_on_process_zero(lambda: 1)
        else:
            assert distributed.run_on_process_zero(lambda: 1) is None


def test_failed_process_exits_soon(monkeypatch, capfd):
    left = threading.Event()
    monkeypatch.setattr(distributed, "is_multiprocess", lambda: True)
    monkeypatch.setattr(distributed, "EXIT_TIMEOUT", 0.01)
    monkeypatch.setattr(distributed.os, "_exit", lambda status: status == 2 and left.set())
    with pytest.raises(UserError, match="the disk is full"), distributed.exit_watchdog():
        raise UserError("the disk is full")
    assert left.wait(10)
    assert "error: the disk is full" in capfd.readouterr().err
