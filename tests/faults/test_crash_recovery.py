"""Killed (SIGKILL), a run of `train.py` sees the pictures and gets the weights of one left alone.

Once within an epoch; a campaign kills at ten random moments, or as many as `KILLS` says, and takes minutes:
`python -m pytest --campaign tests/faults/test_crash_recovery.py -s`. What this does from outside,
`tests/training/test_interruption.py` does from inside.
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

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("KILLS", "10"))
SEED = int(os.environ.get("KILLS_SEED", "0"))
STEPS, STARTING = (1, 14), 0.2  # a start's steps before it is killed, and the share of kills before any step
PATIENCE = 900  # seconds, for one start on a busy machine
# `train.py` with the tests' small network, and with a change of ours where it takes its next batch.
PROGRAM = """
import sys
root, log = sys.argv[1:3]
sys.path.append(root)
from flaxresnet.cli import exit_status
from flaxresnet.models.resnet import SIZES
from flaxresnet.training import trainer
SIZES["resnet14"] = {"stage_sizes": (1,), "bottleneck": False}  # as in the tests' own process
real = trainer.next_batch
CHANGE
trainer.next_batch = changed
sys.argv = ["train.py", *sys.argv[3:]]
import train
if __name__ == "__main__":  # and not a worker process, which comes by here
    sys.exit(exit_status.run(train.main))
"""
# It notes of each training step what the pictures in it are: a line of the step and a hash of each.
NOTING = """
import hashlib, json, time
from pathlib import Path
import numpy as np
seen = Path(log).open("a")
def changed(session, batches, state, metrics):
    step = int(state.step)
    batch = real(session, batches, state, metrics)
    pictures = [hashlib.sha256(image.tobytes()).hexdigest()[:16] for image in np.asarray(batch.images)]
    print(json.dumps([step, pictures]), file=seen, flush=True)
    time.sleep(0.2)  # as long as a larger network's step, so that checkpoints within an epoch are whole before its end
    return batch
"""
# It goes no farther than to the eighth step, of five an epoch, and says so when the sixth and seventh are saved.
STOPPING = """
def changed(session, batches, state, metrics):
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


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return draw_blobs(tmp_path_factory.mktemp("pictures"), 84, 18)


def compiled_here():
    """Variables that have a process use what this one has compiled."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    names += ("jax_persistent_cache_min_entry_size_bytes",)
    return {name.upper(): str(jax.config.values[name]) for name in names}


def begin(pictures, workdir, cache, change=NOTING, flags=LONG, **pipes):
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "PYTHONUNBUFFERED": "1"} | compiled_here()
    log = workdir.with_suffix(".seen")
    program = PROGRAM.replace("CHANGE", change)
    command = [sys.executable, "-c", program, str(ROOT), str(log), "--data", str(pictures), "--workdir", str(workdir)]
    command += FLAGS + flags
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | pipes
    return subprocess.Popen(command, env=environment, text=True, **pipes)


def figures(workdir):
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    names = ("epoch", "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate")
    return [[row[name] for name in names] for row in rows]


def seen(workdir):
    """The pictures of each step, by its number, as each start of a run saw them: a list of starts."""
    starts, before = [], None
    for line in workdir.with_suffix(".seen").read_text().splitlines():
        step, pictures = json.loads(line)
        if before is None or step != before + 1:
            starts.append({})
        starts[-1][step] = pictures
        before = step
    return starts


def newest_step(workdir):
    """The newest step that is whole on disk."""
    kept = [p for part in ("checkpoints", "mid_epoch") for p in (workdir / part).glob("*")]
    return max((int(p.name) for p in kept if p.name.isdigit()), default=0)


def best_accuracy(workdir, pictures):
    """On the test images, of the checkpoint that is best on them; 0 before there is one."""
    if not any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*")):
        return 0.0
    return fr.evaluate(workdir, pictures, checkpoint="best").accuracy


def steps_seen(workdir):
    log = workdir.with_suffix(".seen")
    return len(log.read_text().splitlines()) if log.exists() else 0


def until_it_has_trained(process, workdir, steps):
    """Waits for so many steps of a start, or its end: the seconds until the first."""
    before, start, first = steps_seen(workdir), time.monotonic(), 0.0
    while process.poll() is None and (done := steps_seen(workdir) - before) < steps:
        first = first or (done and time.monotonic() - start)
        time.sleep(0.01)
    return first or time.monotonic() - start


def killed_run(pictures, workdir, cache, rng, most):
    """Kills and starts a run until it is done, or has been killed so often: the steps kept at each kill, and the
    seconds that each start took until it trained."""
    kept, starts, best = [], [], 0.0
    while len(kept) < most:
        before = newest_step(workdir)
        process = begin(pictures, workdir, cache)
        if rng.random() >= STARTING:  # while it trains, evaluates and saves; else while it starts
            starts.append(until_it_has_trained(process, workdir, rng.randrange(*STEPS)))
            time.sleep(rng.uniform(0, 0.3))
        else:
            time.sleep(rng.uniform(0, 6))
        process.kill()
        process.communicate()
        if process.returncode == 0:
            break
        kept.append(newest_step(workdir))
        assert kept[-1] >= before  # what was whole is not lost
        best, before = best_accuracy(workdir, pictures), best
        assert best >= before
    return kept, starts


@pytest.mark.parity
def test_killed_process_goes_on(finished_run, data_folder, tmp_path):
    """Killed within the second epoch; the run goes on here, from step 6, as from the same command."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with begin(data_folder, tmp_path / "run", tmp_path / "cache", STOPPING, SHORT, **pipes) as process:
        said = []
        for line in process.stderr:
            said.append(line)
            if line == "trained\n":
                break
        assert said[-1:] == ["trained\n"], said
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert newest_step(tmp_path / "run") == 6
    assert len(figures(tmp_path / "run")) == 1
    fr.fit(fr.TrainConfig(data=data_folder, workdir=tmp_path / "run", epochs=3, **TINY_CONFIG), quiet=True)
    assert figures(tmp_path / "run") == figures(finished_run)
    weights = (fr.Classifier.load(run).variables for run in (tmp_path / "run", finished_run))
    jax.tree.map(np.testing.assert_array_equal, *weights)


@pytest.mark.campaign
def test_a_run_that_is_killed_again_and_again_ends_with_the_weights_of_one_that_was_not(pictures, tmp_path):
    rng, whole, cache = random.Random(SEED), tmp_path / "whole", tmp_path / "cache"
    said, _ = (alone := begin(pictures, whole, cache)).communicate(timeout=PATIENCE)
    assert alone.returncode == 0, said
    (undisturbed,) = seen(whole)
    assert len({tuple(pictures) for pictures in undisturbed.values()}) == len(undisturbed)  # no two steps are alike

    kept, starts, rounds = [], [], 0
    while len(kept) < KILLS:
        workdir = tmp_path / f"killed{rounds}"
        some, seconds = killed_run(pictures, workdir, cache, rng, KILLS - len(kept))
        said, _ = (last := begin(pictures, workdir, cache)).communicate(timeout=PATIENCE)
        assert last.returncode == 0, said
        assert figures(workdir) == figures(whole)
        counted = {step: pictures for start in seen(workdir) for step, pictures in start.items()}
        assert list(counted) == sorted(counted) == list(range(len(undisturbed)))  # those after which it goes on
        for start in seen(workdir):  # and what a kill undid, too
            assert start == {step: undisturbed[step] for step in start}
        weights = (fr.Classifier.load(run).variables for run in (workdir, whole))
        jax.tree.map(np.testing.assert_array_equal, *weights)
        kept, starts, rounds = kept + some, starts + seconds, rounds + 1
    print(
        f"\n{len(kept)} kills in {rounds} runs, steps kept {kept}; "
        f"from a start to the next step at most {max(starts, default=0):.1f} s"
    )
