"""Batches from device memory: order, labels, padding."""

from itertools import islice

import jax
import numpy as np
import pytest

from flaxresnet.data.dataset import Dataset
from flaxresnet.data.loader import DeviceSource, Loader

COUNT = 10
BATCH = 4


def label_of(index):
    return (7 * index + 3) % COUNT


def make_loader(count=COUNT, batch_size=BATCH):
    """Returns a loader of images whose pixels are all equal to their index."""
    index = np.arange(count)
    images = np.broadcast_to(index[:, None, None, None], (count, 2, 5, 3)).astype(np.uint8)
    dataset = Dataset(images, label_of(index).astype(np.int32), tuple(map(str, range(COUNT))))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    source = DeviceSource(dataset, batch_size, replicated=sharding, sharding=sharding)
    return Loader(source, dataset, batch_size, sharding)


def to_indices(images):
    """Returns the index of each image of a batch."""
    images = np.asarray(images)
    assert images.shape[-3:] == (2, 5, 3)
    assert np.all(images == images[..., :1, :1, :1])
    return images[..., 0, 0, 0].astype(int)


def epoch_batches(loader, seed, epoch):
    """Returns the batches of an epoch; epochs count from 1."""
    first = (epoch - 1) * loader.steps_per_epoch
    return list(islice(loader.train(seed, first), loader.steps_per_epoch))


def epoch_order(loader, seed, epoch):
    return [index for batch in epoch_batches(loader, seed, epoch) for index in to_indices(batch.images)]


def test_epoch_has_full_batches():
    loader = make_loader()
    batches = epoch_batches(loader, 0, 1)
    assert len(batches) == loader.steps_per_epoch == 2
    for batch in batches:
        assert batch.images.shape == (BATCH, 2, 5, 3)
        assert batch.images.dtype == np.uint8
        assert batch.labels.dtype == np.int32
        np.testing.assert_array_equal(batch.mask, np.ones(BATCH, np.float32))
    order = epoch_order(loader, 0, 1)
    assert len(order) == len(set(order)) == 8


def test_labels_match_images():
    loader = make_loader()
    for batch in [*epoch_batches(loader, 0, 1), *loader.eval_batches()]:
        np.testing.assert_array_equal(batch.labels, label_of(to_indices(batch.images)))


def test_order_depends_on_seed_and_epoch():
    loader = make_loader()
    order = epoch_order(loader, seed=5, epoch=2)
    np.random.seed(1)
    next(loader.train(5))  # an interrupted epoch
    loader.bn_batches(8, seed=5)
    assert epoch_order(loader, seed=5, epoch=2) == order
    assert epoch_order(make_loader(), seed=5, epoch=2) == order
    orders = {tuple(epoch_order(loader, seed, epoch)) for seed in (0, 1, 2, 5) for epoch in (1, 2, 3, 6)}
    assert len(orders) == 16
    assert tuple(range(8)) not in orders


def test_epochs_cover_all_images():
    loader = make_loader()
    assert {index for epoch in range(1, 13) for index in epoch_order(loader, 0, epoch)} == set(range(COUNT))


@pytest.mark.parametrize(
    ("count", "batch_size", "masks"),
    [
        (10, 4, [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]]),
        (8, 4, [[1, 1, 1, 1], [1, 1, 1, 1]]),
        (3, 5, [[1, 1, 1, 0, 0]]),
        (2, 1, [[1], [1]]),
    ],
)
def test_eval_batches_mask_padding(count, batch_size, masks):
    batches = list(make_loader(count, batch_size).eval_batches())
    assert [np.asarray(batch.mask).tolist() for batch in batches] == masks
    order = []
    for batch in batches:
        assert batch.images.shape == (batch_size, 2, 5, 3)
        assert batch.labels.shape == (batch_size,)
        assert batch.mask.dtype == np.float32
        order += to_indices(batch.images)[np.asarray(batch.mask) == 1].tolist()
    assert order == list(range(count))


@pytest.mark.parametrize(
    ("count", "batches"),
    [(8, 2), (9, 2), (7, 1), (4, 1), (1, 1), (10, 2), (512, 2)],
)
def test_bn_batches_are_full(count, batches):
    images = make_loader().bn_batches(count, seed=0)
    assert images.shape == (batches, BATCH, 2, 5, 3)
    assert images.dtype == np.uint8
    indices = to_indices(images).ravel()
    assert len(set(indices)) == batches * BATCH


def test_bn_batches_depend_on_seed():
    def order(loader, seed):
        return to_indices(loader.bn_batches(8, seed)).ravel().tolist()

    loader = make_loader()
    expected = order(loader, seed=3)
    epoch_batches(loader, 0, 1)
    assert order(loader, seed=3) == expected
    assert order(make_loader(), seed=3) == expected
    assert order(loader, seed=4) != expected
    assert expected != list(range(8))
