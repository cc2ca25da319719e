"""Figures of a saved run on labelled images."""

import html
import io
import json
import re
import shutil
import sys

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


def test_an_evaluation_gives_the_figures_that_training_ended_with(finished_run):
    last = RunDir(finished_run).read_metrics()[-1]
    result = fr.evaluate(finished_run)
    assert result.accuracy == pytest.approx(last["test_accuracy"])
    assert result.loss == pytest.approx(last["test_loss"], rel=1e-4)
    assert result.count == 19


def test_the_tables_follow_from_the_confusion_matrix():
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


def test_the_training_split_can_be_evaluated(finished_run):
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
def test_data_that_do_not_fit_the_network_are_refused(dataset, message, finished_run, tmp_path):
    write_hdf5(tmp_path / "test.h5", "test", dataset)
    with pytest.raises(fr.UserError, match=message):
        fr.evaluate(finished_run, tmp_path / "test.h5")


def test_classes_are_told_apart_by_their_names_in_any_order_and_need_not_all_be_there(finished_run, tmp_path):
    data = blobs(30, 7)
    write_hdf5(tmp_path / "test.h5", "test", data)
    expected = fr.evaluate(finished_run, tmp_path / "test.h5")
    (tmp_path / "test.h5").unlink()
    # blue, green, red: what is 0 among the network's classes is 2 among these.
    write_hdf5(tmp_path / "test.h5", "test", fr.Dataset(data.images, 2 - data.labels, data.class_names[::-1]))
    found = fr.evaluate(finished_run, tmp_path / "test.h5")
    assert (found.class_names, found.loss) == (expected.class_names, expected.loss)
    np.testing.assert_array_equal(found.confusion, expected.confusion)

    (tmp_path / "test.h5").unlink()
    some = data.labels > 0
    write_hdf5(tmp_path / "test.h5", "test", fr.Dataset(data.images[some], data.labels[some] - 1, ("green", "blue")))
    part = fr.evaluate(finished_run, tmp_path / "test.h5")
    np.testing.assert_array_equal(part.confusion[1:], expected.confusion[1:])
    assert part.count == 20


def test_labels_beyond_the_networks_classes_are_refused_where_classes_have_no_names(finished_run, tmp_path):
    import h5py

    with h5py.File(tmp_path / "test.h5", "w") as file:
        file["test_set_x"] = blobs(4, 1).images
        file["test_set_y"] = np.array([0, 1, 2, 3])
    with pytest.raises(fr.UserError, match="holds the label 3; the network's 3 classes are 0 to 2"):
        fr.evaluate(finished_run, tmp_path / "test.h5")


def test_data_under_a_name_that_cannot_be_are_not_here(finished_run, tmp_path):
    copy = shutil.copytree(finished_run, tmp_path / "copy")
    values = json.loads((copy / "config.json").read_text())
    for path in ("p" * 5000, "a\0b"):
        (copy / "config.json").write_text(json.dumps(values | {"data": values["data"] | {"path": path}}))
        with pytest.raises(fr.UserError, match="which is not here; give --data"):
            fr.evaluate(copy)


def test_a_run_is_evaluated_on_its_own_data_from_any_folder(finished_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = fr.evaluate(finished_run)
    assert (result.count, result.split) == (19, "test")
    assert str(result.to_json()["data"]).endswith("data0")


def test_data_that_are_gone_are_asked_for(finished_run, tmp_path):
    moved = shutil.copytree(finished_run, tmp_path / "moved")
    stored = json.loads((moved / "config.json").read_text())
    stored["data"]["path"] = "/gone/signs.h5"
    (moved / "config.json").write_text(json.dumps(stored))
    with pytest.raises(fr.UserError, match=r"was trained with /gone/signs\.h5, which is not here; give --data"):
        fr.evaluate(moved)


def test_another_split_is_refused(finished_run):
    with pytest.raises(fr.UserError, match="split is 'val'; give test, train, all"):
        fr.evaluate(finished_run, split="val")


def pixel():
    """A picture that takes no time to draw."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "PNG")
    return file.getvalue()


def test_of_pictures_that_nothing_but_names_divides_all_count_unless_the_run_was_trained_with_them(
    finished_run, tmp_path, monkeypatch
):
    for name, count, seed in (("own", 24, 1), ("mine", 15, 2)):
        data = blobs(count, seed)
        for index, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
            path = tmp_path / name / data.class_names[label] / f"{index:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    # The run as if it had been trained with the pictures.
    run = shutil.copytree(finished_run, tmp_path / "run")
    config = fr.TrainConfig(data=tmp_path / "own", workdir=run, epochs=3, image_size=(32, 32), **TINY_CONFIG).resolve()
    splits = fr.open_dataset(tmp_path / "own", fr.ReadOptions(image_size=(32, 32)))
    info = describe_run(config, splits, splits.train, splits.test)
    (run / "config.json").write_text(json.dumps(info.to_json()))
    assert RunDir(run).read_metadata() == info
    monkeypatch.setattr("flaxresnet.report.text.save", lambda _, path, __: path.write_bytes(pixel()))
    for chart in ("learning_curves", "confusion_chart", "reliability_chart"):
        monkeypatch.setattr(f"flaxresnet.report.text.{chart}", lambda *_: None)
    result = fr.evaluate(run, tmp_path / "mine")
    assert (result.count, result.split) == (15, "all")
    assert result.source.endswith("all of them together")
    parts = [fr.evaluate(run, tmp_path / "mine", split=split) for split in ("test", "train")]
    assert sum(part.count for part in parts) == 15
    np.testing.assert_array_equal(result.confusion, sum(part.confusion for part in parts))
    own = fr.evaluate(run, tmp_path / "own")
    assert (own.split, own.count) == ("test", fr.evaluate(run).count)
    assert fr.evaluate(run, split="all").count == 24

    for data, page in ((tmp_path / "mine", "report-mine"), (None, "report")):
        monkeypatch.setattr(sys, "argv", ["flaxresnet", "report", str(run), *(["--data", str(data)] if data else [])])
        assert commands.main() == 0
        count, what = (15, "all of them together") if data else (own.count, "20% for test)")
        text = html.unescape((run / page / "index.html").read_text())
        assert re.search(rf"tested on {count} images of \S+/{'mine' if data else 'own'} .*{re.escape(what)}", text)

    shutil.copy(tmp_path / "mine" / "red" / "00.png", tmp_path / "own" / "red" / "more.png")
    assert fr.evaluate(run, tmp_path / "own").split == "test", "with a picture more it is still what it was trained on"


def test_a_split_that_is_not_there_is_refused(finished_run, tmp_path):
    write_hdf5(tmp_path / "train.h5", "train", blobs(6, 1))
    with pytest.raises(fr.UserError, match="has no test split; give other --data, or --split train"):
        fr.evaluate(finished_run, tmp_path / "train.h5")


def test_data_that_have_changed_since_the_training_are_not_taken_for_the_runs(data_folder, finished_run, tmp_path):
    folder = shutil.copytree(data_folder, tmp_path / "data")
    run = shutil.copytree(finished_run, tmp_path / "run")
    stored = json.loads((run / "config.json").read_text())
    stored["data"]["path"] = str(folder)
    (run / "config.json").write_text(json.dumps(stored))
    assert fr.evaluate(run).count == 19
    (folder / "test.h5").unlink()
    write_hdf5(folder / "test.h5", "test", blobs(19, seed=3))
    with pytest.raises(fr.UserError, match=r"was trained with other test images than .*data has now; give --data"):
        fr.evaluate(run)
    assert fr.evaluate(run, folder).count == 19


def test_labels_that_are_shifted_by_one_are_warned_of(finished_run, tmp_path):
    data = blobs(18, 2)
    shifted = fr.Dataset(data.images, (data.labels + 1) % 3, data.class_names)
    kept = shifted.labels > 0  # one more each, as where the classes are counted from 1
    write_hdf5(tmp_path / "test.h5", "test", fr.Dataset(data.images[kept], shifted.labels[kept], data.class_names))
    result = fr.evaluate(finished_run, tmp_path)
    said = "with each label one less the accuracy would be 1.000 and not 0.000; are the classes of these data numbered"
    assert result.warning.startswith(said)
    assert result.to_json()["warning"] == result.warning
    assert fr.evaluate(finished_run).warning is None
    assert fr.Evaluation(0.1, np.array([[1, 9, 0], [0, 1, 9], [0, 0, 0]]), ("a", "b", "c")).warning.startswith(
        "with each label one more the accuracy would be 0.900 and not 0.100"
    )
    assert fr.Evaluation(0.1, np.array([[1, 2, 0], [0, 1, 2], [0, 0, 2]]), ("a", "b", "c")).warning is None
