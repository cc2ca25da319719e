"""What is said of data that can be read but are most likely wrong."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import blobs

from flaxresnet.data.dataset import Dataset, Splits
from flaxresnet.data.lazy_images import LazyImages
from flaxresnet.data.sanity_checks import data_warnings, duplicates


def said(train, test=None, thorough=False):
    return [*data_warnings(Splits(train, test, "here"), thorough)]


def scenes(count, seed, size=48):
    """Pictures with something in them: smooth random fields."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (count, 6, 6, 3))
    grid = np.linspace(0, 4.999, size)
    low, part = grid.astype(int), grid % 1
    rows = coarse[:, low] * (1 - part)[:, None, None] + coarse[:, low + 1] * part[:, None, None]
    images = rows[:, :, low] * (1 - part)[:, None] + rows[:, :, low + 1] * part[:, None]
    return images.astype(np.uint8)


def test_nothing_is_said_of_data_that_are_as_they_should_be():
    assert said(blobs(30, 1), blobs(12, 2), thorough=True) == []


def test_labels_that_leave_classes_out_are_named():
    data = blobs(9, 1)
    one = replace(blobs(9, 2), labels=np.ones(9, np.int32))
    assert said(data, one) == ["all 9 test images are of the class green; check the labels"]
    shifted = Dataset(data.images, data.labels + 1, ("0", "1", "2", "3"))
    (sentence,) = said(shifted)
    assert sentence == "no training image is of the class 0; if the labels are numbered from 1, number them from 0"
    (sentence,) = said(replace(data, labels=data.labels % 2))
    assert sentence == "no training image is of the class blue"


@pytest.mark.parametrize("top", [0, 1])
def test_images_from_0_to_1_are_named(top):
    data = blobs(9, 1)
    (sentence,) = said(replace(data, images=np.minimum(data.images, top)))
    assert sentence == (
        f"none of 9 sampled training images has a pixel above {top}; if they were divided by 255, "
        "store values from 0 to 255"
    )


def test_each_image_is_judged_where_some_are_from_0_to_1():
    data = blobs(44, 1)
    images = data.images.copy()
    images[3:43] = images[3:43] > 100
    (sentence,) = said(replace(data, images=images))
    assert sentence == (
        "40 of 44 sampled training images have no pixel above 1, such as training image 3; remove black images; "
        "if they were divided by 255, store values from 0 to 255"
    )


class Stored(LazyImages):
    """Black images, said to be on disk, that remember which were read."""

    def __init__(self, count):
        super().__init__("nowhere", count, (32, 32))
        self.reads = []

    def _read(self, place, part):
        self.reads.append(place)
        return np.zeros((32, 32, 3), np.uint8)


@pytest.mark.parametrize(("thorough", "count"), [(False, 16), (True, 256)])
def test_of_streamed_images_few_are_read_at_each_start(thorough, count):
    data = Dataset(images := Stored(1000), np.arange(1000, dtype=np.int32) % 2, ("a", "b"))
    (sentence,) = said(data, thorough=thorough)
    assert sentence.startswith(f"none of {count} sampled training images has a pixel above 0; ")
    assert len(images.reads) == count
    assert (min(images.reads), max(images.reads)) == (0, 999)


def test_test_images_that_are_training_images_are_listed():
    train, test = scenes(40, 1), scenes(10, 2)
    test[3], test[7] = train[5], train[39]
    labels = np.arange(50, dtype=np.int32) % 2
    splits = Dataset(train, labels[:40], ("a", "b")), Dataset(test, labels[:10], ("a", "b"))
    (sentence,) = said(*splits, thorough=True)
    assert sentence == (
        "2 of 10 test images are training images too; "
        "test accuracy would reward memorization; remove them from one split:\n"
        "  test image 3: training image 5\n"
        "  test image 7: training image 39"
    )
    (sentence,) = said(*splits)  # as training says it
    assert sentence == (
        "2 of 10 test images are training images too, such as test image 3, which is training image 5; "
        "test accuracy would reward memorization; remove them from one split; `flaxresnet check-data` lists all"
    )


def test_training_does_not_look_for_equal_images_where_that_takes_long(monkeypatch):
    train, streamed = blobs(9, 1), replace(blobs(9, 1), images=Stored(9))
    assert len(said(train, train)) == 1
    assert not any("are training images too" in sentence for sentence in said(train, streamed))
    assert len(streamed.images.reads) == 9  # for their brightness
    monkeypatch.setattr("flaxresnet.data.sanity_checks.MAX_HASHED_BYTES", 2 * train.images.nbytes - 1)
    assert said(train, train) == []


def test_near_duplicates_are_found_and_other_pictures_are_not():
    train, test = scenes(300, 3), scenes(60, 4)
    test[1] = np.clip(train[8] * 0.8 + 20, 0, 255)  # darker, with less contrast
    noise = np.random.default_rng(5).integers(-3, 4, train[9].shape)
    test[2] = np.clip(train[9].astype(int) + noise, 0, 255)
    test[4] = 128  # flat pictures are all alike, and no duplicates
    train[11] = 130
    same, near = duplicates(train, test)
    assert same == []
    assert near == [(1, 8), (2, 9)]


def test_small_pictures_have_signs_too():
    train = scenes(5, 1, size=8)
    assert duplicates(train, train[[2]] // 2 * 2) == ([], [(0, 2)])


def test_of_too_many_images_only_the_equal_ones_are_found(monkeypatch):
    monkeypatch.setattr("flaxresnet.data.sanity_checks.MAX_PAIRS", 10)
    train, test = blobs(9, 1), blobs(6, 2)
    test.images[4], test.images[5] = train.images[2], train.images[3] // 2 * 2
    same, many = said(train, test, thorough=True)
    assert same.startswith("1 of 6 test images are training images too; ")
    assert same.endswith(":\n  test image 4: training image 2")
    assert many == (
        "9 training and 6 test images are too many to compare all pairs; only equal images were searched, "
        "not similar ones"
    )


@pytest.mark.parametrize("at_once", [1, 7, 100])
def test_pairs_do_not_depend_on_how_many_images_are_read_at_once(monkeypatch, at_once):
    train, test = scenes(40, 3), scenes(20, 4)
    test[1], test[15] = train[8], train[33]
    train[35] = train[33]  # of two the first is named
    test[9] = np.clip(train[21] * 0.8 + 20, 0, 255)
    monkeypatch.setattr("flaxresnet.data.sanity_checks.CHUNK_BYTES", at_once * train[0].nbytes)
    assert duplicates(train, test) == ([(1, 8), (15, 33)], [(9, 21)])
    assert duplicates(train, test, nearly=False) == ([(1, 8), (15, 33)], [])


def test_of_large_images_fewer_are_looked_at(monkeypatch):
    monkeypatch.setattr("flaxresnet.data.sanity_checks.CHUNK_BYTES", 5 * blobs(9, 1).images[0].nbytes)
    data = blobs(9, 1)
    (sentence,) = said(replace(data, images=np.minimum(data.images, 1)))
    assert "of 5 sampled" in sentence
