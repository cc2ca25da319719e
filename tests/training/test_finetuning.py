"""Tests of runs that start from pretrained weights, with and without frozen stages."""

import dataclasses
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from conftest import TINY_CONFIG, blobs
from PIL import Image

import flaxresnet as fr
from flaxresnet.cli import main as commands
from flaxresnet.cli import parser
from flaxresnet.data.hdf5 import write_hdf5
from flaxresnet.models.resnet import stage_of
from flaxresnet.runs.run_dir import RunDir
from flaxresnet.training.param_groups import frozen_groups, trainable_params
from flaxresnet.training.train_state import TrainState
from flaxresnet.weights import run_weights
from flaxresnet.weights.run_weights import read_run, write_run
from flaxresnet.weights.weight_files import write_weights


def train(data, workdir, quiet=True, **options):
    return fr.fit(
        fr.TrainConfig(**{"data": data, "workdir": workdir, "epochs": 1, **TINY_CONFIG} | options), quiet=quiet
    )


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    for name, count, seed in (("train", 44, 1), ("test", 19, 2)):
        data = blobs(count, seed)
        keep = data.labels < 2
        write_hdf5(folder / f"{name}.h5", name, fr.Dataset(data.images[keep], data.labels[keep], ("red", "green")))
    return folder


def test_init_from_run_keeps_accuracy(tmp_path, data_folder, finished_run):
    before = fr.evaluate(finished_run, data_folder)
    run = train(data_folder, tmp_path / "run", init=str(finished_run), learning_rate=1e-9)
    assert run.history[0]["test_accuracy"] == before.accuracy
    assert run.history[0]["test_loss"] == pytest.approx(before.loss, rel=1e-3)


def test_init_repeats_without_checkpoint(tmp_path, data_folder, finished_run):
    options = {"init": str(finished_run)}
    first = train(data_folder, tmp_path / "run", **options).history[0]
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "checkpoints").mkdir()
    again = train(data_folder, tmp_path / "run", **options).history[0]
    assert (again["train_loss"], again["test_loss"]) == (first["train_loss"], first["test_loss"])


def test_head_follows_class_names(tmp_path, finished_run):
    for name, count, seed in (("train", 44, 1), ("test", 19, 2)):
        data = blobs(count, seed)
        write_hdf5(tmp_path / f"{name}.h5", name, fr.Dataset(data.images, 2 - data.labels, data.class_names[::-1]))
    before = fr.evaluate(finished_run)
    run = train(tmp_path, tmp_path / "run", init=str(finished_run), learning_rate=1e-9)
    assert run.history[0]["test_accuracy"] == before.accuracy
    assert run.history[0]["test_loss"] == pytest.approx(before.loss, rel=1e-3)
    names = fr.Classifier.load(tmp_path / "run").class_names
    assert names == ("blue", "green", "red")


def test_other_classes_reset_head(tmp_path, two_classes, finished_run, capsys):
    train(two_classes, tmp_path / "run", quiet=False, init=str(finished_run), learning_rate=1e-9)
    output = " ".join(capsys.readouterr().out.split())
    assert (
        f"starting from {finished_run}: resnet14, tutorial; the last layer starts from random weights "
        "(the weights have 3 classes, the data 2); the network forgets blue unless the data have images of them too"
    ) in output
    before, after = read_run(finished_run).arrays, read_run(tmp_path / "run").arrays
    assert after["fc/kernel"].shape[1] == 2
    for name in after:
        if not name.startswith("fc/") and not name.endswith(("mean", "var")):
            np.testing.assert_allclose(after[name], before[name], atol=1e-6, err_msg=name)


def test_frozen_stages_keep_weights(tmp_path, two_classes, finished_run, capsys):
    train(two_classes, tmp_path / "run", quiet=False, init=str(finished_run), freeze="backbone")
    output = " ".join(capsys.readouterr().out.split())
    before, after = read_run(finished_run).arrays, read_run(tmp_path / "run").arrays
    parameters = {name: array.size for name, array in after.items() if not name.endswith(("/mean", "/var"))}
    head = sum(size for name, size in parameters.items() if name.startswith("fc/"))
    rest = sum(parameters.values()) - head
    assert f"frozen: stem, stage2 ({rest:,} parameters); trainable: head ({head:,} parameters)" in output
    for name in before:
        if not name.startswith("fc/"):
            np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    model = RunDir(tmp_path / "run").read_metadata().model()
    state = jax.eval_shape(lambda: TrainState.create(model, optax.adam(1.0), jax.random.key(0), (32, 32)))
    moments = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.opt_state)]
    assert sum("fc2" in name for name in moments) == len(moments) - 1, "what is frozen has no optimiser state"


def test_finetuning_learns_own_photos(tmp_path, finished_run, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "improve-on-your-photos.md").read_text()
    block = re.search(r"## Fine-tune, with labels.*?```bash\n(.*?)\n```", page, re.DOTALL)[1]
    first, training, second = block.splitlines()
    for split, count, seed in (("train", 30, 5), ("test", 60, 6)):
        data = blobs(count, seed)
        warm = (data.images * np.array([1.0, 0.2, 0.2])).astype(np.uint8)  # a warm lamp makes all of them red
        for index, (image, label) in enumerate(zip(warm, data.labels, strict=True)):
            path = tmp_path / "mine" / split / data.class_names[label] / f"{index:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    shutil.copytree(finished_run, tmp_path / "runs" / "signs")
    monkeypatch.chdir(tmp_path)

    def accuracy(line):
        monkeypatch.setattr(sys, "argv", ["flaxresnet", *shlex.split(line)[1:], "--json"])
        assert commands.main() == 0
        return json.loads(capsys.readouterr().out)["accuracy"]

    before = accuracy(first)
    config = parser.parse(fr.TrainConfig, shlex.split(training)[2:], prog="flaxresnet train")
    # The network has hardly learned, so its rate is higher than the page's. Augmentation is slow to compile.
    fr.fit(dataclasses.replace(config, epochs=6, learning_rate=1e-2, aug_strength=0.0, report=False), quiet=True)
    after = accuracy(second)
    assert before < 0.8
    assert after > 0.9


def test_unfrozen_stages_learn(tmp_path, data_folder, finished_run):
    train(data_folder, tmp_path / "run", init=str(finished_run), freeze="stem")
    before, after = read_run(finished_run).arrays, read_run(tmp_path / "run").arrays
    for name in before:
        layer = name.split("/")[0]
        same = np.array_equal(after[name], before[name])
        assert same is (layer in ("conv1", "bn_conv1")), name


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"ema": 0.5, "precise_bn_images": 0, "grad_accum_steps": 2},
        pytest.param({"precise_bn_images": 0}, marks=pytest.mark.campaign),
        pytest.param({"ema": 0.5, "precise_bn_images": 0}, marks=pytest.mark.campaign),
        pytest.param({"grad_accum_steps": 2}, marks=pytest.mark.campaign),
    ],
)
def test_freeze_bn_stats_keeps_statistics(tmp_path, data_folder, finished_run, capsys, more):
    run = train(data_folder, tmp_path / "run", quiet=False, init=str(finished_run), freeze_bn_stats=True, **more)
    assert "batch norm keeps the statistics of the weights" in " ".join(capsys.readouterr().out.split())
    before, after = read_run(finished_run).arrays, read_run(tmp_path / "run").arrays
    for name in before:
        statistic = name.endswith(("/mean", "/var"))
        assert np.array_equal(after[name], before[name]) is statistic, name
    assert run.history[-1]["test_accuracy"] == fr.evaluate(tmp_path / "run").accuracy


def test_frozen_stages_cost_no_gradient(small_init):
    model = fr.ResNet(num_classes=2, stage_sizes=(1, 1), bottleneck=False, width=4)
    variables = small_init(model)
    images = np.zeros((2, 32, 32, 3), np.float32)

    def work(frozen):
        network = model.clone(frozen=frozen)

        def loss(trained):
            params = {"params": variables["params"] | trained, "batch_stats": variables["batch_stats"]}
            return network.apply(params, images, train=True, mutable=["batch_stats"])[0].sum()

        trained = trainable_params(variables["params"], frozen_groups(frozen))
        return jax.jit(jax.grad(loss)).lower(trained).compile().cost_analysis()["flops"]

    everything, half, head = (
        work(()),
        work(("stem", "stage2")),
        work(("stem", "stage2", "stage3")),
    )
    assert head < half < everything
    assert head < 0.45 * everything  # the forward pass is a third of it


def test_prediction_uses_preprocessing_of_weights(tmp_path, data_folder):
    from random_weights import random_weights

    weights = dataclasses.replace(random_weights("resnet14", "keras", width=4), class_names=None)
    write_weights(weights, tmp_path / "w.h5")
    train(data_folder, tmp_path / "run", init=str(tmp_path / "w.h5"), model=None, width=None)
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert [stored["config"][name] for name in ("model", "variant", "width")] == ["resnet14", "keras", 4]
    classifier = fr.Classifier.load(tmp_path / "run")
    assert classifier.preprocessing.channels == "bgr"
    assert classifier.preprocessing.mean == (103.939, 116.779, 123.68)
    assert (classifier.preprocessing.height, classifier.preprocessing.width) == (32, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "resnet34"}, r"--init .* has --model resnet14, not resnet34; leave --model out"),
        ({"variant": "keras"}, r"--init .* has --variant tutorial, not keras; leave --variant out"),
        ({"width": 8}, r"--init .* has --width 16, not 8; leave --width out"),
        ({"init": "nowhere.h5"}, r"nowhere\.h5 does not exist; give a weight file or a run"),
    ],
)
def test_init_rejects_other_network(tmp_path, data_folder, finished_run, options, message):
    with pytest.raises(fr.UserError, match=message):
        train(data_folder, tmp_path / "run", **{"init": str(finished_run)} | options)
    assert not (tmp_path / "run").exists()


def test_converted_weights_cannot_resume(tmp_path, data_folder, finished_run):
    weights = read_run(finished_run)
    write_run(weights, tmp_path / "copy", "weights of a test")
    images = blobs(4, seed=3).images
    np.testing.assert_array_equal(
        fr.Classifier.load(tmp_path / "copy").logits(images), fr.Classifier.load(finished_run).logits(images)
    )
    with pytest.raises(fr.UserError, match=r"copy exists and is not overwritten; name another folder"):
        write_run(weights, tmp_path / "copy", "weights of a test")
    with pytest.raises(fr.UserError, match=r"copy holds weights of a test, which cannot be resumed; give --init"):
        train(data_folder, tmp_path / "copy")
    with pytest.raises(fr.UserError, match=r"have no last layer; train one with --init first"):
        write_run(dataclasses.replace(weights, num_classes=None), tmp_path / "headless", "nothing")


def test_failed_write_run_leaves_nothing(tmp_path, finished_run, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_weights.EpochCheckpoints, "save_variables", full)
    with pytest.raises(fr.UserError, match=r"run cannot be written: No space left on device"):
        write_run(read_run(finished_run), tmp_path / "run", "weights of a test")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("layer", "part"),
    [("conv1", "stem"), ("bn_conv1", "stem"), ("res2a", "stage2"), ("res4b12", "stage4"), ("fc6", "head")],
)
def test_stage_of_layer(layer, part):
    assert stage_of(layer) == part
