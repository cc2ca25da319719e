"""Killed at random moments (SIGKILL), a run of `train.py` sees the pictures and gets the weights of one left alone.

Two kills of a short run; a campaign of many takes minutes: `KILLS=10 python -m pytest tests/faults -s`. What it does
from outside, `tests/training/test_interruption.py` does from inside.
"""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import draw_blobs

import flaxresnet as fr

ROOT = Path(__file__).parents[2]
CAMPAIGN = "KILLS" in os.environ
KILLS = int(os.environ.get("KILLS", "2"))
SEED = int(os.environ.get("KILLS_SEED", "0"))
# A start's steps before it is killed: of the two kills of a short run, both come after the end of an epoch.
STEPS, STARTING = ((1, 14), 0.2) if CAMPAIGN else ((12, 18), 0.0)  # and the share of kills before any step
PATIENCE = 900  # seconds, for one start on a busy machine
# `train.py`, which notes of each training step what the pictures in it are: a line of the step and a hash of each.
PROGRAM = """
import hashlib, json, sys, time
from pathlib import Path
root, log = sys.argv[1:3]
sys.path.insert(0, root)
import numpy as np
from flaxresnet import cli
from flaxresnet.models.resnet import SIZES
from flaxresnet.training.loop import Trainer
SIZES["resnet14"] = {"stage_sizes": (1,)}  # as in the tests' own process, which loads the weights
seen = Path(log).open("a")
real = Trainer._next
def noted(self, batches, step):
    batch = real(self, batches, step)
    pictures = [hashlib.sha256(image.tobytes()).hexdigest()[:16] for image in np.asarray(batch.images)]
    print(json.dumps([step, pictures]), file=seen, flush=True)
    time.sleep(0.2)  # as long as a larger network's step, so that checkpoints within an epoch are whole before its end
    return batch
Trainer._next = noted
sys.argv = ["train.py", *sys.argv[3:]]
import train
if __name__ == "__main__":  # and not a worker process, which comes by here
    sys.exit(cli.run(train.main))
"""
FLAGS = ["--model", "resnet14", "--width", "4", "--batch-size", "8", "--image-size", "32", "32", "--no-report"]
FLAGS += ["--epochs", "12" if CAMPAIGN else "4", "--checkpoint-steps", "3", "--input", "stream", "--workers", "1"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return draw_blobs(tmp_path_factory.mktemp("pictures"), 84, 18)


def begin(pictures, workdir, cache):
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "PYTHONUNBUFFERED": "1"}
    log = workdir.with_suffix(".seen")
    command = [sys.executable, "-c", PROGRAM, str(ROOT), str(log), "--data", str(pictures), "--workdir", str(workdir)]
    command += FLAGS
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


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
    kept = [p for part in ("checkpoints", "unfinished") for p in (workdir / part).glob("*")]
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
