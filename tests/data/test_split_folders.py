"""Tests of the folders that people bring: split names, stray files, empty and small classes, one folder too many."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import flaxresnet as fr
from flaxresnet.cli.image_args import files_of
from flaxresnet.data.sanity_checks import data_warnings
from flaxresnet.data.split_folders import split_role


def fill(folder, classes, count=5, suffix=".png"):
    """Writes `count` images of noise into a folder for each class."""
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            path = folder / name / f"{name}{index}{suffix}"
            image = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
            image.save(path, format="PPM" if suffix in (".pgm", "") else "JPEG" if "jp" in suffix else "PNG")
    return folder


def open_folder(folder):
    return fr.open_dataset(folder, fr.ReadOptions(image_size=(32, 32)))


@pytest.mark.parametrize(
    ("name", "role"),
    [
        *[
            (name, "train")
            for name in ("train", "TRAIN", "Training", "training_set", "seg_train", "trainset", "train-images")
        ],
        *[(name, "val") for name in ("val", "Valid", "validation", "dev", "eval", "Evaluation", "val_set")],
        *[(name, "test") for name in ("test", "Testing", "test_set", "seg_test", "holdout", "TestData")],
        *[(name, None) for name in ("cat", "trainer", "testudo", "seg", "set", "protest", "valley")],
    ],
)
def test_split_role_of_name(name, role):
    assert split_role(name) == role


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"),
        ("TRAIN", "TEST"),
        ("Train", "Valid"),
        ("training_set/training_set", "test_set/test_set"),
        ("seg_train/seg_train", "seg_test"),
        ("train", "holdout"),
    ],
)
def test_split_folders_are_recognized(tmp_path, train, test):
    fill(tmp_path / train, ["cat", "dog"], 3)
    fill(tmp_path / test, ["cat", "dog"], 2)
    splits = open_folder(tmp_path)
    assert splits.train.class_names == ("cat", "dog")
    assert (len(splits.train), len(splits.test)) == (6, 4)
    assert splits.notes == ()


def test_unknown_split_names_are_rejected(tmp_path):
    for name in ("part1", "part2"):
        fill(tmp_path / name, ["cat", "dog"], 2)
    with pytest.raises(fr.UserError, match=r"part1, part2 in .* contain the same folders cat, dog, so they look like"):
        open_folder(tmp_path)


def test_two_training_folders_are_rejected(tmp_path):
    for name in ("train", "training", "test"):
        fill(tmp_path / name, ["cat", "dog"], 2)
    with pytest.raises(fr.UserError, match="has two folders for one split, train and training; keep one"):
        open_folder(tmp_path)


def test_class_named_like_split_in_split(tmp_path):
    for name in ("train", "test"):
        fill(tmp_path / name, ["bus", "train", "tram"], 2)
    assert open_folder(tmp_path).train.class_names == ("bus", "train", "tram")


@pytest.mark.parametrize("classes", [("fail", "pass", "test"), ("invalid", "valid"), ("bus", "train", "tram")])
def test_class_named_like_split(tmp_path, classes):
    fill(tmp_path, classes, 5)
    assert open_folder(tmp_path).train.class_names == classes


def test_run_folder_is_no_class(tmp_path, finished_run):
    fill(tmp_path, ["cat", "dog"], 5)
    run = shutil.copytree(finished_run, tmp_path / "runs" / "default")
    fill(run / "report", ["figures"], 1)
    splits = open_folder(tmp_path)
    assert splits.train.class_names == ("cat", "dog")
    assert splits.notes == ()
    with pytest.raises(fr.UserError, match="is a run folder; give the folder of the images"):
        open_folder(run)


@pytest.mark.parametrize("count", [2, 3, 10])
def test_every_class_has_training_and_test_images(tmp_path, count):
    classes = [f"class{index}" for index in range(20)]
    splits = open_folder(fill(tmp_path, classes, count))
    assert splits.train.class_counts().min() >= 1
    assert splits.test.class_counts().min() >= 1


def test_single_image_trains(tmp_path):
    fill(tmp_path, ["cat", "dog"], 5)
    fill(tmp_path, ["rare"], 1)
    splits = open_folder(tmp_path)
    assert splits.train.class_counts()[2] == 1
    assert splits.notes == ("the class rare has one image, so it has no test image; add images, or remove the class",)


@pytest.mark.parametrize("suffix", [".pgm", ".jpg_large", ""])
def test_unusual_suffix_is_read(tmp_path, suffix):
    fill(tmp_path, ["cat"], 5)
    fill(tmp_path, ["dog"], 5, suffix)
    (tmp_path / "dog" / "labels.txt").write_text("dog")
    (tmp_path / "dog" / "unknown.abc").write_text("no image")
    splits = open_folder(tmp_path)
    assert len(splits.train) + len(splits.test) == 10
    assert len(splits.notes) == 1
    assert splits.notes[0].startswith("2 files in the class folders are not images: ")
    assert "1 .txt" in splits.notes[0]
    assert next(iter(data_warnings(splits))) == splits.notes[0]


def test_empty_class_folder_is_reported(tmp_path):
    fill(tmp_path, ["cat", "dog"], 5)
    (tmp_path / "bird").mkdir()
    assert open_folder(tmp_path).notes == (f"the folder {tmp_path / 'bird'} has no images, so it is not a class",)


def test_weight_file_does_not_hide_images(tmp_path):
    import h5py

    fill(tmp_path, ["cat", "dog"], 5)
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file["model_weights"] = [1.0]
    assert open_folder(tmp_path).train.class_names == ("cat", "dog")


def test_hidden_and_system_files_are_skipped(tmp_path):
    fill(tmp_path, ["cat", "dog"], 5)
    for folder in ("cat/@eaDir", "$RECYCLE.BIN", "__MACOSX", "dog/.thumbnails"):
        fill(tmp_path / folder, ["x"], 1)
    (tmp_path / "dog" / "._dog0.png").write_bytes(b"no image")
    (tmp_path / "dog" / "Thumbs.db").write_bytes(b"no image")
    splits = open_folder(tmp_path)
    assert splits.train.class_names == ("cat", "dog")
    assert len(splits.train) + len(splits.test) == 10
    assert splits.notes == ()
    assert len(files_of(str(tmp_path))) == 10  # for predict


def test_flat_test_folder_is_reported(tmp_path):
    fill(tmp_path / "train", ["cat", "dog"], 5)
    fill(tmp_path, ["test"], 3)
    splits = open_folder(tmp_path)
    assert splits.test is None
    (note,) = splits.notes
    assert note.startswith(f"{tmp_path / 'test'} has images outside of class folders and is not used; sort them into")


def test_validation_replaces_unlabeled_test(tmp_path):
    fill(tmp_path / "train", ["cat", "dog"], 5)
    fill(tmp_path / "val", ["cat", "dog"], 2)
    fill(tmp_path / "test", ["unknown"], 3)
    splits = open_folder(tmp_path)
    assert len(splits.test) == 4
    assert splits.notes == (f"{tmp_path / 'test'} is not used: training has no images of its classes unknown",)


@pytest.mark.parametrize("inner", [("Cat", "Dog"), ("train", "test")])
def test_one_folder_too_many_suggests_path(tmp_path, inner):
    for name in inner:
        fill(tmp_path / "PetImages" / name, ["a", "b"], 2)
    with pytest.raises(fr.UserError, match=f"give {re.escape(str(tmp_path / 'PetImages'))} if these are the classes"):
        open_folder(tmp_path)


def test_other_folders_beside_splits_are_reported(tmp_path):
    for name in ("train", "test"):
        fill(tmp_path / name, ["cat", "dog"], 2)
    fill(tmp_path, ["docs"], 1)
    assert open_folder(tmp_path).notes == (
        f"{tmp_path} has split folders, so its other folders with images are not used: docs",
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("data.zip", "is an archive; unpack it, and give the folder"),
        ("labels.csv", "is a list of files; sort the images"),
        ("data.npz", "is a NumPy file; write its arrays to HDF5"),
        ("train.parquet", "is a Parquet file; write its images"),
        ("cat.JPG", "is an image; give a folder"),
    ],
)
def test_other_files_are_named(tmp_path, name, message):
    (tmp_path / name).write_bytes(b"content")
    with pytest.raises(fr.UserError, match=message):
        open_folder(tmp_path / name)


def test_images_without_class_folders_are_counted(tmp_path):
    fill(tmp_path, ["flat"], 3)
    with pytest.raises(fr.UserError, match="has 3 images outside of class folders; sort them into one folder"):
        open_folder(tmp_path / "flat")


def test_number_hint_needs_number_labels(tmp_path):
    train = fill(tmp_path / "train", ["cat", "dog"], 3)
    shutil.copytree(train / "dog", tmp_path / "test" / "dog")
    warnings = list(data_warnings(open_folder(tmp_path)))
    assert not any("numbered from 1" in warning for warning in warnings)
    assert json.dumps(warnings).count("check the labels") == 1
