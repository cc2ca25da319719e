"""Evaluation of a run on labeled images."""

import html
import io
import json
import re
import shutil
import sys

import h5py
import numpy as np
import pytest
from conftest import TINY_CONFIG, blobs
from PIL import Image

import flaxresnet as fr
from flaxresnet.cli import main as commands
from flaxresnet.data.hdf5 import write_hdf5
from flaxresnet.reliability.intervals import wilson_interval
from flaxresnet.runs.run_dir import RunDir
from flaxresnet.training.run_setup import describe_run


def change_metadata(run, **data):
    """Changes the description of the training data in a run's `config.json`."""
    metadata = json.loads((run / "config.json").read_text())
    metadata["data"] |= data
    (run / "config.json").write_text(json.dumps(metadata))


def test_evaluate_equals_last_epoch(finished_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    last = RunDir(finished_run).read_metrics()[-1]
    result = fr.evaluate(finished_run)
    assert result.accuracy == pytest.approx(last["test_accuracy"])
    assert result.loss == pytest.approx(last["test_loss"], rel=1e-4)
    assert (result.count, result.split) == (19, "test")
    assert str(result.to_json()["data"]).endswith("data0")


def test_per_class_follows_from_confusion():
    confusion = np.array([[8, 2, 0], [1, 9, 0], [0, 0, 0]])
    result = fr.Evaluation(loss=0.5, confusion=confusion, class_names=("a", "b", "c"))
    assert result.accuracy == pytest.approx(17 / 20)
    a, b, c = result.per_class
    assert (a["images"], a["precision"], a["recall"]) == (10, pytest.approx(8 / 9), pytest.approx(0.8))
    assert a["f1"] == pytest.approx(2 * (8 / 9) * 0.8 / (8 / 9 + 0.8))
    assert b["precision"] == pytest.approx(9 / 11)
    assert a["precision_interval"] == pytest.approx(wilson_interval(8, 9))
    assert a["recall_interval"] == pytest.approx(wilson_interval(8, 10))
    low, high = wilson_interval(8, 11)
    assert a["f1_interval"] == pytest.approx([2 * low / (1 + low), 2 * high / (1 + high)])
    assert a["f1_interval"][0] < a["f1"] < a["f1_interval"][1]
    assert (c["images"], c["precision"], c["recall"], c["f1"]) == (0, None, None, None)
    stored = result.to_json()
    assert stored["confusion"] == confusion.tolist()
    low, high = stored["accuracy_interval"]
    assert 0 < low < 0.85 < high < 1


def test_evaluate_training_split(finished_run):
    assert fr.evaluate(finished_run, split="train").count == 44


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (blobs(6, 1, size=40), r"images of \(40, 40\) pixels, but the network takes \(32, 32\)"),
        (
            fr.Dataset(blobs(6, 1).images, blobs(6, 1).labels, ("green", "red", "yellow")),
            "classes green, red, yellow, but the network's are red, green, blue",
        ),
    ],
)
def test_evaluate_rejects_mismatched_data(dataset, message, finished_run, tmp_path):
    write_hdf5(tmp_path / "test.h5", "test", dataset)
    with pytest.raises(fr.UserError, match=message):
        fr.evaluate(finished_run, tmp_path / "test.h5")


def test_evaluate_matches_classes_by_name(finished_run, tmp_path):
    data = blobs(30, 7)
    write_hdf5(tmp_path / "same.h5", "test", data)
    expected = fr.evaluate(finished_run, tmp_path / "same.h5")
    reversed_data = fr.Dataset(data.images, 2 - data.labels, data.class_names[::-1])
    write_hdf5(tmp_path / "reversed.h5", "test", reversed_data)
    result = fr.evaluate(finished_run, tmp_path / "reversed.h5")
    assert (result.class_names, result.loss) == (expected.class_names, expected.loss)
    np.testing.assert_array_equal(result.confusion, expected.confusion)

    is_known = data.labels > 0
    subset = fr.Dataset(data.images[is_known], data.labels[is_known] - 1, ("green", "blue"))
    write_hdf5(tmp_path / "subset.h5", "test", subset)
    result = fr.evaluate(finished_run, tmp_path / "subset.h5")
    np.testing.assert_array_equal(result.confusion[1:], expected.confusion[1:])
    assert result.count == 20


def test_evaluate_rejects_excess_label(finished_run, tmp_path):
    with h5py.File(tmp_path / "test.h5", "w") as file:
        file["test_set_x"] = blobs(4, 1).images
        file["test_set_y"] = np.array([0, 1, 2, 3])
    with pytest.raises(fr.UserError, match="has the label 3, but the network's 3 classes are 0 to 2"):
        fr.evaluate(finished_run, tmp_path / "test.h5")


@pytest.mark.parametrize("path", ["/gone/signs.h5", "p" * 5000, "a\0b"])
def test_evaluate_names_missing_data(path, finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    change_metadata(run, path=path)
    with pytest.raises(fr.UserError, match=f"was trained on {path}, which does not exist; give --data"):
        fr.evaluate(run)


def test_evaluate_rejects_unknown_split(finished_run):
    with pytest.raises(fr.UserError, match="split is 'val'; give one of test, train, all"):
        fr.evaluate(finished_run, split="val")


def pixel_png():
    """Returns the smallest image that a report can show."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "PNG")
    return file.getvalue()


def test_hash_split_data_count_fully(finished_run, tmp_path, monkeypatch):
    for name, count, seed in (("own", 24, 1), ("other", 15, 2)):
        data = blobs(count, seed)
        for index, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
            path = tmp_path / name / data.class_names[label] / f"{index:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    # The metadata of a run that was trained on the images of "own".
    run = shutil.copytree(finished_run, tmp_path / "run")
    config = fr.TrainConfig(data=tmp_path / "own", workdir=run, epochs=3, image_size=(32, 32), **TINY_CONFIG).resolve()
    splits = fr.open_dataset(tmp_path / "own", fr.ReadOptions(image_size=(32, 32)))
    info = describe_run(config, splits, splits.train, splits.test)
    (run / "config.json").write_text(json.dumps(info.to_json()))
    assert RunDir(run).read_metadata() == info
    monkeypatch.setattr("flaxresnet.report.text.save", lambda _, path, __: path.write_bytes(pixel_png()))
    for chart in ("learning_curves", "confusion_chart", "reliability_chart"):
        monkeypatch.setattr(f"flaxresnet.report.text.{chart}", lambda *_: None)
    result = fr.evaluate(run, tmp_path / "other")
    assert (result.count, result.split) == (15, "all")
    assert result.source.endswith("all of them together")
    test = fr.evaluate(run, tmp_path / "other", split="test")
    train = fr.evaluate(run, tmp_path / "other", split="train")
    assert test.count + train.count == 15
    np.testing.assert_array_equal(result.confusion, test.confusion + train.confusion)
    own = fr.evaluate(run, tmp_path / "own")
    assert (own.split, own.count) == ("test", fr.evaluate(run).count)
    assert fr.evaluate(run, split="all").count == 24

    reports = {
        "report-other": (["--data", str(tmp_path / "other")], r"15 images of \S+/other .*all of them together"),
        "report": ([], rf"{own.count} images of \S+/own .*20% for test\)"),
    }
    for folder, (options, expected) in reports.items():
        monkeypatch.setattr(sys, "argv", ["flaxresnet", "report", str(run), *options])
        assert commands.main() == 0
        text = html.unescape((run / folder / "index.html").read_text())
        assert re.search(f"tested on {expected}", text)

    shutil.copy(tmp_path / "other" / "red" / "00.png", tmp_path / "own" / "red" / "more.png")
    assert fr.evaluate(run, tmp_path / "own").split == "test", (
        "a folder with an additional image is still training data"
    )


def test_evaluate_names_available_split(finished_run, tmp_path):
    write_hdf5(tmp_path / "train.h5", "train", blobs(6, 1))
    with pytest.raises(fr.UserError, match="has no test split; give other --data, or --split train"):
        fr.evaluate(finished_run, tmp_path / "train.h5")


def test_evaluate_detects_changed_data(data_folder, finished_run, tmp_path):
    folder = shutil.copytree(data_folder, tmp_path / "data")
    run = shutil.copytree(finished_run, tmp_path / "run")
    change_metadata(run, path=str(folder))
    assert fr.evaluate(run).count == 19
    (folder / "test.h5").unlink()
    write_hdf5(folder / "test.h5", "test", blobs(19, seed=3))
    with pytest.raises(fr.UserError, match=r"was trained on other test images than those of .*data; give --data"):
        fr.evaluate(run)
    assert fr.evaluate(run, folder).count == 19


def test_shifted_labels_cause_warning(finished_run, tmp_path):
    data = blobs(18, 2)
    is_shifted = data.labels < 2
    shifted = fr.Dataset(data.images[is_shifted], data.labels[is_shifted] + 1, data.class_names)
    write_hdf5(tmp_path / "test.h5", "test", shifted)
    result = fr.evaluate(finished_run, tmp_path)
    assert result.warning.startswith("subtracting 1 from each label would change the accuracy from 0.000 to 1.000")
    assert result.to_json()["warning"] == result.warning
    assert fr.evaluate(finished_run).warning is None
    confusion = np.array([[1, 9, 0], [0, 1, 9], [0, 0, 0]])
    warning = fr.Evaluation(0.1, confusion, ("a", "b", "c")).warning
    assert warning.startswith("adding 1 to each label would change the accuracy from 0.100 to 0.900")
    confusion = np.array([[1, 2, 0], [0, 1, 2], [0, 0, 2]])
    assert fr.Evaluation(0.1, confusion, ("a", "b", "c")).warning is None
