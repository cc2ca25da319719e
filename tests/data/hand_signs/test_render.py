"""Rendered hand signs: deterministic, balanced, and not linearly separable."""

import numpy as np
import pytest

from flaxresnet.data.hand_signs.render import hand_signs, render_signs


@pytest.fixture(scope="module")
def splits():
    """Fewer and smaller images than in the default dataset."""
    return hand_signs(train=270, test=120, image_size=32)


def test_default_dataset_resembles_tutorials():
    calls = []

    def draw(count, seed, image_size, variety):
        calls.append((seed, variety))
        return np.zeros((count, image_size, image_size, 3), np.uint8), np.arange(count, dtype=np.int32) % 6

    splits = hand_signs(draw=draw)
    assert calls == [((0, 0), 0.1), ((0, 1), 0.1)]
    check_default(splits)


@pytest.mark.campaign
def test_default_dataset_is_rendered():
    splits = hand_signs()
    check_default(splits)
    check_images_differ(splits)
    check_linear_classifier(splits)


def check_default(splits):
    assert splits.train.images.shape == (1080, 64, 64, 3)
    assert splits.test.images.shape == (120, 64, 64, 3)
    assert splits.train.images.dtype == np.uint8
    assert splits.train.class_names == ("0", "1", "2", "3", "4", "5")
    assert splits.train.class_counts().tolist() == [180] * 6
    assert splits.test.class_counts().tolist() == [20] * 6


def test_render_signs_is_deterministic():
    images, labels = render_signs(7, seed=3)
    same_images, same_labels = render_signs(7, seed=3)
    other_images, _ = render_signs(7, seed=4)
    np.testing.assert_array_equal(images, same_images)
    np.testing.assert_array_equal(labels, same_labels)
    assert not np.array_equal(images, other_images)


def test_classes_are_balanced(splits):
    check_images_differ(splits)
    assert splits.train.class_counts().tolist() == [45] * 6
    assert splits.test.class_counts().tolist() == [20] * 6


def check_images_differ(splits):
    images = [image.tobytes() for image in (*splits.train.images, *splits.test.images)]
    assert len(set(images)) == len(images)


def test_zero_variety_gives_bright_backgrounds():
    def corners(variety):
        images, _ = render_signs(60, seed=0, variety=variety)
        return images[:, :6, [*range(6), *range(-6, 0)]] / 255  # the upper ones, without the arm

    plain = corners(0.0)
    varied = corners(1.0)
    assert np.median(plain, axis=(1, 2, 3)).min() > 0.6
    assert np.median(varied, axis=(1, 2, 3)).min() < 0.4
    assert np.median(plain.std(axis=(1, 2))) < 0.5 * np.median(varied.std(axis=(1, 2)))


@pytest.mark.parametrize("size", [32, 96])
def test_render_signs_takes_any_size(size):
    assert render_signs(2, seed=0, image_size=size)[0].shape == (2, size, size, 3)


def test_linear_classifier_fails(splits):
    check_linear_classifier(splits)


def check_linear_classifier(splits):
    """Asserts that ridge regression on one-hot labels, with the best of five penalties, is below 60% accuracy."""

    def pixels(images):
        return images.reshape(len(images), -1) / 255 - 0.5

    train = pixels(splits.train.images)
    test = pixels(splits.test.images)
    targets = np.eye(6)[splits.train.labels]
    kernel = train @ train.T
    accuracies = []
    for penalty in (1.0, 10.0, 100.0, 1000.0, 10000.0):
        weights = np.linalg.solve(kernel + penalty * np.eye(len(kernel)), targets)
        predicted = (test @ train.T @ weights).argmax(axis=1)
        accuracies.append((predicted == splits.test.labels).mean())
    assert 1 / 6 < max(accuracies) < 0.6, accuracies
