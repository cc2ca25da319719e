"""Warnings about readable data that are probably wrong."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import blobs

from flaxresnet.data.dataset import Dataset, Splits
from flaxresnet.data.lazy_images import LazyImages
from flaxresnet.data.sanity_checks import data_warnings, duplicates


def get_warnings(train, test=None, thorough=False):
    return list(data_warnings(Splits(train, test, "data"), thorough))


def smooth_noise(count, seed, size=48):
    """Returns images of bilinearly interpolated noise, in which slopes are well defined."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (count, 6, 6, 3))
    grid = np.linspace(0, 4.999, size)
    low = grid.astype(int)
    weight = (grid % 1)[:, None]
    rows = coarse[:, low] * (1 - weight)[..., None] + coarse[:, low + 1] * weight[..., None]
    images = rows[:, :, low] * (1 - weight) + rows[:, :, low + 1] * weight
    return images.astype(np.uint8)


def change_contrast(image):
    return np.clip(image * 0.8 + 20, 0, 255)


def test_good_data_gives_no_warning():
    assert get_warnings(blobs(30, 1), blobs(12, 2), thorough=True) == []


def test_missing_classes_are_named():
    data = blobs(9, 1)
    single_class = replace(blobs(9, 2), labels=np.ones(9, np.int32))
    assert get_warnings(data, single_class) == ["all 9 test images are of the class green; check the labels"]
    shifted = Dataset(data.images, data.labels + 1, ("0", "1", "2", "3"))
    (warning,) = get_warnings(shifted)
    assert warning.startswith("no training image is of the class 0; ")
    assert "number them from 0" in warning
    assert get_warnings(replace(data, labels=data.labels % 2)) == ["no training image is of the class blue"]


@pytest.mark.parametrize("brightest", [0, 1])
def test_dark_dataset_is_reported(brightest):
    data = blobs(9, 1)
    (warning,) = get_warnings(replace(data, images=np.minimum(data.images, brightest)))
    assert warning.startswith(f"none of 9 sampled training images has a pixel above {brightest}; ")


def test_dark_images_are_counted():
    data = blobs(44, 1)
    images = data.images.copy()
    images[3:43] = images[3:43] > 100
    (warning,) = get_warnings(replace(data, images=images))
    assert warning.startswith("40 of 44 sampled training images have no pixel above 1, such as training image 3; ")


def test_large_images_shrink_the_sample(monkeypatch):
    data = blobs(9, 1)
    monkeypatch.setattr("flaxresnet.data.sanity_checks.CHUNK_BYTES", 5 * data.images[0].nbytes)
    (warning,) = get_warnings(replace(data, images=np.minimum(data.images, 1)))
    assert "of 5 sampled" in warning


class RecordingImages(LazyImages):
    """Black images that record the indices of reads."""

    def __init__(self, count):
        super().__init__("", count, (32, 32))
        self.reads = []

    def _read(self, index, part):
        self.reads.append(index)
        return np.zeros((32, 32, 3), np.uint8)


@pytest.mark.parametrize(("thorough", "count"), [(False, 16), (True, 256)])
def test_streamed_images_are_sampled(thorough, count):
    images = RecordingImages(1000)
    (warning,) = get_warnings(Dataset(images, np.arange(1000, dtype=np.int32) % 2, ("a", "b")), thorough=thorough)
    assert warning.startswith(f"none of {count} sampled training images")
    assert len(images.reads) == count
    assert min(images.reads) == 0
    assert max(images.reads) == 999


def test_leaked_images_are_listed():
    train = smooth_noise(40, 1)
    test = smooth_noise(10, 2)
    test[3] = train[5]
    test[7] = train[39]
    labels = np.arange(50, dtype=np.int32) % 2
    splits = Dataset(train, labels[:40], ("a", "b")), Dataset(test, labels[:10], ("a", "b"))
    (warning,) = get_warnings(*splits, thorough=True)
    first, *pairs = warning.splitlines()
    assert first.startswith("2 of 10 test images are training images too; ")
    assert pairs == ["  test image 3: training image 5", "  test image 7: training image 39"]
    (warning,) = get_warnings(*splits)
    assert "such as test image 3, which is training image 5; " in warning
    assert "`flaxresnet check-data`" in warning
    assert "\n" not in warning


def test_leakage_search_skips_large_datasets(monkeypatch):
    train = blobs(9, 1)
    streamed = replace(train, images=RecordingImages(9))
    assert len(get_warnings(train, train)) == 1
    assert not any("are training images too" in warning for warning in get_warnings(train, streamed))
    assert len(streamed.images.reads) == 9  # to check the pixel range
    monkeypatch.setattr("flaxresnet.data.sanity_checks.MAX_HASHED_BYTES", 2 * train.images.nbytes - 1)
    assert get_warnings(train, train) == []


def test_duplicates_finds_changed_images():
    train = smooth_noise(300, 3)
    test = smooth_noise(60, 4)
    test[1] = change_contrast(train[8])
    noise = np.random.default_rng(5).integers(-3, 4, train[9].shape)
    test[2] = np.clip(train[9].astype(int) + noise, 0, 255)
    test[4] = 128  # flat images have no slopes to compare
    train[11] = 130
    assert duplicates(train, test) == ([], [(1, 8), (2, 9)])


def test_duplicates_hashes_small_images():
    train = smooth_noise(5, 1, size=8)
    assert duplicates(train, train[[2]] // 2 * 2) == ([], [(0, 2)])


def test_large_splits_compare_equal_images_only(monkeypatch):
    monkeypatch.setattr("flaxresnet.data.sanity_checks.MAX_PAIRS", 10)
    train = blobs(9, 1)
    test = blobs(6, 2)
    test.images[4] = train.images[2]
    test.images[5] = train.images[3] // 2 * 2
    equal, limit = get_warnings(train, test, thorough=True)
    assert equal.startswith("1 of 6 test images are training images too; ")
    assert equal.endswith(":\n  test image 4: training image 2")
    assert limit.startswith("9 training and 6 test images are too many to compare all pairs; ")


@pytest.mark.parametrize("chunk_images", [1, 7, 100])
def test_duplicates_ignores_chunk_size(monkeypatch, chunk_images):
    train = smooth_noise(40, 3)
    test = smooth_noise(20, 4)
    test[1] = train[8]
    test[15] = train[33]
    train[35] = train[33]  # the first of several equal images counts
    test[9] = change_contrast(train[21])
    monkeypatch.setattr("flaxresnet.data.sanity_checks.CHUNK_BYTES", chunk_images * train[0].nbytes)
    assert duplicates(train, test) == ([(1, 8), (15, 33)], [(9, 21)])
    assert duplicates(train, test, nearly=False) == ([(1, 8), (15, 33)], [])
