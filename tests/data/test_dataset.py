"""What a data set says of itself, its fingerprint, and where one is looked for."""

import dataclasses

import numpy as np
import pytest

from flaxresnet.data.dataset import Dataset, Splits, is_same_data
from flaxresnet.data.hdf5 import write_hdf5
from flaxresnet.data.open import hdf5_files, open_dataset
from flaxresnet.runtime.errors import UserError

IMAGES = np.random.default_rng(1).integers(0, 256, (5, 4, 6, 3), np.uint8)
TRAIN = Dataset(IMAGES, np.array([0, 2, 2, 0, 2], np.int32), ("fist", "palm", "thumb"))
TEST = Dataset(IMAGES[:2], np.array([1, 1], np.int32), ("fist", "palm", "thumb"))


def test_describe_says_what_was_loaded_as_the_tutorials_print_it():
    assert list(Splits(TRAIN, TEST, "signs.h5").describe()) == [
        "data: signs.h5",
        "number of training examples = 5",
        "number of test examples = 2",
        "X_train shape: (5, 4, 6, 3)  Y_train shape: (5,)",
        "X_test shape: (2, 4, 6, 3)  Y_test shape: (2,)",
        "3 classes: fist, palm, thumb",
        "train images a class: 2, 0, 3",
        "test images a class: 0, 2, 0",
    ]


@pytest.mark.parametrize(
    ("splits", "lines"),
    [
        (
            Splits(TRAIN, None, "a.h5"),
            [
                "data: a.h5",
                "number of training examples = 5",
                "X_train shape: (5, 4, 6, 3)  Y_train shape: (5,)",
                "3 classes: fist, palm, thumb",
                "train images a class: 2, 0, 3",
            ],
        ),
        (
            Splits(None, TEST, "b.h5"),
            [
                "data: b.h5",
                "number of test examples = 2",
                "X_test shape: (2, 4, 6, 3)  Y_test shape: (2,)",
                "3 classes: fist, palm, thumb",
                "test images a class: 0, 2, 0",
            ],
        ),
    ],
    ids=["training only", "test only"],
)
def test_describe_leaves_out_a_missing_split(splits, lines):
    assert list(splits.describe()) == lines


def test_class_counts_have_an_entry_for_each_class_even_without_images():
    dataset = Dataset(IMAGES, TRAIN.labels, ("a", "b", "c", "d"))
    np.testing.assert_array_equal(dataset.class_counts(), [2, 0, 3, 0])


def test_length_and_image_size_are_those_of_the_images():
    assert len(TRAIN) == 5
    assert TRAIN.image_size == (4, 6)


@pytest.mark.parametrize(
    "same",
    [
        dataclasses.replace(TRAIN, images=IMAGES.copy(), labels=TRAIN.labels.copy()),
        dataclasses.replace(TRAIN, images=np.asfortranarray(IMAGES)),
        dataclasses.replace(TRAIN, labels=TRAIN.labels.astype(np.int64)),
        dataclasses.replace(TRAIN, labels=np.repeat(TRAIN.labels, 2)[::2]),
        dataclasses.replace(TRAIN, names_given=False),
    ],
    ids=["copy", "memory order", "label type", "strided labels", "names given or not"],
)
def test_fingerprint_is_equal_for_equal_data(same):
    assert same.fingerprint() == TRAIN.fingerprint()


def one_pixel_changed():
    images = IMAGES.copy()
    images[-1, -1, -1, -1] ^= 1
    return images


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(TRAIN, images=one_pixel_changed()),
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
        "pixel", "shape", "image order", "label", "label order", "name", "name order", "names joined",
        "names joined elsewhere", "quotes in a name", "fewer images",
    ],
)  # fmt: skip
def test_fingerprint_differs_for_different_data(other):
    assert other.fingerprint() != TRAIN.fingerprint()


def test_fingerprint_is_the_same_in_another_process_and_version():
    dataset = Dataset(np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3), np.array([1], np.int32), ("a", "b"))
    assert dataset.fingerprint() == "0295505ad2954c3df8b839bc5da576f5c82353215dc209494a5f95971d476aff"


def test_fingerprints_of_before_say_nothing_of_contents_and_fit_any():
    one, other = (dataclasses.replace(TRAIN, contents=contents).fingerprint() for contents in ("a1", "b2"))
    assert not is_same_data(one, other)
    assert is_same_data(one, one)
    assert is_same_data(one, TRAIN.fingerprint())
    assert is_same_data(TRAIN.fingerprint(), other)
    assert not is_same_data(one, TEST.fingerprint())
    assert not is_same_data(None, one)
    assert is_same_data(None, None)


def test_no_path_means_the_datasets_folder_here_if_it_has_hdf5_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets").mkdir()
    write_hdf5(tmp_path / "datasets" / "train_signs.h5", "train", TRAIN)
    write_hdf5(tmp_path / "datasets" / "test_signs.h5", "test", TEST)
    splits = open_dataset()
    assert splits.source == "datasets"
    assert splits.train.fingerprint() == TRAIN.fingerprint()
    assert splits.test.fingerprint() == TEST.fingerprint()


@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "Path"])
def test_a_path_may_be_text_or_a_path(tmp_path, kind):
    write_hdf5(tmp_path / "signs.h5", "train", TRAIN)
    splits = open_dataset(kind(tmp_path / "signs.h5"))
    assert splits.train.fingerprint() == TRAIN.fingerprint()
    assert splits.source == str(tmp_path / "signs.h5")


def test_a_given_path_goes_before_the_datasets_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets").mkdir()
    write_hdf5(tmp_path / "datasets" / "train_signs.h5", "train", TRAIN)
    write_hdf5(tmp_path / "mine.h5", "test", TEST)
    splits = open_dataset("mine.h5")
    assert splits.train is None
    assert splits.test.fingerprint() == TEST.fingerprint()


def test_hdf5_files_are_files_with_an_hdf5_suffix_in_the_order_of_their_names(tmp_path):
    for name in ("b.h5", "a.HDF5", "c.hdf", "d.txt", "h5"):
        (tmp_path / name).touch()
    (tmp_path / "folder.h5").mkdir()
    assert [path.name for path in hdf5_files(tmp_path)] == ["a.HDF5", "b.h5", "c.hdf"]
    assert hdf5_files(tmp_path / "nowhere") == []
    assert hdf5_files(tmp_path / "b.h5") == []


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "datasets").mkdir()
    monkeypatch.chdir(tmp_path)

    def refuse(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("flaxresnet.data.open.hdf5_files", refuse)
    for path in (None, "datasets"):
        with pytest.raises(UserError, match="datasets cannot be read: Permission denied"):
            open_dataset(path)


def test_a_thousand_classes_are_not_all_listed():
    names = tuple(f"c{i}" for i in range(1000))
    many = Dataset(np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1, np.int32), names)
    lines = list(Splits(many, None, "many.h5").describe())
    assert lines[-2] == "1000 classes: " + ", ".join(names[:20]) + " and 980 more"
    assert lines[-1] == "train images a class: 0 to 1, median 0"
