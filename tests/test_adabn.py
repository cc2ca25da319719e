"""AdaBN: statistics of the new photos, better predictions on them, and everything else unchanged."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import blobs
from matplotlib.figure import Figure
from PIL import Image

import flaxresnet as fr
from flaxresnet.adabn import compute_bn_stats
from flaxresnet.data.dataset import Splits
from flaxresnet.data.hdf5 import write_hdf5
from flaxresnet.runs.checkpoint_io import load_run


def foggy_blobs(count: int, seed: int) -> fr.Dataset:
    """Returns images of the classes with a third of the contrast."""
    data = blobs(count, seed)
    return replace(data, images=(data.images / 3 + 150).astype(np.uint8))


def accuracy(run, data):
    """Returns the fraction of images that the run classifies correctly."""
    return (fr.Classifier.load(run).probabilities(data.images).argmax(axis=1) == data.labels).mean()


def write_photos(images, folder):
    folder.mkdir(exist_ok=True)
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index:02}.png")


@pytest.fixture
def run_cli(monkeypatch, capsys):
    """Returns a function that runs a command and returns its exit status, output and errors."""
    from flaxresnet.cli import main as commands

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["flaxresnet", *map(str, arguments)])
        status = commands.entry_point()
        return status, *capsys.readouterr()

    return run


def test_adapt_improves_accuracy(finished_run, tmp_path):
    test = foggy_blobs(60, seed=5)
    before = accuracy(finished_run, test)
    assert fr.adapt(finished_run, foggy_blobs(24, seed=6).images, tmp_path / "here") is None
    assert before < 0.7
    assert accuracy(tmp_path / "here", test) > before + 0.2


def test_adapt_changes_only_statistics(finished_run, tmp_path):
    images = foggy_blobs(24, seed=6).images
    fr.adapt(finished_run, images, tmp_path / "here")
    old_info, old = load_run(finished_run)
    new_info, new = load_run(tmp_path / "here")
    assert jax.tree.all(jax.tree.map(np.array_equal, old["params"], new["params"]))
    assert old_info.preprocessing == new_info.preprocessing
    # The first convolution in float64 by NumPy: 7×7, stride 2, padding 3.
    kernel = np.asarray(old["params"]["conv1"]["kernel"], np.float64)
    bias = np.asarray(old["params"]["conv1"]["bias"], np.float64)
    padded = np.pad(images / 255, ((0, 0), (3, 3), (3, 3), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (7, 7), axis=(1, 2))[:, ::2, ::2]
    features = np.einsum("nhwcij,ijcf->nhwf", windows, kernel) + bias
    stats = new["batch_stats"]["bn_conv1"]
    np.testing.assert_allclose(stats["mean"], features.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats["var"], features.var((0, 1, 2)), rtol=1e-3, atol=1e-6)
    assert not np.allclose(stats["mean"], old["batch_stats"]["bn_conv1"]["mean"], rtol=0.1)


def test_adapt_command_improves_predictions(run_cli, finished_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    data = foggy_blobs(30, seed=5)
    for index, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
        Image.fromarray(image).save(f"photos/{index:02}-{data.class_names[label]}.png")

    def count_correct(run):
        _, out, _ = run_cli("predict", run, "photos", "--json")
        answers = [json.loads(line) for line in out.splitlines()]
        return sum(answer["label"] in answer["file"] for answer in answers)

    before = count_correct(finished_run)
    assert run_cli("adapt", finished_run, "here", "photos")[0] == 0
    assert before <= 20  # one class of three is lost
    assert count_correct("here") > before + 5


@pytest.mark.parametrize(("count", "shape"), [(33, (2, 17)), (192, (6, 32))])
def test_batches_mix_photos_and_classes(count, shape, finished_run, monkeypatch):
    calls = []
    monkeypatch.setattr("flaxresnet.adabn.measure_batch_stats", lambda *arguments, **_: calls.append(arguments))
    monkeypatch.setattr("jax.jit", lambda function: function)
    classifier = fr.Classifier.load(finished_run)
    compute_bn_stats(classifier.model, {}, classifier.preprocessing, np.arange(count).reshape(count, 1, 1, 1))
    batches = calls[0][2][..., 0, 0, 0]
    assert batches.shape == shape
    assert len(np.unique(batches)) == count
    for labels in (batches % 6, batches * 6 // count):  # six classes in turn, and sorted by class
        assert all(len(np.unique(batch)) >= 5 for batch in labels)


def test_adapt_subsamples_512_images(finished_run, tmp_path, monkeypatch):
    calls = []

    def measure(model, params, preprocessing, images):
        calls.append(images)
        return compute_bn_stats(model, params, preprocessing, images[:24])

    monkeypatch.setattr("flaxresnet.adabn.compute_bn_stats", measure)
    images = blobs(600, seed=5).images
    fr.adapt(finished_run, images, tmp_path / "here")
    assert len(calls[0]) == 512
    np.testing.assert_array_equal(calls[0][[0, -1]], images[[0, -1]])
    assert load_run(tmp_path / "here")[0].data["adapted"].endswith("adapted to 512 photos")


def test_adapt_overrides_frozen_statistics(finished_run, tmp_path):
    frozen = shutil.copytree(finished_run, tmp_path / "frozen")
    metadata = json.loads((frozen / "config.json").read_text())
    metadata["config"] |= {"init": str(finished_run), "freeze_bn_stats": True, "freeze": "backbone"}
    (frozen / "config.json").write_text(json.dumps(metadata))
    images = foggy_blobs(24, seed=6).images
    fr.adapt(frozen, images, tmp_path / "here")
    info, variables = load_run(frozen)
    assert info.model().freeze_bn_stats
    assert info.model().frozen
    trainable = info.model().clone(frozen=(), freeze_bn_stats=False, momentum=0.0)
    apply = jax.jit(partial(trainable.apply, train=True, mutable=["batch_stats"]))
    _, expected = apply({"params": variables["params"]}, jnp.asarray(images / 255, jnp.float32))
    actual = load_run(tmp_path / "here")[1]["batch_stats"]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), actual, expected["batch_stats"])


def test_adapt_preserves_calibration(run_cli, calibrated_run, tmp_path, monkeypatch):
    here = tmp_path / "here"
    fr.adapt(calibrated_run, foggy_blobs(24, seed=6).images, here)
    old = fr.Classifier.load(calibrated_run)
    new = fr.Classifier.load(here)
    assert new.temperature == old.temperature
    assert new.predict_batch(np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)).is_ood.all()
    assert new.uses_hflip == old.uses_hflip
    assert fr.evaluate(here).source == fr.evaluate(calibrated_run).source
    with pytest.raises(fr.UserError, match=r"here holds the weights of .*run, adapted to 24 photos"):
        fr.fit(replace(load_run(here)[0].config, epochs=9), quiet=True)
    # With the new statistics the run's own test images are out of distribution: a report must not calibrate on them.
    calibration = (calibrated_run / "calibration.safetensors").read_bytes()
    assert (here / "calibration.safetensors").read_bytes() == calibration
    for chart in ("learning_curves", "confusion_chart", "reliability_chart"):
        monkeypatch.setattr(f"flaxresnet.report.text.{chart}", lambda *_: Figure(figsize=(1, 1)))
    status, out, _ = run_cli("report", here)
    assert status == 0
    assert "an adapted run keeps the calibration of its source run" in " ".join(out.splitlines()[1:])
    assert (here / "calibration.safetensors").read_bytes() == calibration
    page = (here / "report" / "index.html").read_text()
    assert "adapted to 24 photos" in page
    assert "This run was adapted to photos of another site." in page
    assert "To repeat the training of the source run, with another --workdir" in page
    assert "flaxresnet adapt" not in page


def test_adapt_warns_of_single_class(calibrated_run, finished_run, tmp_path, monkeypatch):
    batch_stats = load_run(finished_run)[1]["batch_stats"]
    monkeypatch.setattr("flaxresnet.adabn.compute_bn_stats", lambda *_: batch_stats)  # they do not affect the warning
    data = blobs(72, seed=5)
    green = data.images[data.labels == 1]
    warning = fr.adapt(calibrated_run, green, tmp_path / "green")
    known = len(green) - int(fr.Classifier.load(calibrated_run).predict_batch(green).is_ood.sum())
    assert warning.startswith(f"{known} of {known} photos that resemble the training images are predicted as 'green';")
    mixed = np.concatenate([green, foggy_blobs(24, seed=6).images])
    assert fr.adapt(calibrated_run, mixed, tmp_path / "mixed") == warning
    assert fr.adapt(calibrated_run, data.images[:24], tmp_path / "all") is None
    assert fr.adapt(finished_run, green, tmp_path / "uncalibrated") is None
    foggy = foggy_blobs(72, seed=5).images[data.labels == 1]
    assert fr.Classifier.load(calibrated_run).predict_batch(foggy).is_ood.all()
    assert fr.adapt(calibrated_run, foggy, tmp_path / "foggy") is None


def test_adapt_rejects_invalid_arguments(finished_run, tmp_path):
    images = foggy_blobs(15, seed=6).images
    with pytest.raises(fr.UserError, match=r"too few photos to adapt to \(15\); give 16 or more, of all"):
        fr.adapt(finished_run, images, tmp_path / "here")
    with pytest.raises(fr.UserError, match="exists and is not overwritten; name another folder"):
        fr.adapt(finished_run, images, tmp_path)
    with pytest.raises(fr.UserError, match=r"this network takes \(n, 32, 32, 3\) uint8"):
        fr.adapt(finished_run, np.zeros((16, 8, 8, 3), np.uint8), tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_adapt_command_takes_photos_or_data(run_cli, finished_run, data_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = foggy_blobs(16, seed=6).images
    write_photos(images, Path("photos"))
    Path("photos/junk.jpg").write_text("no picture")
    status, out, err = run_cli("adapt", finished_run, "here", "photos")
    assert status == 1, "one photo is unreadable"
    assert "photos/junk.jpg" in err
    assert out.splitlines()[0] == f"wrote here: {finished_run}, adapted to 16 photos"
    assert "include photos of every class" in out.splitlines()[1]
    fr.adapt(finished_run, images, "same")
    assert jax.tree.all(jax.tree.map(np.array_equal, load_run("here")[1], load_run("same")[1]))
    assert run_cli("evaluate", "here", "--data", data_folder)[0] == 0
    batch_stats = load_run(finished_run)[1]["batch_stats"]
    monkeypatch.setattr("flaxresnet.adabn.compute_bn_stats", lambda *_: batch_stats)
    assert "adapted to 63 photos\n" in run_cli("adapt", finished_run, "of-data", "--data", data_folder)[1]


def test_adapt_command_subsamples_all_splits(finished_run, monkeypatch):
    from flaxresnet.cli import adapt as command

    indices = np.arange(1027 + 102)
    images = np.zeros((len(indices), 32, 32, 3), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.divmod(indices, 256)
    train = replace(blobs(1027, 1), images=images[:1027])
    test = replace(blobs(102, 1), images=images[1027:])
    monkeypatch.setattr(command, "load_data", lambda *_: Splits(train, test, "many"))
    arguments = command.Arguments(str(finished_run), "here", data="many")
    sample = command.load_dataset_images(arguments, fr.Classifier.load(finished_run).preprocessing)
    sampled_indices = sample[:, 0, 0, 0].astype(int) * 256 + sample[:, 0, 0, 1]
    np.testing.assert_array_equal(sampled_indices, np.linspace(0, 1128, 512).astype(int))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["new"], "no photo given to adapt to"),
        (["new", "a.png", "--data", "d"], "a.png and --data d exclude each other; give photos or --data"),
        (
            ["new", "a.png", "--max-corrupt-fraction", "0.1"],
            "--max-corrupt-fraction 0.1 applies to --data; unreadable",
        ),
        (["existing"], "existing exists and is not overwritten; name another folder"),
        (["n" * 300, "a.png"], f"{'n' * 300} cannot be written: File name too long"),
        (["new", "a.png"], "too few photos to adapt to (0); give 16 or more, of all classes"),
        (["new", "--data", "larger.h5"], "has images of (48, 48) pixels, but the network takes (32, 32)"),
        (["new", "a.png", "--checkpoint", "third"], "--checkpoint must be 'latest' or 'best', not 'third'"),
    ],
)
def test_adapt_command_rejects_arguments(arguments, message, run_cli, finished_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("existing").mkdir()
    write_hdf5(Path("larger.h5"), "test", blobs(20, seed=5, size=48))
    status, _, err = run_cli("adapt", finished_run, *arguments)
    assert status == 2
    assert message in err.replace("\n", " ")
    assert not Path("new").exists()


def test_adapt_uses_checkpoint(finished_run, tmp_path, monkeypatch):
    checkpoints = []
    load = fr.Classifier.load

    def spy(run, checkpoint="latest"):
        checkpoints.append(checkpoint)
        return load(run, checkpoint)

    monkeypatch.setattr(fr.Classifier, "load", spy)
    fr.adapt(finished_run, foggy_blobs(24, seed=6).images, tmp_path / "best", "best")
    assert checkpoints == ["best"]


def test_adapt_command_prints_warning(run_cli, calibrated_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = blobs(48, seed=5)
    write_photos(data.images[data.labels == 1], tmp_path)
    assert run_cli("adapt", calibrated_run, "here", "*.png")[1].splitlines()[1].startswith("warning: 1")
