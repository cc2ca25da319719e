"""Which checkpoints are kept, and what is read from them."""

import errno
import os
import random
import re
import shutil
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flaxresnet as fr
from flaxresnet.runs.checkpoint_errors import CorruptCheckpointError, checkpoint_read_errors, checkpoint_write_errors
from flaxresnet.runs.checkpoint_manager import EpochCheckpoints
from flaxresnet.runtime.errors import UserError
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
    """Saves steps 1, 2, … with the given (accuracy, loss)."""
    with EpochCheckpoints(folder) as checkpoints:
        for step, (accuracy, loss) in enumerate(scores, start=1):
            eval_stats = {"bn": {"mean": jnp.full(3, 100.0 + step)}}
            row = {"epoch": step, "test_accuracy": accuracy, "test_loss": loss}
            checkpoints.save(step, state_after(step).items, eval_stats, row)


def read(folder, which):
    shapes = {"params": state_after(0).params, "batch_stats": state_after(0).batch_stats}
    with EpochCheckpoints(folder, read_only=True) as checkpoints:
        return checkpoints.restore_variables(shapes, which)


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([(0.5, 1.0), (0.9, 0.8), (0.7, 0.1)], 2),  # accuracy counts first
        ([(0.9, 0.5), (0.9, 0.2), (0.9, 0.3)], 2),  # then the loss
        ([(0.1, 1.0), (0.2, 1.0), (0.3, 1.0)], 3),
        ([(0.9, 1.0), (0.2, 1.0), (0.3, 1.0)], 1),
    ],
)
def test_the_latest_two_and_the_best_are_kept(scores, best, tmp_path):
    save(tmp_path / "c", scores)
    kept = sorted(int(p.name) for p in (tmp_path / "c").iterdir() if p.name.isdigit())
    assert kept == sorted({2, 3, best})
    for which, step in (("latest", 3), ("best", best)):
        variables = read(tmp_path / "c", which)
        np.testing.assert_array_equal(variables["params"]["fc2"]["kernel"], np.full((3, 2), step))
        np.testing.assert_array_equal(variables["batch_stats"]["bn"]["mean"], np.full(3, 100 + step))


def test_training_state_comes_back_with_its_running_averages(tmp_path):
    save(tmp_path / "c", [(0.5, 1.0)])
    with EpochCheckpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest_step() == 1
        items, row = checkpoints.restore(state_after(0).items)
    assert row == {"epoch": 1, "test_accuracy": 0.5, "test_loss": 1.0}
    same = jax.tree.map(lambda a, b: bool((a == b).all()), state_after(0).restored(items), state_after(1))
    assert jax.tree.all(same)


def test_no_checkpoint_is_said_so(tmp_path):
    (tmp_path / "c").mkdir()
    with pytest.raises(fr.UserError, match="holds no finished checkpoint; train for at least one epoch"):
        read(tmp_path / "c", "latest")


def test_a_checkpoint_of_another_shape_is_said_so(tmp_path):
    save(tmp_path / "c", [(0.5, 1.0)])
    shapes = {"params": {"fc9": {"kernel": jnp.zeros((3, 9))}}, "batch_stats": state_after(0).batch_stats}
    with (
        EpochCheckpoints(tmp_path / "c", read_only=True) as checkpoints,
        pytest.raises(fr.UserError, match=r"checkpoint .*1 cannot be restored: "),
    ):
        checkpoints.restore_variables(shapes)


def test_another_choice_of_checkpoint_is_refused(tmp_path):
    save(tmp_path / "c", [(0.5, 1.0)])
    with pytest.raises(fr.UserError, match="checkpoint is 'newest'; give 'latest' or 'best'"):
        read(tmp_path / "c", "newest")


def drawn_state(seed: int) -> TrainState:
    """A state whose arrays do not shrink when they are packed, as trained ones do not."""
    state, rng = state_after(1), np.random.default_rng(seed)
    params = {"fc2": {"kernel": jnp.asarray(rng.standard_normal((100, 90)), jnp.float32)}}
    return state.replace(params=params, opt_state=optax.adam(0.1).init(params))


@pytest.mark.parametrize("kind", ["cut off", "overwritten", "flipped"])
def test_every_damaged_file_of_a_checkpoint_is_a_sentence_or_does_no_harm(kind, tmp_path, capsys):
    rng, flips = random.Random(0), int(os.environ.get("FLIPS", "1"))
    with EpochCheckpoints(tmp_path / "whole") as checkpoints:
        row = {"epoch": 1, "test_accuracy": 0.5, "test_loss": 1.0}
        checkpoints.save(1, drawn_state(1).items, state_after(1).batch_stats, row)
    names = [p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*") if p.is_file()]
    assert len(names) > 10
    outcomes = Counter()
    for name in names * (flips if kind == "flipped" else 1):
        folder = shutil.copytree(tmp_path / "whole", tmp_path / "copy")
        content = bytearray((folder / name).read_bytes())
        if kind == "cut off":
            del content[len(content) // 2 :]
        elif kind == "overwritten":
            content[-7:] = b"\xff\x00damage"
        elif content:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        (folder / name).write_bytes(content)
        outcomes[outcome_of_restoring(folder)] += 1
        shutil.rmtree(folder)
    with capsys.disabled():
        if "FLIPS" in os.environ:
            print(f"\n{kind}: {dict(outcomes)}")
    assert set(outcomes) == {"restored", "refused"}
    assert outcomes["refused"] > 5


def outcome_of_restoring(folder) -> str:
    """Whether the state of `drawn_state(1)` came back, to the last bit."""
    try:
        with EpochCheckpoints(folder) as checkpoints:
            items, row = checkpoints.restore(drawn_state(2).items)
    except fr.UserError as error:
        return "refused" if "cannot be restored" in str(error) else str(error)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), drawn_state(2).restored(items), drawn_state(1))
    return "restored" if jax.tree.all(same) and row["epoch"] == 1 else "restored wrongly"


def test_orbax_does_not_ask_whether_the_job_is_to_end(tmp_path, monkeypatch):
    def asked(step):
        raise AssertionError(step)

    monkeypatch.setattr("orbax.checkpoint.utils.reached_preemption", asked)
    save(tmp_path / "c", [(0.5, 1.0), (0.9, 0.8)])
    with EpochCheckpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.steps() == [2, 1]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.EIO, "Input/output error"), UserError),
        (PermissionError(errno.EACCES, "Permission denied"), UserError),
        (MemoryError(), MemoryError),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), RuntimeError),
        (ValueError("not a zarr"), CorruptCheckpointError),
        (FileNotFoundError(errno.ENOENT, "No such file"), CorruptCheckpointError),
    ],
)
def test_what_cannot_be_read_now_is_no_damage(error, raised, tmp_path):
    with pytest.raises(raised) as caught, checkpoint_read_errors(tmp_path / "7"):
        raise error
    assert caught.type is raised
    if issubclass(raised, UserError):
        assert re.match(r"checkpoint .*7 cannot be restored: ", str(caught.value))


def test_whatever_goes_wrong_at_writing_is_a_sentence(tmp_path):
    said = r"run cannot be written \(.*No space left.*\); the earlier checkpoints are intact"
    with pytest.raises(UserError, match=said), checkpoint_write_errors(tmp_path / "run"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(UserError, match="as it is"), checkpoint_write_errors(tmp_path / "run"):
        raise UserError("as it is")
