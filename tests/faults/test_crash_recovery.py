"""Recovery of `train.py` from SIGKILL: it sees the same images and gets the same weights as an uninterrupted run.

The parity tier kills a run once, within an epoch. `python -m pytest --campaign tests/faults/test_crash_recovery.py -s`
kills runs at ten random moments, or as many as `KILLS` sets, and takes minutes.
`tests/training/test_preemption.py` interrupts training within its own process.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import TINY_CONFIG, draw_blobs

import flaxresnet as fr
from flaxresnet.runs.checkpoint_files import checkpoint_paths

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("KILLS", "10"))
SEED = int(os.environ.get("KILLS_SEED", "0"))
STEPS_BEFORE_KILL = (1, 14)  # range of a start's steps before it is killed
STARTUP_KILLS = 0.2  # fraction of the kills before the first step of a start
TIMEOUT = 900  # seconds for one start on a busy machine
# `train.py` with the tests' small network and with a replacement of `next_batch`.
PROGRAM = """
import sys
root, log = sys.argv[1:3]
sys.path.append(root)
from flaxresnet.cli import exit_status
from flaxresnet.models.resnet import SIZES
from flaxresnet.training import trainer
SIZES["resnet14"] = {"stage_sizes": (1,), "bottleneck": False}  # as in the tests' own process
real = trainer.next_batch
REPLACEMENT
trainer.next_batch = next_batch
sys.argv = ["train.py", *sys.argv[3:]]
import train
if __name__ == "__main__":  # worker processes import this program too
    sys.exit(exit_status.run(train.main))
"""
# Logs each training step: a line of the step and a hash of each image.
LOG_STEPS = """
import hashlib, json, time
from pathlib import Path
import numpy as np
file = Path(log).open("a")
def next_batch(session, batches, state, metrics):
    step = int(state.step)
    batch = real(session, batches, state, metrics)
    hashes = [hashlib.sha256(image.tobytes()).hexdigest()[:16] for image in np.asarray(batch.images)]
    print(json.dumps([step, hashes]), file=file, flush=True)
    time.sleep(0.2)  # a step long enough that checkpoints within an epoch are finished before the epoch's end
    return batch
"""
# Waits before the eighth step until the checkpoints are saved, prints a line and stops there. An epoch has five steps.
STOP_AT_STEP_7 = """
def next_batch(session, batches, state, metrics):
    if state.step == 7:
        session.output.checkpoints.wait()
        print("trained", file=sys.stderr, flush=True)
        sys.stdin.read()  # forever
    return real(session, batches, state, metrics)
"""
FLAGS = ["--model", "resnet14", "--width", "16", "--batch-size", "8", "--no-report"]
LONG = ["--image-size", "32", "32", "--input", "stream", "--epochs", "12", "--checkpoint-steps", "3", "--workers", "1"]
SHORT = ["--epochs", "3", "--checkpoint-steps", "2", "--no-zero-init-residual", "--aug-strength", "0.0"]
SHORT += ["--background-prob", "0.0"]  # the options of `finished_run`
METRICS = ("epoch", "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate")


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    return draw_blobs(tmp_path_factory.mktemp("images"), 84, 18)


def compilation_cache_variables():
    """Returns environment variables with which a process shares this process's compiled programs."""
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    return {name.upper(): str(jax.config.values[name]) for name in names}


def start(data, workdir, cache, replacement=LOG_STEPS, flags=LONG, **pipes):
    """Starts training in a new process."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "PYTHONUNBUFFERED": "1"} | compilation_cache_variables()
    program = PROGRAM.replace("REPLACEMENT", replacement)
    command = [sys.executable, "-c", program, str(ROOT), str(step_log(workdir))]
    command += ["--data", str(data), "--workdir", str(workdir), *FLAGS, *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | pipes
    return subprocess.Popen(command, env=environment, text=True, **pipes)


def step_log(workdir):
    return workdir.with_suffix(".steps")


def logged_starts(workdir):
    """Returns step → image hashes for each start of a run."""
    starts = []
    previous = None
    for line in step_log(workdir).read_text().splitlines():
        step, hashes = json.loads(line)
        if previous is None or step != previous + 1:
            starts.append({})
        starts[-1][step] = hashes
        previous = step
    return starts


def count_logged_steps(workdir):
    path = step_log(workdir)
    return len(path.read_text().splitlines()) if path.exists() else 0


def metrics_of(workdir):
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [[row[name] for name in METRICS] for row in rows]


def newest_step(workdir):
    """Returns the newest step with a finished checkpoint, or 0 if there is none."""
    paths = checkpoint_paths(workdir / "checkpoints") + checkpoint_paths(workdir / "mid_epoch")
    return max((int(path.name) for path in paths), default=0)


def best_accuracy(workdir, data):
    """Returns the test accuracy of the best checkpoint, or 0 if there is none."""
    if not checkpoint_paths(workdir / "checkpoints"):
        return 0.0
    return fr.evaluate(workdir, data, checkpoint="best").accuracy


def assert_equal_weights(run, expected):
    variables = fr.Classifier.load(run).variables
    jax.tree.map(np.testing.assert_array_equal, variables, fr.Classifier.load(expected).variables)


def wait_for_steps(process, workdir, steps):
    """Waits until a start has made so many steps, or ended. Returns the seconds until its first step."""
    steps_before = count_logged_steps(workdir)
    start_time = time.monotonic()
    first_step = 0.0
    while process.poll() is None:
        done = count_logged_steps(workdir) - steps_before
        if done and not first_step:
            first_step = time.monotonic() - start_time
        if done >= steps:
            break
        time.sleep(0.01)
    return first_step or time.monotonic() - start_time


def kill_repeatedly(data, workdir, cache, rng, max_kills):
    """Starts and kills a run until it ends or `max_kills` is reached.

    Returns:
      The newest saved step at each kill, and the seconds from each start to its first step.
    """
    saved_steps = []
    startup_seconds = []
    best = 0.0
    while len(saved_steps) < max_kills:
        step_before = newest_step(workdir)
        process = start(data, workdir, cache)
        if rng.random() < STARTUP_KILLS:
            time.sleep(rng.uniform(0, 6))
        else:  # kill during training, evaluation or saving
            startup_seconds.append(wait_for_steps(process, workdir, rng.randrange(*STEPS_BEFORE_KILL)))
            time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.communicate()
        if process.returncode == 0:
            break
        saved_steps.append(newest_step(workdir))
        assert saved_steps[-1] >= step_before
        accuracy = best_accuracy(workdir, data)
        assert accuracy >= best
        best = accuracy
    return saved_steps, startup_seconds


@pytest.mark.parity
def test_killed_process_resumes(finished_run, data_folder, tmp_path):
    """Kills a run after step 7 of its second epoch. The run resumes in this process, from step 6."""
    run = tmp_path / "run"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with start(data_folder, run, tmp_path / "cache", STOP_AT_STEP_7, SHORT, **pipes) as process:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line == "trained\n":
                break
        assert lines[-1:] == ["trained\n"], lines
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert newest_step(run) == 6
    assert len(metrics_of(run)) == 1
    fr.fit(fr.TrainConfig(data=data_folder, workdir=run, epochs=3, **TINY_CONFIG), quiet=True)
    assert metrics_of(run) == metrics_of(finished_run)
    assert_equal_weights(run, finished_run)


@pytest.mark.campaign
def test_repeated_kills_keep_weights(image_folder, tmp_path):
    rng = random.Random(SEED)
    uninterrupted = tmp_path / "uninterrupted"
    cache = tmp_path / "cache"
    process = start(image_folder, uninterrupted, cache)
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, output
    (expected,) = logged_starts(uninterrupted)
    assert len({tuple(hashes) for hashes in expected.values()}) == len(expected)  # each step has its own images

    saved_steps = []
    startup_seconds = []
    runs = 0
    while len(saved_steps) < KILLS:
        run = tmp_path / f"killed{runs}"
        steps, seconds = kill_repeatedly(image_folder, run, cache, rng, KILLS - len(saved_steps))
        process = start(image_folder, run, cache)
        output, _ = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, output
        assert metrics_of(run) == metrics_of(uninterrupted)
        logged = {}
        for of_start in logged_starts(run):
            assert of_start == {step: expected[step] for step in of_start}
            logged |= of_start
        assert list(logged) == list(range(len(expected)))
        assert_equal_weights(run, uninterrupted)
        saved_steps += steps
        startup_seconds += seconds
        runs += 1
    print(
        f"\n{len(saved_steps)} kills in {runs} runs at saved steps {saved_steps}; at most "
        f"{max(startup_seconds, default=0):.1f} s from a start to its first step"
    )
