"""Killed at random moments (SIGKILL), a run of `train.py` goes on to the weights of one that was left alone.

Minutes long, so only where it is asked for: `KILLS=10 python -m pytest tests/faults -s`. What it does from outside,
`tests/training/test_interruption.py` does from inside in every run of the tests.
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
from conftest import blobs
from PIL import Image

import flaxresnet as fr

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("KILLS", "0"))
SEED = int(os.environ.get("KILLS_SEED", "0"))
PATIENCE = 300  # seconds, for one start
FLAGS = ["--model", "resnet14", "--width", "4", "--batch-size", "8", "--image-size", "32", "32", "--no-report"]
FLAGS += ["--epochs", "12", "--checkpoint-steps", "3", "--input", "stream", "--workers", "1"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    for split, count, seed in (("train", 84, 1), ("test", 18, 2)):
        data = blobs(count, seed=seed)
        for index, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
            path = root / split / data.class_names[label] / f"{index:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return root


def begin(pictures, workdir, cache):
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(ROOT / "train.py"), "--data", str(pictures), "--workdir", str(workdir), *FLAGS]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def figures(workdir):
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    names = ("epoch", "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate")
    return [[row[name] for name in names] for row in rows]


def newest_step(workdir):
    """The newest step that is whole on disk."""
    kept = [p for part in ("checkpoints", "unfinished") for p in (workdir / part).glob("*")]
    return max((int(p.name) for p in kept if p.name.isdigit()), default=0)


def until_it_trains(process):
    """Reads what a start prints until its first step is next; at the end of a run, to the end."""
    for line in process.stdout:
        if "; going on" in line or "compiled for" in line:
            return


def killed_run(pictures, workdir, cache, rng, most):
    """Kills and starts a run until it is done, or has been killed so often: the steps kept at each kill, and the
    seconds that each start took until it trained."""
    kept, starts = [], []
    while len(kept) < most:
        before, start = newest_step(workdir), time.monotonic()
        process = begin(pictures, workdir, cache)
        if rng.random() < 0.8:  # while it trains, evaluates and saves; else while it starts
            until_it_trains(process)
            starts.append(time.monotonic() - start)
            time.sleep(rng.uniform(0, 1.5))
        else:
            time.sleep(rng.uniform(0, 6))
        process.kill()
        process.communicate()
        if process.returncode == 0:
            break
        kept.append(newest_step(workdir))
        assert kept[-1] >= before  # what was whole is not lost
    return kept, starts


@pytest.mark.skipif(not KILLS, reason="takes minutes; set KILLS to the number of kills")
def test_a_run_that_is_killed_again_and_again_ends_with_the_weights_of_one_that_was_not(pictures, tmp_path):
    rng, whole, cache = random.Random(SEED), tmp_path / "whole", tmp_path / "cache"
    said, _ = (alone := begin(pictures, whole, cache)).communicate(timeout=PATIENCE)
    assert alone.returncode == 0, said

    kept, starts, rounds = [], [], 0
    while len(kept) < KILLS:
        workdir = tmp_path / f"killed{rounds}"
        some, seconds = killed_run(pictures, workdir, cache, rng, KILLS - len(kept))
        said, _ = (last := begin(pictures, workdir, cache)).communicate(timeout=PATIENCE)
        assert last.returncode == 0, said
        assert figures(workdir) == figures(whole)
        weights = (fr.Classifier.load(run).variables for run in (workdir, whole))
        jax.tree.map(np.testing.assert_array_equal, *weights)
        kept, starts, rounds = kept + some, starts + seconds, rounds + 1
    print(
        f"\n{len(kept)} kills in {rounds} runs, steps kept {kept}; "
        f"from a start to the next step at most {max(starts, default=0):.1f} s"
    )
