"""Pictures in folders, one a class: what is found, how it is split, and what is said of unreadable ones."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_CONFIG, blobs, draw_blobs
from PIL import Image

import flaxresnet as fr
from flaxresnet.data.image_folder import is_hashed_to_test, read_folder
from flaxresnet.data.preprocess import Preprocessing
from flaxresnet.evaluation import load_data

COLOURS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200)}


def draw(root, count, classes=tuple(COLOURS), kind="png", size=(40, 50)):
    for label in classes:
        (root / label).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            colour = tuple(np.add(COLOURS.get(label, (90, 90, 90)), index % 50))
            Image.new("RGB", size, colour).save(root / label / f"{index}.{kind}")


def test_folders_named_like_splits_are_the_splits(tmp_path):
    draw(tmp_path / "train", 4)
    draw(tmp_path / "test", 2)
    splits = fr.open_dataset(tmp_path, fr.ReadOptions(image_size=(32, 36)))
    assert splits.train.class_names == splits.test.class_names == ("blue", "green", "red")
    assert (len(splits.train), len(splits.test)) == (12, 6)
    assert splits.train.image_size == (32, 36)
    assert splits.source == f"{tmp_path} (train and test)"
    assert splits.path == str(tmp_path)
    expected = Preprocessing(32, 36).load(tmp_path / "train" / "green" / "3.png")
    np.testing.assert_array_equal(splits.train.images[7], expected)
    assert splits.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_other_names_of_the_test_split(tmp_path, name):
    draw(tmp_path / "train", 2)
    draw(tmp_path / name, 1)
    assert len(fr.open_dataset(tmp_path).test) == 3
    draw(tmp_path / "test", 2)
    splits = fr.open_dataset(tmp_path)
    assert len(splits.test) == 6
    assert f"{name} is not used" in splits.source


def test_without_splits_names_decide_and_go_on_deciding_alike(tmp_path):
    draw(tmp_path, 60)
    before = fr.open_dataset(tmp_path)
    assert 0.1 < len(before.test) / 180 < 0.3
    assert len(before.train) + len(before.test) == 180
    assert "split by the hash of each name, 20% for test" in before.source
    draw(tmp_path, 61)  # one more of each changes nothing for the others
    after = fr.open_dataset(tmp_path)
    assert len(after.train) + len(after.test) == 183
    assert {image.tobytes() for image in before.test.images} <= {image.tobytes() for image in after.test.images}


def test_the_hash_is_the_same_on_every_machine():
    chosen = [index for index in range(30) if is_hashed_to_test("cat", Path(f"{index}.jpg"))]
    assert chosen == [3, 13]  # by hashlib alone


def test_deeper_folders_belong_to_their_class_and_other_files_are_left_alone(tmp_path):
    draw(tmp_path / "train", 2)
    draw(tmp_path / "train" / "red" / "more", 1, classes=("inner",))
    (tmp_path / "train" / "red" / "notes.txt").write_text("no picture")
    (tmp_path / "train" / "red" / ".hidden.png").write_bytes(b"")
    (tmp_path / "train" / "empty").mkdir()
    (tmp_path / "train" / ".cache").mkdir()
    splits = fr.open_dataset(tmp_path)
    assert splits.test is None
    assert splits.train.class_counts().tolist() == [2, 2, 3]


def test_unreadable_pictures_end_it_or_are_left_out_and_named(tmp_path):
    draw(tmp_path / "train", 10)
    (tmp_path / "train" / "red" / "bad.jpg").write_text("no picture")
    with pytest.raises(fr.UserError) as caught:
        fr.open_dataset(tmp_path)
    assert "1 of 31 images in" in str(caught.value)
    assert "give --max-corrupt-fraction with the fraction to skip" in str(caught.value)
    assert "bad.jpg cannot be read as an image" in str(caught.value)
    splits = fr.open_dataset(tmp_path, fr.ReadOptions(max_corrupt_fraction=0.05))
    assert splits.train.class_counts().tolist() == [10, 10, 10]
    assert splits.train.labels.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    assert "skipped 1 unreadable: " in splits.source
    with pytest.raises(fr.UserError, match="1 of 31"):
        fr.open_dataset(tmp_path, fr.ReadOptions(max_corrupt_fraction=0.03))


def test_test_pictures_of_unknown_classes_are_refused(tmp_path):
    draw(tmp_path / "train", 2, classes=("red", "green"))
    draw(tmp_path / "test", 2, classes=("red", "blue"))
    with pytest.raises(fr.UserError, match="has test images of classes without training images: blue"):
        fr.open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": (0, 64)}, r"two numbers from 1 to 65536, of 16,777,216 pixels at most, not \(0, 64\)"),
        ({"image_size": (60_000, 60_000)}, r"--image-size must be two numbers .*, not \(60000, 60000\)"),
        ({"image_size": (1, 65_537)}, r"--image-size must be two numbers .*, not \(1, 65537\)"),
        ({"max_corrupt_fraction": 1.0}, r"--max-corrupt-fraction must be at least 0 and below 1, not 1\.0"),
    ],
)
def test_a_size_or_a_share_that_cannot_be_is_named(tmp_path, options, message):
    draw(tmp_path / "train", 2)
    with pytest.raises(fr.UserError, match=message):
        fr.open_dataset(tmp_path, fr.ReadOptions(**options))


def test_a_split_of_which_nothing_can_be_read_is_no_split(tmp_path):
    draw(tmp_path / "train", 10)
    (tmp_path / "test" / "red").mkdir(parents=True)
    (tmp_path / "test" / "red" / "bad.jpg").write_text("no picture")
    assert fr.open_dataset(tmp_path, fr.ReadOptions(max_corrupt_fraction=0.1)).test is None


def test_a_folder_of_test_pictures_alone_is_called_that(tmp_path):
    draw(tmp_path / "test", 2)
    splits = fr.open_dataset(tmp_path)
    assert splits.train is None
    assert splits.source == f"{tmp_path} (test)"


def test_a_folder_without_pictures_says_what_is_missing(tmp_path):
    (tmp_path / "cat").mkdir()
    with pytest.raises(fr.UserError, match=r"holds neither an HDF5 file .* nor a folder of images for each class"):
        fr.open_dataset(tmp_path)


def test_more_than_memory_holds_is_streamed_and_refused_only_where_memory_is_asked_for(tmp_path, monkeypatch):
    draw(tmp_path / "train", 2)
    monkeypatch.setattr("os.sysconf", lambda name: 1)
    assert fr.open_dataset(tmp_path).train.is_streamed
    with pytest.raises(fr.UserError, match=r"take 0\.0 GiB, but a machine has 0\.0 GiB of memory; give --input stream"):
        fr.open_dataset(tmp_path, fr.ReadOptions(input="memory"))
    with pytest.raises(fr.UserError, match="--input is 'disk'; give 'auto', 'memory' or 'stream'"):
        fr.open_dataset(tmp_path, fr.ReadOptions(input="disk"))


def test_a_folder_trains_goes_on_and_is_evaluated(tmp_path):
    options = {"data": draw_blobs(tmp_path / "data", 44, 19), "workdir": tmp_path / "run", **TINY_CONFIG}
    fr.fit(fr.TrainConfig(epochs=1, image_size=(32, 32), **options), quiet=True)
    # Going on, the size is the run's, not that of no run, which is larger.
    run = fr.fit(fr.TrainConfig(epochs=2, **options), quiet=True)
    assert [row["epoch"] for row in run.history] == [1, 2]
    info = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (info["preprocessing"]["height"], info["preprocessing"]["width"]) == (32, 32)
    own = fr.evaluate(tmp_path / "run")
    assert own.accuracy == pytest.approx(run.test_accuracy)
    assert fr.evaluate(tmp_path / "run", tmp_path / "data").confusion.tolist() == own.confusion.tolist()
    (tmp_path / "data" / "test" / "red" / "bad.png").write_text("no picture")
    with pytest.raises(fr.UserError, match="give --max-corrupt-fraction"):
        fr.evaluate(tmp_path / "run", tmp_path / "data")
    assert fr.evaluate(tmp_path / "run", tmp_path / "data", max_corrupt_fraction=0.1).count == own.count
    (tmp_path / "data" / "test" / "red" / "bad.png").unlink()
    with pytest.raises(fr.UserError, match="images of another size"):
        fr.fit(fr.TrainConfig(epochs=3, image_size=(32, 40), **options), quiet=True)


def test_other_pictures_under_the_same_names_and_of_the_same_size_are_noticed(tmp_path):
    def draw_all(seed):
        for split, count in (("train", 44), ("test", 19)):
            data = blobs(count, seed=seed)
            for index, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
                path = tmp_path / "data" / split / data.class_names[label] / f"{index}.bmp"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path)

    draw_all(1)
    options = {"data": tmp_path / "data", "workdir": tmp_path / "run", "image_size": (32, 32), **TINY_CONFIG}
    fr.fit(fr.TrainConfig(epochs=1, **options), quiet=True)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    draw_all(2)
    with pytest.raises(fr.UserError, match="holds a run with other training data"):
        fr.fit(fr.TrainConfig(epochs=2, **options), quiet=True)
    with pytest.raises(fr.UserError, match="was trained on other test images than"):
        fr.evaluate(tmp_path / "run")
    # A run from before, which knows of names and sizes alone, goes on and knows more from then on.
    draw_all(1)
    old = {name: config["data"][name].split("-")[0] for name in ("train_fingerprint", "test_fingerprint")}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"data": config["data"] | old}))
    assert fr.evaluate(tmp_path / "run").count == 19
    fr.fit(fr.TrainConfig(epochs=2, **options), quiet=True)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"] == config["data"]


def test_hdf5_files_have_a_size_of_their_own(data_folder, tmp_path):
    config = fr.TrainConfig(data=data_folder, workdir=tmp_path / "run", image_size=(48, 32), **TINY_CONFIG)
    with pytest.raises(fr.UserError, match=r"--image-size 48×32 .* are 32×32"):
        fr.fit(config, quiet=True)


def test_prediction_takes_the_middle_as_evaluation_does(tmp_path):
    for split, count, seed in (("train", 44, 1), ("test", 19, 2)):
        data = blobs(count, seed=seed, size=48)
        for index, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
            path = tmp_path / "data" / split / data.class_names[label] / f"{index:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    options = {"image_size": (32, 32), "epochs": 1, "crop_pct": 0.5, **TINY_CONFIG}
    run = fr.fit(fr.TrainConfig(data=tmp_path / "data", workdir=tmp_path / "run", **options), quiet=True)
    classifier = fr.Classifier.load(run.workdir)
    assert classifier.preprocessing.crop_pct == 0.5
    splits = fr.open_dataset(tmp_path / "data", fr.ReadOptions(image_size=(32, 32), crop_pct=0.5))
    photos = sorted((tmp_path / "data" / "test").rglob("*.png"), key=lambda path: (path.parent.name, path.name))
    for image, photo in zip(splits.test.images, photos, strict=True):
        np.testing.assert_array_equal(image, classifier.preprocessing.load(photo))
    whole = fr.open_dataset(tmp_path / "data", fr.ReadOptions(image_size=(32, 32)))
    assert not np.array_equal(whole.test.images, splits.test.images)
    np.testing.assert_array_equal(whole.train.images, splits.train.images)  # of which random parts are taken
    assert fr.evaluate(run.workdir).loss == pytest.approx(run.test_loss, rel=1e-4)
    assert fr.evaluate(run.workdir, tmp_path / "data").loss == pytest.approx(run.test_loss, rel=1e-4)

    learned = sorted((tmp_path / "data" / "train").rglob("*.png"), key=lambda path: (path.parent.name, path.name))
    as_predicted = np.stack([classifier.preprocessing.load(photo) for photo in learned])
    eval_preprocessing = load_data(run.workdir, tmp_path / "data", "train")
    np.testing.assert_array_equal(eval_preprocessing.train.images, as_predicted)


def test_links_to_folders_are_followed_once(tmp_path):
    draw(tmp_path / "train", 2)
    draw(tmp_path / "more", 1, classes=("inner",))
    for name in ("again", "and-again"):
        (tmp_path / "train" / "red" / name).symlink_to(".")
    (tmp_path / "train" / "red" / "elsewhere").symlink_to(tmp_path / "more")
    assert fr.open_dataset(tmp_path).train.class_counts().tolist() == [2, 2, 3]


def test_links_bring_no_other_classes_pictures_and_one_folder_as_often_as_they_say(tmp_path):
    draw(tmp_path / "train", 2)
    draw(tmp_path / "more", 1, classes=("inner",))
    (tmp_path / "train" / "red" / "up").symlink_to("..")
    for name in ("first", "second"):
        (tmp_path / "train" / "red" / name).symlink_to(tmp_path / "more")
    assert fr.open_dataset(tmp_path).train.class_counts().tolist() == [2, 2, 4]


def test_numpys_integers_are_a_size(tmp_path):
    draw(tmp_path / "train", 2)
    assert fr.open_dataset(tmp_path, fr.ReadOptions(image_size=(np.int64(32), np.int32(40)))).train.image_size == (
        32,
        40,
    )


@pytest.mark.parametrize("input", ["memory", "stream"])
def test_a_link_to_nothing_and_a_pipe_are_named_as_unreadable(tmp_path, input):
    draw(tmp_path / "train", 10)
    (tmp_path / "train" / "red" / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "train" / "red" / "pipe.png")
    with pytest.raises(fr.UserError, match=r"gone\.png does not exist.*pipe\.png is a pipe or a device"):
        fr.open_dataset(tmp_path, fr.ReadOptions(input=input))
    splits = fr.open_dataset(tmp_path, fr.ReadOptions(input=input, max_corrupt_fraction=0.1))
    assert splits.train.class_counts().tolist() == [10, 10, 10]
    every = read_folder(
        tmp_path, fr.ReadOptions(image_size=(32, 32), max_corrupt_fraction=0.1, input="stream")
    ).train.images
    (tmp_path / "train" / "blue" / "0.png").unlink()
    os.mkfifo(tmp_path / "train" / "blue" / "0.png")
    with pytest.raises(fr.UserError, match=r"0\.png is a pipe or a device"):
        every.encoded(0)
