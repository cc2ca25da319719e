"""Datasets: description, fingerprint, and the default path."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from flaxresnet.data.dataset import Dataset, Splits, is_same_data
from flaxresnet.data.hdf5 import write_hdf5
from flaxresnet.data.open import hdf5_files, open_dataset
from flaxresnet.runtime.errors import UserError

IMAGES = np.random.default_rng(1).integers(0, 256, (5, 4, 6, 3), np.uint8)
TRAIN = Dataset(IMAGES, np.array([0, 2, 2, 0, 2], np.int32), ("fist", "palm", "thumb"))
TEST = Dataset(IMAGES[:2], np.array([1, 1], np.int32), ("fist", "palm", "thumb"))


def test_describe_counts_images_of_classes():
    assert list(Splits(TRAIN, TEST, "signs").describe()) == [
        "data: signs",
        "5 training images of 4×6, 2 test images of 4×6, 3 classes",
        "  class  training  test\n  fist          2     0\n  palm          0     2\n  thumb         3     0",
    ]


def test_describe_skips_missing_split():
    assert list(Splits(None, TEST, "signs").describe()) == [
        "data: signs",
        "2 test images of 4×6, 3 classes",
        "  class  test\n  fist      0\n  palm      2\n  thumb     0",
    ]
    assert list(Splits(TRAIN, None, "signs").describe_arrays()) == [
        "number of training examples = 5",
        "X_train shape: (5, 4, 6, 3)  Y_train shape: (5,)",
    ]


def test_describe_arrays_prints_tutorials_lines():
    assert list(Splits(TRAIN, TEST, "signs.h5").describe_arrays()) == [
        "number of training examples = 5",
        "number of test examples = 2",
        "X_train shape: (5, 4, 6, 3)  Y_train shape: (5,)",
        "X_test shape: (2, 4, 6, 3)  Y_test shape: (2,)",
    ]


def test_class_counts_include_empty_classes():
    dataset = Dataset(IMAGES, TRAIN.labels, ("a", "b", "c", "d"))
    np.testing.assert_array_equal(dataset.class_counts(), [2, 0, 3, 0])


@pytest.mark.parametrize(
    "same",
    [
        dataclasses.replace(TRAIN, images=IMAGES.copy(), labels=TRAIN.labels.copy()),
        dataclasses.replace(TRAIN, images=np.asfortranarray(IMAGES)),
        dataclasses.replace(TRAIN, labels=TRAIN.labels.astype(np.int64)),
        dataclasses.replace(TRAIN, labels=np.repeat(TRAIN.labels, 2)[::2]),
        dataclasses.replace(TRAIN, names_given=False),
    ],
    ids=["copy", "memory order", "label dtype", "strided labels", "names given"],
)
def test_fingerprint_of_equal_data(same):
    assert same.fingerprint() == TRAIN.fingerprint()


def flip_bit():
    images = IMAGES.copy()
    images[-1, -1, -1, -1] ^= 1
    return images


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(TRAIN, images=flip_bit()),
        dataclasses.replace(TRAIN, images=IMAGES.reshape(5, 6, 4, 3)),
        dataclasses.replace(TRAIN, images=IMAGES[[1, 0, 2, 3, 4]]),
        dataclasses.replace(TRAIN, labels=np.array([0, 2, 2, 0, 1], np.int32)),
        dataclasses.replace(TRAIN, labels=TRAIN.labels[::-1]),
        dataclasses.replace(TRAIN, class_names=("fist", "palm", "thumbs")),
        dataclasses.replace(TRAIN, class_names=("palm", "fist", "thumb")),
        dataclasses.replace(TRAIN, class_names=("fist", "palm, thumb")),
        dataclasses.replace(TRAIN, class_names=("fist, palm", "thumb")),
        dataclasses.replace(TRAIN, class_names=("fist', 'palm", "thumb")),
        Dataset(IMAGES[:4], TRAIN.labels[:4], TRAIN.class_names),
    ],
    ids=[
        "bit", "shape", "image order", "label", "label order", "name", "name order", "joined names",
        "other joined names", "quotes in a name", "fewer images",
    ],
)  # fmt: skip
def test_fingerprint_of_other_data(other):
    assert other.fingerprint() != TRAIN.fingerprint()


def test_fingerprint_is_stable():
    dataset = Dataset(np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3), np.array([1], np.int32), ("a", "b"))
    assert dataset.fingerprint() == "0295505ad2954c3df8b839bc5da576f5c82353215dc209494a5f95971d476aff"


def test_old_fingerprint_matches_any_contents():
    a = dataclasses.replace(TRAIN, contents="a1").fingerprint()
    b = dataclasses.replace(TRAIN, contents="b2").fingerprint()
    assert not is_same_data(a, b)
    assert is_same_data(a, a)
    assert is_same_data(a, TRAIN.fingerprint())
    assert is_same_data(TRAIN.fingerprint(), b)
    assert not is_same_data(a, TEST.fingerprint())
    assert not is_same_data(None, a)
    assert is_same_data(None, None)


def test_default_path_is_datasets_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets").mkdir()
    write_hdf5(tmp_path / "datasets" / "train_signs.h5", "train", TRAIN)
    write_hdf5(tmp_path / "datasets" / "test_signs.h5", "test", TEST)
    splits = open_dataset()
    assert splits.source == "datasets"
    assert splits.train.fingerprint() == TRAIN.fingerprint()
    assert splits.test.fingerprint() == TEST.fingerprint()


@pytest.mark.parametrize("path_type", [str, Path])
def test_path_is_string_or_path(tmp_path, path_type):
    write_hdf5(tmp_path / "signs.h5", "train", TRAIN)
    splits = open_dataset(path_type(tmp_path / "signs.h5"))
    assert splits.train.fingerprint() == TRAIN.fingerprint()
    assert splits.source == str(tmp_path / "signs.h5")


def test_path_overrides_datasets_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets").mkdir()
    write_hdf5(tmp_path / "datasets" / "train_signs.h5", "train", TRAIN)
    write_hdf5(tmp_path / "other.h5", "test", TEST)
    splits = open_dataset("other.h5")
    assert splits.train is None
    assert splits.test.fingerprint() == TEST.fingerprint()


def test_hdf5_files_are_sorted(tmp_path):
    for name in ("b.h5", "a.HDF5", "c.hdf", "d.txt", "h5"):
        (tmp_path / name).touch()
    (tmp_path / "folder.h5").mkdir()
    assert [path.name for path in hdf5_files(tmp_path)] == ["a.HDF5", "b.h5", "c.hdf"]
    assert hdf5_files(tmp_path / "nowhere") == []
    assert hdf5_files(tmp_path / "b.h5") == []


def test_unreadable_folder_is_named(tmp_path, monkeypatch):
    (tmp_path / "datasets").mkdir()
    monkeypatch.chdir(tmp_path)

    def deny(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("flaxresnet.data.open.hdf5_files", deny)
    for path in (None, "datasets"):
        with pytest.raises(UserError, match="datasets cannot be read: Permission denied"):
            open_dataset(path)


def test_describe_cuts_many_classes():
    names = tuple(f"c{i}" for i in range(1000))
    many = Dataset(np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1, np.int32), names)
    table = list(Splits(many, None, "many.h5").describe())[-1]
    assert table.splitlines()[-1] == "  … and 950 more classes"
