"""Which checkpoints are kept, and what is read from them."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flaxresnet as fr
from flaxresnet.training.checkpoint import Checkpoints
from flaxresnet.training.state import TrainState


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
    with Checkpoints(folder) as checkpoints:
        for step, (accuracy, loss) in enumerate(scores, start=1):
            eval_stats = {"bn": {"mean": jnp.full(3, 100.0 + step)}}
            row = {"epoch": step, "test_accuracy": accuracy, "test_loss": loss}
            checkpoints.save(state_after(step), eval_stats, row)


def read(folder, which):
    shapes = {"params": state_after(0).params, "batch_stats": state_after(0).batch_stats}
    with Checkpoints(folder, read_only=True) as checkpoints:
        return checkpoints.restore_variables(shapes, which)


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([(0.5, 1.0), (0.9, 0.8), (0.7, 0.1)], 2),  # accuracy counts first
        ([(0.9, 0.5), (0.9, 0.2), (0.9, 0.3)], 2),  # then the loss
        ([(0.1, 1.0), (0.2, 1.0), (0.3, 1.0)], 3),
    ],
)
def test_the_latest_and_the_best_are_kept(scores, best, tmp_path):
    save(tmp_path / "c", scores)
    kept = sorted(int(p.name) for p in (tmp_path / "c").iterdir() if p.name.isdigit())
    assert kept == sorted({3, best})
    for which, step in (("latest", 3), ("best", best)):
        variables = read(tmp_path / "c", which)
        np.testing.assert_array_equal(variables["params"]["fc2"]["kernel"], np.full((3, 2), step))
        np.testing.assert_array_equal(variables["batch_stats"]["bn"]["mean"], np.full(3, 100 + step))


def test_training_state_comes_back_with_its_running_averages(tmp_path):
    save(tmp_path / "c", [(0.5, 1.0)])
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest_step() == 1
        restored, row = checkpoints.restore(state_after(0))
    assert row == {"epoch": 1, "test_accuracy": 0.5, "test_loss": 1.0}
    same = jax.tree.map(lambda a, b: bool((a == b).all()), restored, state_after(1))
    assert jax.tree.all(same)


def test_no_checkpoint_is_said_so(tmp_path):
    (tmp_path / "c").mkdir()
    with pytest.raises(fr.UserError, match="holds no finished checkpoint; train for at least one epoch"):
        read(tmp_path / "c", "latest")


def test_a_checkpoint_of_another_shape_is_said_so(tmp_path):
    save(tmp_path / "c", [(0.5, 1.0)])
    shapes = {"params": {"fc9": {"kernel": jnp.zeros((3, 9))}}, "batch_stats": state_after(0).batch_stats}
    with (
        Checkpoints(tmp_path / "c", read_only=True) as checkpoints,
        pytest.raises(fr.UserError, match=r"checkpoint .*1 cannot be restored: "),
    ):
        checkpoints.restore_variables(shapes)


def test_another_choice_of_checkpoint_is_refused(tmp_path):
    save(tmp_path / "c", [(0.5, 1.0)])
    with pytest.raises(fr.UserError, match="checkpoint is 'newest'; give 'latest' or 'best'"):
        read(tmp_path / "c", "newest")


def test_every_damaged_file_of_a_checkpoint_is_a_sentence_or_does_no_harm(tmp_path):
    save(tmp_path / "whole", [(0.5, 1.0)])
    names = [p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*") if p.is_file()]
    assert len(names) > 10
    outcomes = []
    for index, name in enumerate(names):
        folder = shutil.copytree(tmp_path / "whole", tmp_path / str(index))
        (folder / name).write_bytes((folder / name).read_bytes()[:-7] + b"\xff\x00damage")
        outcomes.append(outcome_of_restoring(folder))
    assert all(text == "restored" or "cannot be restored" in text for text in outcomes), outcomes
    assert sum(text != "restored" for text in outcomes) > 5


def outcome_of_restoring(folder) -> str:
    try:
        with Checkpoints(folder) as checkpoints:
            restored, row = checkpoints.restore(state_after(0))
    except fr.UserError as error:
        return str(error)
    return "restored" if (int(restored.step), row["epoch"]) == (1, 1) else "restored wrongly"
