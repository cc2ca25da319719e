"""Image folders: classes, splits, links, unreadable images, and training on them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_CONFIG, blobs, draw_blobs
from PIL import Image

import flaxresnet as fr
from flaxresnet.data import image_folder
from flaxresnet.data.image_folder import TEST_FRACTION, name_hash, read_folder
from flaxresnet.data.preprocess import Preprocessing
from flaxresnet.evaluation import load_data

COLORS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200)}


def draw(root, count, classes=tuple(COLORS)):
    """Writes `count` images of one color for each class."""
    for label in classes:
        (root / label).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            color = tuple(np.add(COLORS.get(label, (90, 90, 90)), index % 50))
            Image.new("RGB", (40, 50), color).save(root / label / f"{index}.png")


def write_images(root, count, seed, suffix, size=32):
    """Writes the images of `blobs` to a folder for each class."""
    data = blobs(count, seed=seed, size=size)
    for index, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
        path = root / data.class_names[label] / f"{index:02}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def images_in(folder):
    return sorted(folder.rglob("*.png"), key=lambda path: (path.parent.name, path.name))


def test_named_folders_are_splits(tmp_path):
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
def test_test_split_names(tmp_path, name):
    draw(tmp_path / "train", 2)
    draw(tmp_path / name, 1)
    assert len(fr.open_dataset(tmp_path).test) == 3
    draw(tmp_path / "test", 2)
    splits = fr.open_dataset(tmp_path)
    assert len(splits.test) == 6
    assert splits.notes == (f"{tmp_path / name} is not used, because there is a test folder",)


def test_hash_split_is_stable(tmp_path):
    draw(tmp_path, 60)
    before = fr.open_dataset(tmp_path)
    assert 0.1 < len(before.test) / 180 < 0.3
    assert len(before.train) + len(before.test) == 180
    assert "split by the hash of each name, 20% for test" in before.source
    draw(tmp_path, 61)  # an added image leaves the others in their splits
    after = fr.open_dataset(tmp_path)
    assert len(after.train) + len(after.test) == 183
    assert {image.tobytes() for image in before.test.images} <= {image.tobytes() for image in after.test.images}


def test_hash_split_is_portable():
    assert [index for index in range(30) if name_hash("cat", Path(f"{index}.jpg")) < TEST_FRACTION] == [3, 13]


def test_subfolders_belong_to_their_class(tmp_path):
    draw(tmp_path / "train", 2)
    draw(tmp_path / "train" / "red" / "more", 1, classes=("inner",))
    (tmp_path / "train" / "red" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / "red" / ".hidden.png").write_bytes(b"")
    (tmp_path / "train" / "empty").mkdir()
    (tmp_path / "train" / ".cache").mkdir()
    splits = fr.open_dataset(tmp_path)
    assert splits.test is None
    assert splits.train.class_counts().tolist() == [2, 2, 3]


def test_unreadable_images_are_named(tmp_path):
    draw(tmp_path / "train", 10)
    (tmp_path / "train" / "red" / "damaged.jpg").write_text("not an image")
    with pytest.raises(fr.UserError) as caught:
        fr.open_dataset(tmp_path)
    for text in ("1 of 31 images in", "--max-corrupt-fraction 0.033 ", "damaged.jpg cannot be read as an image"):
        assert text in str(caught.value)
    splits = fr.open_dataset(tmp_path, fr.ReadOptions(max_corrupt_fraction=0.05))
    assert splits.train.class_counts().tolist() == [10, 10, 10]
    assert splits.train.labels.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    assert "skipped 1 unreadable: " in splits.source
    with pytest.raises(fr.UserError, match="1 of 31"):
        fr.open_dataset(tmp_path, fr.ReadOptions(max_corrupt_fraction=0.03))


def test_unknown_test_class_is_rejected(tmp_path):
    draw(tmp_path / "train", 2, classes=("red", "green"))
    draw(tmp_path / "test", 2, classes=("red", "blue"))
    with pytest.raises(fr.UserError, match="classes without training images: blue"):
        fr.open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": (0, 64)}, r"two numbers from 1 to 65536, of 16,777,216 pixels at most, not \(0, 64\)"),
        ({"image_size": (60_000, 60_000)}, r"--image-size must be two numbers .*, not \(60000, 60000\)"),
        ({"image_size": (1, 65_537)}, r"--image-size must be two numbers .*, not \(1, 65537\)"),
        ({"max_corrupt_fraction": 1.0}, r"--max-corrupt-fraction must be at least 0 and below 1, not 1\.0"),
        ({"resize": "squeeze"}, "--resize is 'squeeze'; give 'stretch', 'crop' or 'pad'"),
        ({"crop_pct": 0.0}, r"--crop-pct must be above 0 and at most 1, not 0\.0"),
    ],
)
def test_invalid_option_is_named(tmp_path, options, message):
    draw(tmp_path / "train", 2)
    with pytest.raises(fr.UserError, match=message):
        fr.open_dataset(tmp_path, fr.ReadOptions(**options))


def test_unreadable_split_is_none(tmp_path):
    draw(tmp_path / "train", 10)
    (tmp_path / "test" / "red").mkdir(parents=True)
    (tmp_path / "test" / "red" / "damaged.jpg").write_text("not an image")
    assert fr.open_dataset(tmp_path, fr.ReadOptions(max_corrupt_fraction=0.1)).test is None


def test_test_split_alone_is_opened(tmp_path):
    draw(tmp_path / "test", 2)
    splits = fr.open_dataset(tmp_path)
    assert splits.train is None
    assert splits.source == f"{tmp_path} (test)"


def test_empty_folder_is_rejected(tmp_path):
    (tmp_path / "cat").mkdir()
    with pytest.raises(fr.UserError, match=r"holds neither an HDF5 file .* nor a folder of images for each class"):
        fr.open_dataset(tmp_path)


def test_images_beyond_memory_are_streamed(tmp_path, monkeypatch):
    draw(tmp_path / "train", 2)
    monkeypatch.setattr("os.sysconf", lambda name: 1)
    assert fr.open_dataset(tmp_path).train.is_streamed
    with pytest.raises(fr.UserError, match=r"take 0\.0 GiB, but a machine has 0\.0 GiB of memory; give --input stream"):
        fr.open_dataset(tmp_path, fr.ReadOptions(input="memory"))
    with pytest.raises(fr.UserError, match="--input is 'disk'; give 'auto', 'memory' or 'stream'"):
        fr.open_dataset(tmp_path, fr.ReadOptions(input="disk"))


def test_run_resumes_and_evaluates(tmp_path):
    options = {"data": draw_blobs(tmp_path / "data", 44, 19), "workdir": tmp_path / "run", **TINY_CONFIG}
    fr.fit(fr.TrainConfig(epochs=1, image_size=(32, 32), **options), quiet=True)
    # A resumed run keeps its image size, which is not the default.
    run = fr.fit(fr.TrainConfig(epochs=2, **options), quiet=True)
    assert [row["epoch"] for row in run.history] == [1, 2]
    info = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (info["preprocessing"]["height"], info["preprocessing"]["width"]) == (32, 32)
    evaluation = fr.evaluate(tmp_path / "run")
    assert evaluation.accuracy == pytest.approx(run.test_accuracy)
    assert fr.evaluate(tmp_path / "run", tmp_path / "data").confusion.tolist() == evaluation.confusion.tolist()
    (tmp_path / "data" / "test" / "red" / "damaged.png").write_text("not an image")
    with pytest.raises(fr.UserError, match="--max-corrupt-fraction"):
        fr.evaluate(tmp_path / "run", tmp_path / "data")
    assert fr.evaluate(tmp_path / "run", tmp_path / "data", max_corrupt_fraction=0.1).count == evaluation.count
    (tmp_path / "data" / "test" / "red" / "damaged.png").unlink()
    with pytest.raises(fr.UserError, match="images of another size"):
        fr.fit(fr.TrainConfig(epochs=3, image_size=(32, 40), **options), quiet=True)


def test_changed_files_stop_the_run(tmp_path):
    def draw_all(seed):  # BMP files of equal sizes
        write_images(tmp_path / "data" / "train", 44, seed, ".bmp")
        write_images(tmp_path / "data" / "test", 19, seed, ".bmp")

    draw_all(1)
    options = {"data": tmp_path / "data", "workdir": tmp_path / "run", "image_size": (32, 32), **TINY_CONFIG}
    fr.fit(fr.TrainConfig(epochs=1, **options), quiet=True)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    draw_all(2)
    with pytest.raises(fr.UserError, match="holds a run with other training data"):
        fr.fit(fr.TrainConfig(epochs=2, **options), quiet=True)
    with pytest.raises(fr.UserError, match="was trained on other test images than"):
        fr.evaluate(tmp_path / "run")
    # A run with an older fingerprint, of names and sizes only, resumes and stores the new one.
    draw_all(1)
    old = {name: config["data"][name].split("-")[0] for name in ("train_fingerprint", "test_fingerprint")}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"data": config["data"] | old}))
    assert fr.evaluate(tmp_path / "run").count == 19
    fr.fit(fr.TrainConfig(epochs=2, **options), quiet=True)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"] == config["data"]


def test_image_size_conflicts_with_hdf5(data_folder, tmp_path):
    config = fr.TrainConfig(data=data_folder, workdir=tmp_path / "run", image_size=(48, 32), **TINY_CONFIG)
    with pytest.raises(fr.UserError, match=r"--image-size 48×32 .* are 32×32"):
        fr.fit(config, quiet=True)


def test_crop_pct_applies_to_prediction(tmp_path):
    write_images(tmp_path / "data" / "train", 44, 1, ".png", size=48)
    write_images(tmp_path / "data" / "test", 19, 2, ".png", size=48)
    options = {"image_size": (32, 32), "epochs": 1, "crop_pct": 0.5, **TINY_CONFIG}
    run = fr.fit(fr.TrainConfig(data=tmp_path / "data", workdir=tmp_path / "run", **options), quiet=True)
    classifier = fr.Classifier.load(run.workdir)
    assert classifier.preprocessing.crop_pct == 0.5
    splits = fr.open_dataset(tmp_path / "data", fr.ReadOptions(image_size=(32, 32), crop_pct=0.5))
    for image, path in zip(splits.test.images, images_in(tmp_path / "data" / "test"), strict=True):
        np.testing.assert_array_equal(image, classifier.preprocessing.load(path))
    uncropped = fr.open_dataset(tmp_path / "data", fr.ReadOptions(image_size=(32, 32)))
    assert not np.array_equal(uncropped.test.images, splits.test.images)
    np.testing.assert_array_equal(uncropped.train.images, splits.train.images)  # training crops at random
    assert fr.evaluate(run.workdir).loss == pytest.approx(run.test_loss, rel=1e-4)
    assert fr.evaluate(run.workdir, tmp_path / "data").loss == pytest.approx(run.test_loss, rel=1e-4)

    cropped = load_data(run.workdir, tmp_path / "data", "train").train.images
    for image, path in zip(cropped, images_in(tmp_path / "data" / "train"), strict=True):
        np.testing.assert_array_equal(image, classifier.preprocessing.load(path))


def write_wide_images(root):
    """Writes images of 90×60 pixels; bands of noise at the left and right are outside of a central square."""
    rng = np.random.default_rng(0)
    for split, count, seed in (("train", 44, 1), ("test", 19, 2)):
        data = blobs(count, seed, 60)
        for index, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
            band = rng.integers(0, 256, (60, 15, 3)).astype(np.uint8)
            path = root / split / data.class_names[label] / f"{index:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.concatenate([band, image, band], 1)).save(path)
    return root


@pytest.mark.parametrize("mode", ["crop", "pad"])
def test_resize_applies_to_training_and_prediction(tmp_path, mode):
    data = write_wide_images(tmp_path / "data")
    options = {"data": data, "image_size": (32, 32), "epochs": 1, **TINY_CONFIG}
    run = fr.fit(fr.TrainConfig(workdir=tmp_path / "run", resize=mode, **options), quiet=True)
    classifier = fr.Classifier.load(run.workdir)
    assert classifier.preprocessing == Preprocessing(32, 32, resize_mode=mode)
    for input_mode in ("memory", "stream"):
        splits = fr.open_dataset(data, fr.ReadOptions(image_size=(32, 32), resize=mode, input=input_mode))
        for name in ("train", "test"):
            for image, path in zip(getattr(splits, name).images[:], images_in(data / name), strict=True):
                np.testing.assert_array_equal(image, classifier.preprocessing.load(path))
    assert fr.evaluate(run.workdir).loss == pytest.approx(run.test_loss, rel=1e-4)
    assert fr.evaluate(run.workdir, data).loss == pytest.approx(run.test_loss, rel=1e-4)

    # A resumed run and a run from these weights take over the mode; another mode does not resume.
    fr.fit(fr.TrainConfig(workdir=tmp_path / "run", **options | {"epochs": 2}), quiet=True)
    assert fr.Classifier.load(tmp_path / "run").preprocessing.resize_mode == mode
    init = {"init": str(tmp_path / "run"), "model": None, "width": None}
    fr.fit(fr.TrainConfig(workdir=tmp_path / "tuned", **options | init), quiet=True)
    assert fr.Classifier.load(tmp_path / "tuned").preprocessing.resize_mode == mode
    with pytest.raises(fr.UserError, match="images of another size, resize mode or scaling"):
        fr.fit(fr.TrainConfig(workdir=tmp_path / "run", resize="stretch", **options | {"epochs": 3}), quiet=True)


def test_describe_reports_shrinking(tmp_path):
    data = write_wide_images(tmp_path / "data")
    assert fr.open_dataset(data, fr.ReadOptions(image_size=(32, 32))).source_size == (60, 90)
    for path in images_in(data):
        Image.new("RGB", (400, 300)).save(path)
    for mode in ("memory", "stream"):
        splits = fr.open_dataset(data, fr.ReadOptions(input=mode))
        assert [*splits.describe()][-1] == (
            "resizing shrinks the images 4.7-fold, from 300×400 (median) to 64×64; --image-size 96 96 preserves more "
            "detail"
        )
    for size in ((96, 96), (75, 100)):
        assert fr.open_dataset(data, fr.ReadOptions(image_size=size)).shrink_advice() is None
    for path in images_in(data):
        Image.new("RGB", (1200, 1000)).save(path)
    assert "--image-size 224 224" in fr.open_dataset(data).shrink_advice()
    large = fr.open_dataset(data, fr.ReadOptions(image_size=(224, 224)))
    assert large.shrink_advice().endswith("; a larger --image-size preserves more detail")


def test_median_image_size_reads_few_headers(tmp_path, monkeypatch):
    for index in range(500):
        path = tmp_path / "train" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    Image.new("RGB", (90, 60)).save(tmp_path / "train" / "a" / "0.png")
    paths = []
    size_of = image_folder.image_size_of
    monkeypatch.setattr(image_folder, "image_size_of", lambda path: paths.append(path) or size_of(path))
    with pytest.raises(fr.UserError, match="499 of 500 images"):
        read_folder(tmp_path, fr.ReadOptions())
    assert len(paths) == 200


def test_linked_folders_are_followed(tmp_path):
    draw(tmp_path / "train", 2)
    draw(tmp_path / "more", 1, classes=("inner",))
    for name in ("cycle", "second-cycle"):
        (tmp_path / "train" / "red" / name).symlink_to(".")
    (tmp_path / "train" / "red" / "link").symlink_to(tmp_path / "more")
    assert fr.open_dataset(tmp_path).train.class_counts().tolist() == [2, 2, 3]


def test_links_to_parents_are_skipped(tmp_path):
    draw(tmp_path / "train", 2)
    draw(tmp_path / "more", 1, classes=("inner",))
    (tmp_path / "train" / "red" / "up").symlink_to("..")
    for name in ("first", "second"):
        (tmp_path / "train" / "red" / name).symlink_to(tmp_path / "more")
    assert fr.open_dataset(tmp_path).train.class_counts().tolist() == [2, 2, 4]


def test_image_size_takes_numpy_integers(tmp_path):
    draw(tmp_path / "train", 2)
    assert fr.open_dataset(tmp_path, fr.ReadOptions(image_size=(np.int64(32), np.int32(40)))).train.image_size == (
        32,
        40,
    )


@pytest.mark.parametrize("input", ["memory", "stream"])
def test_broken_link_and_pipe_are_unreadable(tmp_path, input):
    draw(tmp_path / "train", 10)
    (tmp_path / "train" / "red" / "broken.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "train" / "red" / "pipe.png")
    with pytest.raises(fr.UserError, match=r"(?s)broken\.png does not exist.*pipe\.png is a pipe or a device"):
        fr.open_dataset(tmp_path, fr.ReadOptions(input=input))
    splits = fr.open_dataset(tmp_path, fr.ReadOptions(input=input, max_corrupt_fraction=0.1))
    assert splits.train.class_counts().tolist() == [10, 10, 10]
    images = read_folder(
        tmp_path, fr.ReadOptions(image_size=(32, 32), max_corrupt_fraction=0.1, input="stream")
    ).train.images
    (tmp_path / "train" / "blue" / "0.png").unlink()
    os.mkfifo(tmp_path / "train" / "blue" / "0.png")
    with pytest.raises(fr.UserError, match=r"0\.png is a pipe or a device"):
        images.encoded(0)
