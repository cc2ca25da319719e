"""Checkpoints of a run: which ones remain, restoring them, and corrupt files."""

import os
import random
import shutil
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flaxresnet as fr
from flaxresnet.runs.checkpoint_files import checkpoint_paths
from flaxresnet.runs.checkpoint_io import EpochCheckpoints
from flaxresnet.training.train_state import TrainState


def state_after(step: int) -> TrainState:
    params = {"fc2": {"kernel": jnp.full((3, 2), float(step))}}
    return TrainState(
        step=jnp.int32(step),
        params=params,
        batch_stats={"bn": {"mean": jnp.full(3, -float(step))}},
        opt_state=optax.adam(0.1).init(params),
    )


def save(folder, scores):
    """Saves a checkpoint for each (accuracy, loss), at steps 1, 2, …"""
    with EpochCheckpoints(folder) as checkpoints:
        for step, (accuracy, loss) in enumerate(scores, start=1):
            eval_stats = {"bn": {"mean": jnp.full(3, 100.0 + step)}}
            metrics = {"epoch": step, "test_accuracy": accuracy, "test_loss": loss}
            checkpoints.save(step, state_after(step).items, eval_stats, metrics)


def is_equal(state, expected):
    return jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), state, expected))


def read(folder, which):
    shapes = {"params": state_after(0).params, "batch_stats": state_after(0).batch_stats}
    with EpochCheckpoints(folder, read_only=True) as checkpoints:
        return checkpoints.restore_variables(shapes, which)


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([(0.5, 1.0), (0.9, 0.8), (0.7, 0.1)], 2),  # the accuracy decides
        ([(0.9, 0.5), (0.9, 0.2), (0.9, 0.3)], 2),  # the loss breaks ties
        ([(0.1, 1.0), (0.2, 1.0), (0.3, 1.0)], 3),
        ([(0.9, 1.0), (0.2, 1.0), (0.3, 1.0)], 1),
    ],
)
def test_latest_and_best_checkpoints_remain(scores, best, tmp_path):
    save(tmp_path / "c", scores)
    assert [path.name for path in checkpoint_paths(tmp_path / "c")] == [str(step) for step in sorted({2, 3, best})]
    for which, step in (("latest", 3), ("best", best)):
        variables = read(tmp_path / "c", which)
        np.testing.assert_array_equal(variables["params"]["fc2"]["kernel"], np.full((3, 2), step))
        np.testing.assert_array_equal(variables["batch_stats"]["bn"]["mean"], np.full(3, 100 + step))


def test_restore_returns_training_state(tmp_path):
    save(tmp_path / "c", [(0.5, 1.0)])
    with EpochCheckpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest_step() == 1
        items, metrics = checkpoints.restore(state_after(0).items)
    assert metrics == {"epoch": 1, "test_accuracy": 0.5, "test_loss": 1.0}
    assert is_equal(state_after(0).restored(items), state_after(1))


def test_restore_rejects_empty_folder(tmp_path):
    (tmp_path / "c").mkdir()
    with pytest.raises(fr.UserError, match="holds no finished checkpoint; train for at least one epoch"):
        read(tmp_path / "c", "latest")


def test_restore_rejects_other_shapes(tmp_path):
    save(tmp_path / "c", [(0.5, 1.0)])
    shapes = {"params": {"fc9": {"kernel": jnp.zeros((3, 9))}}, "batch_stats": state_after(0).batch_stats}
    with (
        EpochCheckpoints(tmp_path / "c", read_only=True) as checkpoints,
        pytest.raises(fr.UserError, match=r"checkpoint .*1 cannot be restored: "),
    ):
        checkpoints.restore_variables(shapes)


def test_restore_rejects_unknown_choice(tmp_path):
    save(tmp_path / "c", [(0.5, 1.0)])
    with pytest.raises(fr.UserError, match="checkpoint is 'newest'; give 'latest' or 'best'"):
        read(tmp_path / "c", "newest")


def random_state(seed: int) -> TrainState:
    """Returns a state of incompressible arrays, as those of trained networks are."""
    rng = np.random.default_rng(seed)
    params = {"fc2": {"kernel": jnp.asarray(rng.standard_normal((100, 90)), jnp.float32)}}
    return state_after(1).replace(params=params, opt_state=optax.adam(0.1).init(params))


@pytest.mark.parametrize("damage", ["truncated", "overwritten", "flipped"])
def test_damaged_files_are_refused(damage, tmp_path, capsys):
    """Damages each file of a checkpoint in turn. `FLIPS` is the number of bit flips per file."""
    rng = random.Random(0)
    flips = int(os.environ.get("FLIPS", "1"))
    original = tmp_path / "original"
    with EpochCheckpoints(original) as checkpoints:
        metrics = {"epoch": 1, "test_accuracy": 0.5, "test_loss": 1.0}
        checkpoints.save(1, random_state(1).items, state_after(1).batch_stats, metrics)
    names = [path.relative_to(original) for path in original.rglob("*") if path.is_file()]
    assert len(names) > 10
    outcomes = Counter()
    for name in names * (flips if damage == "flipped" else 1):
        folder = shutil.copytree(original, tmp_path / "copy")
        content = bytearray((folder / name).read_bytes())
        if damage == "truncated":
            del content[len(content) // 2 :]
        elif damage == "overwritten":
            content[-7:] = b"\xff\x00damage"
        elif content:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        (folder / name).write_bytes(content)
        outcomes[restore_outcome(folder)] += 1
        shutil.rmtree(folder)
    if "FLIPS" in os.environ:
        with capsys.disabled():
            print(f"\n{damage}: {dict(outcomes)}")
    assert set(outcomes) == {"restored", "refused"}
    assert outcomes["refused"] > 5


def restore_outcome(folder) -> str:
    """Returns "restored" if every bit of `random_state(1)` came back, "refused", or another outcome."""
    try:
        with EpochCheckpoints(folder) as checkpoints:
            items, metrics = checkpoints.restore(random_state(2).items)
    except fr.UserError as error:
        return "refused" if "cannot be restored" in str(error) else str(error)
    same = is_equal(random_state(2).restored(items), random_state(1))
    return "restored" if same and metrics["epoch"] == 1 else "restored with errors"


def test_orbax_skips_preemption_check(tmp_path, monkeypatch):
    def fail(step):
        raise AssertionError(step)

    monkeypatch.setattr("orbax.checkpoint.utils.reached_preemption", fail)
    save(tmp_path / "c", [(0.5, 1.0), (0.9, 0.8)])
    with EpochCheckpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.steps() == [2, 1]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"epoch": 1}', None])
def test_damaged_metrics_spare_other_checkpoints(finished_run, tmp_path, capsys, content):
    """Damages the metrics of the older checkpoints, one at a time. The newest checkpoint stays readable."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    newest = max(int(path.name) for path in (run / "checkpoints").iterdir())
    expected = fr.Classifier.load(finished_run).variables
    for path in (run / "checkpoints").iterdir():
        if int(path.name) < newest:
            metrics = path / "metrics" / "metrics"
            metrics.unlink() if content is None else metrics.write_text(content)
            for which in ("latest", "best"):
                variables = fr.Classifier.load(run, which).variables
                assert f"the metrics of checkpoint {path} are damaged" in capsys.readouterr().err
                if which == "latest":
                    jax.tree.map(np.testing.assert_array_equal, variables, expected)
