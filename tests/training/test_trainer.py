"""Tests of the training loop: the files of a run, resuming it, and the errors that end it."""

import json
import math
import re
import shutil
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY_CONFIG, blobs

import flaxresnet as fr
from flaxresnet import fitting
from flaxresnet.augment.geometric import augment
from flaxresnet.data.hdf5 import write_hdf5
from flaxresnet.data.shuffle import ORDER_STREAM
from flaxresnet.runs.checkpoint_io import EpochCheckpoints, load_run
from flaxresnet.runs.run_dir import RunDir
from flaxresnet.training import compiled_steps, trainer
from flaxresnet.training.optimizer import make_optimizer
from flaxresnet.training.param_groups import learning_rate_groups
from flaxresnet.training.schedule import make_schedule
from flaxresnet.training.train_state import TrainState

ROW = {
    "epoch", "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate", "seconds",
    "images_per_second", "precise_bn_seconds", "evaluate_seconds",
}  # fmt: skip
MEASURED_TIMES = {"seconds", "images_per_second", "precise_bn_seconds", "evaluate_seconds"}


def config(data, workdir, **options):
    return fr.TrainConfig(**{"data": data, "workdir": workdir, "epochs": 2, **TINY_CONFIG} | options)


def saved_bytes(workdir) -> list[bytes]:
    """Returns all arrays of the latest checkpoint as bytes."""
    info = RunDir(workdir).read_metadata()
    recipe = info.config.resolved_recipe
    optimizer = make_optimizer(recipe, make_schedule(info.config, 5), learning_rate_groups(info.config, 5))
    size = (info.preprocessing.height, info.preprocessing.width)
    create = partial(TrainState.create, info.model(), optimizer, jax.random.key(0), size, recipe.ema > 0)
    shapes = jax.eval_shape(create)
    with EpochCheckpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        items, _ = checkpoints.restore(shapes.items)
        restored = shapes.restored(items)
        variables = checkpoints.restore_variables({"params": shapes.params, "batch_stats": shapes.batch_stats})
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((restored, variables))]


def without_times(rows):
    return [{k: v for k, v in row.items() if k not in MEASURED_TIMES} for row in rows]


def test_run_writes_rows_and_metadata(finished_run):
    rows = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["step"] for row in rows] == [5, 10, 15]  # 44 images make 5 full batches of 8
    assert all(set(row) == ROW for row in rows)
    # Each row has the rate of its last step: 5 steps of warm-up, then half a cosine over 10 steps.
    rates = [2e-3 * (1 + math.cos(math.pi * progress)) / 2 for progress in (0, 4 / 10, 9 / 10)]
    assert [row["learning_rate"] for row in rows] == pytest.approx(rates, rel=1e-5)
    stored = json.loads((finished_run / "config.json").read_text())
    assert stored["class_names"] == ["red", "green", "blue"]
    assert stored["preprocessing"].items() >= {"height": 32, "width": 32, "resize": "bicubic", "scale": 1 / 255}.items()
    assert stored["config"]["learning_rate"] == 2e-3
    assert stored["versions"]["jax"] == jax.__version__


def test_training_reduces_loss(finished_run):
    rows = RunDir(finished_run).read_metrics()
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert rows[-1]["test_accuracy"] > 0.9


# Options that add to the state in a checkpoint, or that depend on the step.
STATE = {"optimizer": "lamb", "weight_decay": 0.01, "layer_decay": 0.5, "ema": 0.9, "mixup": 0.2, "grad_accum_steps": 2}
# The options of a big run, all at once.
SCALE = {
    "ema": 0.9,
    "clip_grad": 1.0,
    "mixup": 0.2,
    "cutmix": 1.0,
    "random_erasing": 0.5,
    "auto_augment": "trivialaugment",
    "grad_accum_steps": 2,
}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"recipe": "fast", "clip_grad": 0.5, **STATE}, id="fast"),
        pytest.param({"recipe": "tutorial"}, id="tutorial", marks=pytest.mark.campaign),
        pytest.param({"aug_strength": 1.25, "background_prob": 0.2}, id="robust", marks=pytest.mark.campaign),
        pytest.param({"recipe": "imagenet", "ghost_batch_size": 2, **SCALE}, id="imagenet", marks=pytest.mark.campaign),
    ],
)
def test_resumed_run_equals_uninterrupted(options, data_folder, tmp_path, monkeypatch):
    full = fr.fit(config(data_folder, tmp_path / "whole", epochs=3, **options), quiet=True)

    class KilledError(Exception):
        pass

    def killed_in_second_epoch(session, epoch, *rest, train_epoch=trainer.train_epoch):
        if epoch == 2:
            raise KilledError
        return train_epoch(session, epoch, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_epoch", killed_in_second_epoch)
        with pytest.raises(KilledError):
            fr.fit(config(data_folder, tmp_path / "two", epochs=3, **options), quiet=True)
    resumed = fr.fit(config(data_folder, tmp_path / "two", epochs=3, **options), quiet=True)

    assert without_times(resumed.history) == without_times(full.history)
    assert saved_bytes(tmp_path / "two") == saved_bytes(tmp_path / "whole")


def test_finished_run_trains_more_epochs(data_folder, tmp_path):
    full = fr.fit(config(data_folder, tmp_path / "whole", epochs=3, recipe="tutorial"), quiet=True)
    fr.fit(config(data_folder, tmp_path / "two", epochs=2, recipe="tutorial"), quiet=True)
    resumed = fr.fit(config(data_folder, tmp_path / "two", epochs=3, recipe="tutorial"), quiet=True)
    assert without_times(resumed.history) == without_times(full.history)
    assert saved_bytes(tmp_path / "two") == saved_bytes(tmp_path / "whole")


def test_finished_run_trains_nothing(finished_run, data_folder, tmp_path):
    copy = shutil.copytree(finished_run, tmp_path / "copy")
    before = (copy / "metrics.jsonl").read_bytes()
    run = fr.fit(config(data_folder, copy, epochs=3), quiet=True)
    assert (copy / "metrics.jsonl").read_bytes() == before
    assert run.test_accuracy == RunDir(finished_run).read_metrics()[-1]["test_accuracy"]


def test_resume_drops_later_rows(finished_run, data_folder, tmp_path):
    copy = shutil.copytree(finished_run, tmp_path / "copy")
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "test_accuracy": 1.0}\n{"epoch": 5, "te')
    with (copy / "metrics.jsonl").open("ab") as file:
        file.write(b"\xff\x00\n")
    run = fr.fit(config(data_folder, copy, epochs=4), quiet=True)
    assert [row["epoch"] for row in run.history] == [1, 2, 3, 4]
    assert set(run.history[-1]) == ROW
    assert [row["epoch"] for row in RunDir(copy).read_metrics()] == [1, 2, 3, 4]


def test_resume_restores_lost_metrics(finished_run, data_folder, tmp_path):
    copy = shutil.copytree(finished_run, tmp_path / "copy")
    (copy / "metrics.jsonl").unlink()
    run = fr.fit(config(data_folder, copy, epochs=4), quiet=True)
    assert [row["epoch"] for row in run.history] == [3, 4]
    assert run.history[0] == RunDir(finished_run).read_metrics()[-1]


@pytest.mark.parametrize("report", [False, True])
def test_run_warns_of_label_shift(tmp_path, capsys, report):
    train = blobs(44, seed=1)
    write_hdf5(tmp_path / "train.h5", "train", train)
    shifted = fr.Dataset(train.images[:18], (train.labels[:18] - 1) % 3, train.class_names)
    write_hdf5(tmp_path / "test.h5", "test", shifted)
    run = fr.fit(config(tmp_path, tmp_path / "run", epochs=3, report=report))
    assert run.test_accuracy < 0.1
    output = capsys.readouterr().out.replace("\n", " ")
    assert "warning: 18 of 18 test images are training images too, such as test image 0" in output
    assert "warning: adding 1 to each label would change the accuracy from" in output
    if report:
        page = (run.workdir / "report" / "index.html").read_text()
        assert "Warning: adding 1 to each label would change the accuracy from" in page


@pytest.mark.parametrize("error", [fr.UserError("no checkpoint can be read"), RuntimeError("RESOURCE_EXHAUSTED")])
def test_failed_label_check_keeps_run(tmp_path, data_folder, monkeypatch, error):
    def damaged(*_, **__):
        raise error

    monkeypatch.setattr(fr.Classifier, "load", damaged)
    monkeypatch.setattr(trainer.TrainResult, "test_accuracy", 0.1)
    assert fr.fit(config(data_folder, tmp_path / "run", epochs=1), quiet=True).history[-1]["epoch"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "holds a run with --seed 0, not 1; give another --workdir, or --no-resume"),
        ({"width": 8}, "--width 16, not 8"),
        ({"aug_strength": 0.5}, "--aug-strength 0.0, not 0.5"),
        ({"recipe": "tutorial"}, "--recipe robust, not tutorial"),
    ],
)
def test_workdir_rejects_different_run(change, message, finished_run, data_folder):
    before = (finished_run / "config.json").read_bytes()
    with pytest.raises(fr.UserError, match=message):
        fr.fit(config(data_folder, finished_run, **change), quiet=True)
    assert (finished_run / "config.json").read_bytes() == before


def test_allow_config_changes_resumes(finished_run, data_folder, tmp_path, capsys):
    copy = shutil.copytree(finished_run, tmp_path / "copy")
    stored = json.loads((copy / "config.json").read_text())
    stored["versions"] |= {"jax": "0.1.2"}
    (copy / "config.json").write_text(json.dumps(stored))
    changes = {"seed": 1, "epochs": 4}
    with pytest.raises(fr.UserError, match="--no-resume to start again, or --allow-config-changes to resume anyway"):
        fr.fit(config(data_folder, copy, **changes), quiet=True)
    run = fr.fit(config(data_folder, copy, allow_config_changes=True, **changes))
    output = " ".join(capsys.readouterr().out.split())
    assert "--allow-config-changes: the run so far had --seed 0, not 1" in output
    assert f"the run so far used jax 0.1.2 (now {jax.__version__})" in output
    assert [row["epoch"] for row in run.history] == [1, 2, 3, 4]
    assert json.loads((copy / "config.json").read_text())["config"]["seed"] == 1
    with pytest.raises(fr.UserError, match=r"--width 16, not 8; give another --workdir, or --no-resume .* again$"):
        fr.fit(config(data_folder, copy, allow_config_changes=True, width=8, **changes), quiet=True)


def test_workdir_rejects_other_data(finished_run, tmp_path):
    write_hdf5(tmp_path / "train.h5", "train", blobs(44, seed=3))
    write_hdf5(tmp_path / "test.h5", "test", blobs(19, seed=2))
    with pytest.raises(fr.UserError, match="holds a run with other training data"):
        fr.fit(config(tmp_path, finished_run), quiet=True)


def test_workdir_rejects_other_test_images(finished_run, data_folder, tmp_path):
    shutil.copy(data_folder / "train.h5", tmp_path)
    write_hdf5(tmp_path / "test.h5", "test", blobs(19, seed=4))
    with pytest.raises(fr.UserError, match="holds a run with other test data"):
        fr.fit(config(tmp_path, finished_run), quiet=True)


def test_finished_run_compiles_no_step(finished_run, data_folder, tmp_path, monkeypatch, capsys):
    copy = shutil.copytree(finished_run, tmp_path / "copy")
    monkeypatch.setattr(compiled_steps, "compile_low_memory", lambda *_: 1 / 0)
    run = fr.fit(config(data_folder, copy, epochs=3, profile=True))
    assert [row["epoch"] for row in run.history] == [1, 2, 3]
    output = capsys.readouterr().out
    assert "nothing left for --epochs 3" in output.replace("\n", " ")
    assert "--profile" not in output


def test_damaged_last_checkpoint_repeats_epoch(finished_run, data_folder, tmp_path):
    copy = shutil.copytree(finished_run, tmp_path / "copy")
    for file in (copy / "checkpoints" / "15" / "params").rglob("d/*"):
        file.write_bytes(b"")
    run = fr.fit(config(data_folder, copy, epochs=3), quiet=True)
    assert (copy / "corrupt").is_dir()
    assert without_times(run.history) == without_times(RunDir(finished_run).read_metrics())
    assert saved_bytes(copy) == saved_bytes(finished_run)


def test_workdir_rejects_checkpoints_without_config(finished_run, data_folder, tmp_path):
    copy = shutil.copytree(finished_run, tmp_path / "copy")
    (copy / "config.json").unlink()
    with pytest.raises(fr.UserError, match=r"holds checkpoints of a run without config\.json; give another"):
        fr.fit(config(data_folder, copy), quiet=True)
    run = fr.fit(config(data_folder, copy, epochs=1, resume=False), quiet=True)
    assert [row["epoch"] for row in run.history] == [1]
    assert (tmp_path / "copy.1" / "checkpoints").is_dir()


def test_fewer_epochs_keep_record(finished_run, data_folder, tmp_path, capsys):
    copy = shutil.copytree(finished_run, tmp_path / "copy")
    rows = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text(rows[-1])  # as if the rows before were lost
    run = fr.fit(config(data_folder, copy, epochs=2))
    output = capsys.readouterr().out.replace("\n", " ")
    assert f"{copy} has trained 3 epochs; nothing left for --epochs 2" in output
    assert "compiled" not in output
    assert [row["epoch"] for row in run.history] == [3]
    assert json.loads((copy / "config.json").read_text())["config"]["epochs"] == 3


def test_checkpoint_corrects_damaged_rows(finished_run, data_folder, tmp_path, capsys):
    copy = shutil.copytree(finished_run, tmp_path / "copy")
    row = RunDir(copy).read_metrics()[-1] | {"epoch": 999_999}
    with (copy / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n" + '{"epoch": 999999999999, "step": 15}\n')
    fr.fit(config(data_folder, copy, epochs=2))
    assert json.loads((copy / "config.json").read_text())["config"]["epochs"] == 3
    assert [row["epoch"] for row in RunDir(copy).read_metrics()] == [1, 2, 3]
    backup = copy / "corrupt" / "metrics.jsonl.1"
    assert f"damaged lines; the original file is {backup}" in capsys.readouterr().out.replace("\n", " ")
    assert "999999999999" in backup.read_text()


def test_workdir_rejects_metrics_without_config(data_folder, tmp_path):
    (folder := tmp_path / "mine").mkdir()
    for text in ('{"epoch": 1, "step": 10, "mine": "precious"}\n', "notes"):
        (folder / "metrics.jsonl").write_text(text)
        message = r"mine holds a metrics\.jsonl of a run without config\.json; give another --workdir, or --no-resume"
        with pytest.raises(fr.UserError, match=message):
            fr.fit(config(data_folder, folder), quiet=True)
        assert (folder / "metrics.jsonl").read_text() == text
        assert [path.name for path in folder.iterdir()] == ["metrics.jsonl"]
    run = fr.fit(config(data_folder, folder, epochs=1, resume=False), quiet=True)
    assert len(run.history) == 1
    assert (tmp_path / "mine.1" / "metrics.jsonl").read_text() == "notes"


@pytest.mark.parametrize("rows", [1, 3])
def test_workdir_rejects_metrics_without_checkpoint(finished_run, data_folder, tmp_path, rows):
    copy = shutil.copytree(finished_run, tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints")
    text = "".join((copy / "metrics.jsonl").read_text().splitlines(keepends=True)[:rows])
    (copy / "metrics.jsonl").write_text(text)
    for _ in range(2):
        message = rf"holds metrics of {rows} epoch\(s\), but no checkpoint to resume from; restore its checkpoints, or"
        with pytest.raises(fr.UserError, match=message):
            fr.fit(config(data_folder, copy, epochs=4), quiet=True)
        assert (copy / "metrics.jsonl").read_text() == text
    if rows == 3:
        (copy / "checkpoints").mkdir()  # an empty folder is no better
        with pytest.raises(fr.UserError, match=message):
            fr.fit(config(data_folder, copy, epochs=4), quiet=True)
    assert len(fr.fit(config(data_folder, copy, epochs=1, resume=False), quiet=True).history) == 1
    assert (tmp_path / "copy.1" / "metrics.jsonl").read_text() == text


def test_first_epoch_without_checkpoint_repeats(finished_run, data_folder, tmp_path, capsys):
    copy = shutil.copytree(finished_run, tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints")
    (copy / "checkpoints" / "5.orbax-checkpoint-tmp").mkdir(parents=True)
    row = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)[0]
    (copy / "metrics.jsonl").write_text(row)
    run = fr.fit(config(data_folder, copy, epochs=1))
    assert [row["epoch"] for row in run.history] == [1]
    backup = copy / "corrupt" / "metrics.jsonl.1"
    assert f"epoch 1 has no checkpoint and starts again; its metrics are in {backup}" in (
        capsys.readouterr().out.replace("\n", " ")
    )
    assert backup.read_text() == row


def test_failed_start_allows_other_options(data_folder, tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("out of everything")

    for options in ({"width": 8}, {"batch_size": 16}):
        with monkeypatch.context() as patch:
            patch.setattr(fitting, "InputPipeline", fails)
            with pytest.raises(RuntimeError, match="out of everything"):
                fr.fit(config(data_folder, tmp_path / "run", **options), quiet=True)
        stored = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
        assert options.items() <= stored.items()
    backup = json.loads((tmp_path / "run" / "corrupt" / "config.json.1").read_text())
    assert backup["config"]["width"] == 8  # of the failed start
    fr.fit(config(data_folder, tmp_path / "run", epochs=1), quiet=True)
    assert RunDir(tmp_path / "run").read_metadata().config.width == TINY_CONFIG["width"]
    with pytest.raises(fr.UserError, match="holds a run with --width 16, not 8"):  # now there is a checkpoint
        fr.fit(config(data_folder, tmp_path / "run", epochs=1, width=8), quiet=True)


@pytest.mark.parametrize("text", ['{"name": "my web app", "port": 80}', "cut o"])
def test_workdir_rejects_foreign_config(data_folder, tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(fr.UserError, match=r"config\.json"):
        fr.fit(config(data_folder, tmp_path, epochs=1), quiet=True)
    assert (tmp_path / "config.json").read_text() == text


def test_unreadable_metrics_raise_early(finished_run, data_folder, tmp_path):
    copy = shutil.copytree(finished_run, tmp_path / "copy")
    (copy / "metrics.jsonl").unlink()
    (copy / "metrics.jsonl").mkdir()
    with pytest.raises(fr.UserError, match=r"metrics\.jsonl cannot be read: Is a directory"):
        fr.fit(config(data_folder, copy, epochs=4), quiet=True)


def test_no_resume_renames_old_run(finished_run, data_folder, tmp_path):
    copy = shutil.copytree(finished_run, tmp_path / "copy")
    run = fr.fit(config(data_folder, copy, epochs=1, seed=5, resume=False), quiet=True)
    assert len(run.history) == 1
    assert not [*tmp_path.glob("*/.flaxresnet-lock")]
    assert len(RunDir(tmp_path / "copy.1").read_metrics()) == 3
    assert (tmp_path / "copy.1" / "checkpoints").is_dir()


# Added to a batch's labels, these make `poisoned_train_step` set the parameters to NaN before or after the update.
BEFORE, AFTER = 100, 200


def poisoned_train_step(*arguments, make=compiled_steps.make_train_step):
    step = make(*arguments)

    def poisoned(state, metrics, batch):
        mark = batch.labels[0] // BEFORE * BEFORE

        def nan_if(marked, params):
            return jax.tree.map(lambda leaf: jnp.where(marked, jnp.nan, leaf), params)

        state = state.replace(params=nan_if(mark == BEFORE, state.params))
        state, metrics = step(state, metrics, batch.replace(labels=batch.labels % BEFORE))
        return state.replace(params=nan_if(mark == AFTER, state.params)), metrics

    return poisoned


@pytest.fixture
def poison(monkeypatch):
    """Returns a function that poisons a step of the next run: `poison(step, BEFORE or AFTER)`, counted from 1."""
    monkeypatch.setattr(compiled_steps, "make_train_step", poisoned_train_step)

    def poison(step, mark):
        def next_batch(session, batches, state, metrics, real=trainer.next_batch):
            batch = real(session, batches, state, metrics)
            return batch.replace(labels=batch.labels + mark) if state.step == step - 1 else batch

        monkeypatch.setattr(trainer, "next_batch", next_batch)

    return poison


def test_non_finite_loss_keeps_checkpoint(data_folder, tmp_path, poison):
    fr.fit(config(data_folder, tmp_path / "run", epochs=1), quiet=True)
    poison(8, BEFORE)
    with pytest.raises(fr.UserError, match=r"not finite at step 8 \(the checkpoint after step 5 is kept\)"):
        fr.fit(config(data_folder, tmp_path / "run", epochs=2), quiet=True)
    assert [row["epoch"] for row in RunDir(tmp_path / "run").read_metrics()] == [1]
    assert fr.evaluate(tmp_path / "run").count == 19


@pytest.mark.parametrize(("last", "every"), [(10, 1000), (8, 8)], ids=["of an epoch", "before a checkpoint"])
def test_non_finite_update_is_not_saved(data_folder, tmp_path, poison, last, every):
    fr.fit(config(data_folder, tmp_path / "run", epochs=1), quiet=True)
    poison(last, AFTER)
    with pytest.raises(fr.UserError, match=rf"not finite at step {last} \(the checkpoint after step 5 is kept\)"):
        fr.fit(config(data_folder, tmp_path / "run", epochs=2, checkpoint_steps=every), quiet=True)
    assert [row["epoch"] for row in RunDir(tmp_path / "run").read_metrics()] == [1]
    assert np.isfinite(fr.evaluate(tmp_path / "run").loss)


def test_step_donates_state(data_folder, tmp_path, monkeypatch):
    donated = []

    def train_epoch(session, epoch, state, *rest, real=trainer.train_epoch):
        donated.extend(jax.tree.leaves(state.params))
        return real(session, epoch, state, *rest)

    monkeypatch.setattr(trainer, "train_epoch", train_epoch)
    fr.fit(config(data_folder, tmp_path / "run", epochs=1), quiet=True)
    assert donated
    assert all(leaf.is_deleted() for leaf in donated)


def test_precise_bn_improves_evaluation(data_folder, tmp_path):
    measured, running = (
        fr.fit(config(data_folder, tmp_path / str(n), epochs=2, recipe="tutorial", precise_bn_images=n), quiet=True)
        for n in (40, 0)
    )
    # The training is the same, step by step; only the statistics of the evaluation differ.
    assert [r["train_loss"] for r in measured.history] == [r["train_loss"] for r in running.history]
    assert measured.test_loss < running.test_loss
    assert measured.history[-1]["precise_bn_seconds"] > running.history[-1]["precise_bn_seconds"]


@pytest.mark.parametrize("strength", [pytest.param(0.0, marks=pytest.mark.campaign), 1.0])
def test_precise_bn_uses_augmented_images(data_folder, tmp_path, strength):
    options = {
        "aug_strength": strength,
        "aug_warmup_epochs": 0.0,
        "background_prob": 0.0,
        "precise_bn_images": 20,
        "seed": 3,
    }
    fr.fit(config(data_folder, tmp_path / "run", epochs=1, **options), quiet=True)
    info, variables = load_run(tmp_path / "run")
    train = fr.open_dataset(data_folder, fr.ReadOptions(image_size=(32, 32))).train
    order = np.random.default_rng((ORDER_STREAM, 3)).permutation(len(train))
    batches = train.images[order[:16]].reshape(2, 8, 32, 32, 3)
    evaluated = batches / np.float32(255)
    if strength:  # with the keys of the two steps after the five that are trained
        keys = [jax.random.fold_in(jax.random.key(3), step) for step in (5, 6)]
        evaluated = np.stack([jax.jit(augment)(key, images) for key, images in zip(keys, evaluated, strict=True)])
        assert np.abs(evaluated - batches / 255).mean() > 0.05
    first = variables["params"]["conv1"]
    padded = np.pad(info.preprocessing.normalize(evaluated.reshape(16, 32, 32, 3)), ((0, 0), (3, 3), (3, 3), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (7, 7), axis=(1, 2))[:, ::2, ::2]
    values = np.einsum("nyxcij,ijco->nyxo", windows, first["kernel"]) + first["bias"]
    stem = variables["batch_stats"]["bn_conv1"]
    np.testing.assert_allclose(stem["mean"], values.mean(axis=(0, 1, 2)), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(stem["var"], values.var(axis=(0, 1, 2)), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 45}, "--batch-size 45 is more than the 44 training images"),
        ({"image_size": (48, 32)}, "--image-size 48×32 applies to folders of images, and the images in .* are 32×32"),
        ({"workdir": "/dev/null/run"}, "/dev/null/run cannot be (read|written)"),
    ],
)
def test_fit_rejects_unfit_options(options, message, data_folder, tmp_path):
    with pytest.raises(fr.UserError, match=message):
        fr.fit(config(data_folder, **{"workdir": tmp_path / "run"} | options), quiet=True)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (blobs(9, 1), None, "has no test split; give both, in one file or in a folder of two"),
        (None, blobs(9, 1), "has no training split"),
        (fr.Dataset(blobs(3, 1).images, np.zeros(3, np.int32), ("only",)), None, r"one class \(only\)"),
        (blobs(9, 1, size=20), blobs(9, 2, size=20), "has images of 20×20 pixels; the network needs 32×32 or more"),
        (
            fr.Dataset(blobs(9, 1).images, np.zeros(9, np.int32), ("only",)),
            fr.Dataset(blobs(9, 1).images, np.zeros(9, np.int32), ("only",)),
            r"one class \(only\)",
        ),
        (
            fr.Dataset(blobs(9, 1).images, np.ones(9, np.int32), ("a", "b")),
            fr.Dataset(blobs(9, 1).images, np.arange(9, dtype=np.int32) % 2, ("a", "b")),
            "all 9 training images are of the class b; a classifier needs two or more, so check the labels",
        ),
    ],
)
def test_fit_rejects_untrainable_data(train, test, message, tmp_path):
    for name, split in (("train", train), ("test", test)):
        if split is not None:
            write_hdf5(tmp_path / f"{name}.h5", name, split)
    with pytest.raises(fr.UserError, match=message):
        fr.fit(config(tmp_path, tmp_path / "run"), quiet=True)


def test_short_steps_are_read_rarely(data_folder, tmp_path, monkeypatch):
    reads = []
    monkeypatch.setattr(trainer, "read_metrics", lambda *a, real=trainer.read_metrics: (reads.append(1), real(*a))[1])
    monkeypatch.setattr(trainer, "READ_INTERVAL", 1000.0)
    fr.fit(config(data_folder, tmp_path / "run"), quiet=True)
    assert len(reads) == 4  # the first step and the sum of each epoch


def test_eval_compiles_after_first_step(data_folder, tmp_path, monkeypatch, own_programs):
    compiled = []
    compiled_at_read = []
    started = []
    compiled_at = {}

    def count_compilation(event, *_, **__):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    def read_metrics(*arguments, real=trainer.read_metrics):
        compiled_at_read.append(len(compiled))
        return real(*arguments)

    def compile_program(self, name, *arguments, real=compiled_steps.CompiledSteps._compiled, **options):
        compiled_at[name] = len(compiled_at_read)
        return real(self, name, *arguments, **options)

    def submit(*arguments, real=compiled_steps.CompiledSteps._submit):
        started.append(len(compiled_at_read))
        return real(*arguments)

    jax.monitoring.register_event_duration_secs_listener(count_compilation)
    monkeypatch.setattr(trainer, "read_metrics", read_metrics)
    monkeypatch.setattr(compiled_steps.CompiledSteps, "_compiled", compile_program)
    monkeypatch.setattr(compiled_steps.CompiledSteps, "_submit", submit)
    monkeypatch.setattr(trainer, "READ_INTERVAL", 0.0)
    fr.fit(config(data_folder, tmp_path / "run", epochs=2, width=5), quiet=True)
    assert compiled_at["create"] == compiled_at["train_step"] == 0  # before the first step
    assert started == [1, 1]  # evaluation and statistics, after the first step
    assert len(compiled_at_read) == 8  # in each epoch, three of five steps while they run, then the sum
    assert compiled_at_read[0] > 0
    assert compiled_at_read[4] == compiled_at_read[-1]  # the second epoch compiles nothing


def test_early_error_skips_compilation(data_folder, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(
        compiled_steps,
        "make_eval_step",
        lambda *a, real=compiled_steps.make_eval_step: (started.append("evaluate"), real(*a))[1],
    )
    monkeypatch.setattr(fitting, "init_or_restore", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fr.fit(config(data_folder, tmp_path / "run", epochs=1), quiet=True)
    assert not started


def test_pipe_receives_plain_lines(data_folder, tmp_path, capsys):
    fr.fit(config(data_folder, tmp_path / "run", epochs=1))
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert "number of training examples = 44" in lines
    assert "X_train shape: (44, 32, 32, 3)  Y_train shape: (44,)" in lines
    assert "Compiling" in printed.err
    assert not any(line.startswith("compiled for 1 ") for line in lines)  # a detail for engineers
    assert lines[-1].startswith("epoch 1/1  train loss ")
    assert not any("\x1b" in line or "\r" in line for line in lines)


def test_fit_rejects_indivisible_width(tmp_path, data_folder):
    message = "--width 4 cannot be divided into the 32 groups of resnext50_32x4d; give a multiple of 16"
    with pytest.raises(fr.UserError, match=message):
        fr.fit(config(data_folder, tmp_path / "run", model="resnext50_32x4d", width=4), quiet=True)
    assert not (tmp_path / "run").exists()


def test_evaluation_uses_ema(data_folder, tmp_path, monkeypatch):
    evaluated = []

    def evaluate(session, state, metrics, stats, *rest, real=trainer.evaluate):
        evaluated.append(jax.tree.map(np.asarray, (state.params, state.ema_params, stats)))
        return real(session, state, metrics, stats, *rest)

    monkeypatch.setattr(trainer, "evaluate", evaluate)
    options = {"optimizer": "sgd", "learning_rate": 1e-2}  # Adam's first steps amplify rounding
    run = fr.fit(config(data_folder, tmp_path / "run", ema=0.97, **options), quiet=True)
    params, averaged, stats = evaluated[-1]
    saved = fr.Classifier.load(tmp_path / "run").variables
    jax.tree.map(np.testing.assert_array_equal, saved["params"], averaged)
    jax.tree.map(np.testing.assert_array_equal, saved["batch_stats"], stats)
    assert not np.allclose(params["fc3"]["kernel"], averaged["fc3"]["kernel"], rtol=1e-3)
    assert fr.evaluate(tmp_path / "run").loss == pytest.approx(run.test_loss, rel=1e-4)
    # The training equals one without an average up to rounding, because the program differs.
    plain = fr.fit(config(data_folder, tmp_path / "plain", **options), quiet=True)
    losses = [row["train_loss"] for row in run.history]
    assert [row["train_loss"] for row in plain.history] == pytest.approx(losses, rel=1e-5)
    same = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(same, fr.Classifier.load(tmp_path / "plain").variables["params"], params)
    assert plain.test_loss != run.test_loss


def test_contradicting_options_raise_early(tmp_path):
    with pytest.raises(fr.UserError, match="--grad-accum-steps 3 does not divide --batch-size 8"):
        fr.fit(config("no such folder", tmp_path / "run", grad_accum_steps=3), quiet=True)


@pytest.mark.parametrize("optimizer", ["sgd", "lamb"])
def test_optimizer_follows_options(optimizer, data_folder, tmp_path, monkeypatch):
    class OptimizerError(Exception):
        pass

    def make(recipe, schedule, groups):
        raise OptimizerError({name: getattr(recipe, name) for name in options})

    monkeypatch.setattr(compiled_steps, "make_optimizer", make)
    options = {"optimizer": optimizer, "weight_decay": 0.01, "clip_grad": 0.5, "layer_decay": 0.5}
    with pytest.raises(OptimizerError) as raised:
        fr.fit(config(data_folder, tmp_path / "run", epochs=1, **options), quiet=True)
    assert raised.value.args == (options,)


def test_ema_starts_at_pretrained_weights(finished_run, data_folder, tmp_path):
    options = {"init": str(finished_run), "learning_rate": 1e-9, "epochs": 1}
    run = fr.fit(config(data_folder, tmp_path / "run", ema=0.999, **options), quiet=True)
    assert run.test_accuracy == fr.evaluate(finished_run, data_folder).accuracy


def test_default_workdir_renames_other_format(finished_run, data_folder, tmp_path, monkeypatch, capsys):
    """The tutorials' command always works: it renames an old run."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_run, "runs/default")
    stored = json.loads(Path("runs/default/config.json").read_text())
    Path("runs/default/config.json").write_text(json.dumps(stored | {"format": 1}))
    fr.fit(fr.TrainConfig(data=data_folder, epochs=1, **TINY_CONFIG))
    renamed = re.search(r"another version wrote the run in runs/default; it is now (\S+)", capsys.readouterr().out)[1]
    assert json.loads(Path(renamed, "config.json").read_text())["format"] == 1
    assert len(RunDir("runs/default").read_metrics()) == 1
    shutil.copytree(renamed, "elsewhere")
    with pytest.raises(fr.UserError, match="has format 1, and this version reads format 2; train again with another"):
        fr.fit(fr.TrainConfig(data=data_folder, epochs=1, workdir="elsewhere", **TINY_CONFIG))
