"""The drawn hand signs: repeatable, balanced, and more than a linear classifier can tell apart."""

import numpy as np
import pytest

from flaxresnet.data.hand_signs.render import hand_signs, render_signs


@pytest.fixture(scope="module")
def splits():
    """A set a fourth as large as the default one, and half as large on each side of a picture."""
    return hand_signs(train=270, test=120, image_size=32)


def test_the_default_set_has_the_size_of_the_tutorials():
    asked = []

    def draw(count, seed, image_size, variety):
        asked.append((seed, variety))
        return np.zeros((count, image_size, image_size, 3), np.uint8), np.arange(count, dtype=np.int32) % 6

    splits = hand_signs(draw=draw)
    assert asked == [((0, 0), 0.1), ((0, 1), 0.1)]
    check_default(splits)


@pytest.mark.campaign
def test_default_set_is_drawn_whole():
    splits = hand_signs()
    check_default(splits)
    check_that_all_differ(splits)
    check_a_linear_classifier(splits)


def check_default(splits):
    assert splits.train.images.shape == (1080, 64, 64, 3)
    assert splits.test.images.shape == (120, 64, 64, 3)
    assert splits.train.images.dtype == np.uint8
    assert splits.train.class_names == ("0", "1", "2", "3", "4", "5")
    assert splits.train.class_counts().tolist() == [180] * 6
    assert splits.test.class_counts().tolist() == [20] * 6


def test_the_seed_decides_everything():
    images, labels = render_signs(7, seed=3)
    again, same = render_signs(7, seed=3)
    other, _ = render_signs(7, seed=4)
    np.testing.assert_array_equal(images, again)
    np.testing.assert_array_equal(labels, same)
    assert not np.array_equal(images, other)


def test_no_picture_is_drawn_twice(splits):
    check_that_all_differ(splits)
    assert splits.train.class_counts().tolist() == [45] * 6
    assert splits.test.class_counts().tolist() == [20] * 6


def check_that_all_differ(splits):
    pictures = [image.tobytes() for image in (*splits.train.images, *splits.test.images)]
    assert len(set(pictures)) == len(pictures) == len(splits.train) + len(splits.test)


def test_without_variety_every_wall_is_bright_and_plain():
    def corners(variety):
        images, _ = render_signs(60, seed=0, variety=variety)
        return images[:, :6, [*range(6), *range(-6, 0)]] / 255  # the wrist is below

    calm, varied = corners(0.0), corners(1.0)
    assert np.median(calm, axis=(1, 2, 3)).min() > 0.6
    assert np.median(varied, axis=(1, 2, 3)).min() < 0.4
    assert np.median(calm.std(axis=(1, 2))) < 0.5 * np.median(varied.std(axis=(1, 2)))


@pytest.mark.parametrize("size", [32, 96])
def test_pictures_come_in_any_size(size):
    assert render_signs(2, seed=0, image_size=size)[0].shape == (2, size, size, 3)


def test_a_linear_classifier_on_pixels_stays_under_60_percent(splits):
    check_a_linear_classifier(splits)


def check_a_linear_classifier(splits):
    # Ridge regression on one-hot labels in its kernel form, over a range of penalties; the best counts.
    def pixels(images):
        return images.reshape(len(images), -1) / 255 - 0.5

    train, test = pixels(splits.train.images), pixels(splits.test.images)
    targets = np.eye(6)[splits.train.labels]
    kernel = train @ train.T
    accuracies = []
    for penalty in (1.0, 10.0, 100.0, 1000.0, 10000.0):
        weights = np.linalg.solve(kernel + penalty * np.eye(len(kernel)), targets)
        accuracies.append(((test @ train.T @ weights).argmax(axis=1) == splits.test.labels).mean())
    assert 1 / 6 < max(accuracies) < 0.6, accuracies
