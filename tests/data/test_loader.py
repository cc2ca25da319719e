"""Batches from the device: each image once, the right label with it, the same order for the same seed and epoch."""

from itertools import islice

import jax
import numpy as np
import pytest

from flaxresnet.data.dataset import Dataset
from flaxresnet.data.loader import DeviceSource, Loader

COUNT, BATCH = 10, 4


def label_of(index):
    return (7 * index + 3) % COUNT


def make_loader(count=COUNT, batch_size=BATCH):
    """Image i is filled with the value i and labelled `label_of(i)`."""
    index = np.arange(count)
    images = np.broadcast_to(index[:, None, None, None], (count, 2, 5, 3)).astype(np.uint8)
    dataset = Dataset(images, label_of(index).astype(np.int32), tuple(map(str, range(COUNT))))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    source = DeviceSource(dataset, batch_size, replicated=sharding, sharding=sharding)
    return Loader(source, dataset, batch_size, sharding)


def indices(batch_images):
    """Which image of the data set each image is."""
    images = np.asarray(batch_images)
    assert images.shape[-3:] == (2, 5, 3)
    assert np.all(images == images[..., :1, :1, :1])
    return images[..., 0, 0, 0].astype(int)


def steps_of(loader, seed, epoch):
    """The batches of one epoch, from 1."""
    return list(islice(loader.train(seed, (epoch - 1) * loader.steps_per_epoch), loader.steps_per_epoch))


def order(loader, seed, epoch):
    return [i for batch in steps_of(loader, seed, epoch) for i in indices(batch.images)]


def test_an_epoch_has_full_batches_and_no_image_twice():
    loader = make_loader()
    batches = steps_of(loader, 0, 1)
    assert len(batches) == loader.steps_per_epoch == 2
    for batch in batches:
        assert batch.images.shape == (BATCH, 2, 5, 3)
        assert batch.images.dtype == np.uint8
        assert batch.labels.dtype == np.int32
        np.testing.assert_array_equal(batch.mask, np.ones(BATCH, np.float32))
    seen = order(loader, seed=0, epoch=1)
    assert len(seen) == len(set(seen)) == 8


def test_labels_go_with_their_images():
    loader = make_loader()
    for batch in [*steps_of(loader, 0, 1), *loader.eval_batches()]:
        np.testing.assert_array_equal(batch.labels, label_of(indices(batch.images)))


def test_the_order_depends_on_seed_and_epoch_alone():
    loader = make_loader()
    first = order(loader, seed=5, epoch=2)
    np.random.seed(1)
    steps_of(loader, 5, 3)
    loader.bn_batches(8, seed=5)
    assert order(loader, seed=5, epoch=2) == first
    assert order(make_loader(), seed=5, epoch=2) == first
    orders = {tuple(order(loader, seed, epoch)) for seed in (0, 1, 2, 5) for epoch in (1, 2, 3, 6)}
    assert len(orders) == 16
    assert tuple(range(8)) not in orders


def test_every_image_is_trained_on_sooner_or_later():
    loader = make_loader()
    assert {i for epoch in range(1, 13) for i in order(loader, 0, epoch)} == set(range(COUNT))


def test_abandoning_an_epoch_does_not_change_the_next():
    loader, expected = make_loader(), order(make_loader(), 0, 2)
    next(loader.train(0))
    assert order(loader, 0, 2) == expected


@pytest.mark.parametrize(
    ("count", "batch_size", "masks"),
    [
        (10, 4, [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]]),
        (8, 4, [[1, 1, 1, 1], [1, 1, 1, 1]]),
        (3, 5, [[1, 1, 1, 0, 0]]),
        (2, 1, [[1], [1]]),
    ],
)
def test_in_order_gives_every_image_once_and_masks_the_padding(count, batch_size, masks):
    batches = list(make_loader(count, batch_size).eval_batches())
    assert [np.asarray(batch.mask).tolist() for batch in batches] == masks
    for batch in batches:
        assert batch.images.shape == (batch_size, 2, 5, 3)
        assert batch.labels.shape == (batch_size,)
        assert batch.mask.dtype == np.float32
    seen = [i for batch in batches for i in indices(batch.images)[np.asarray(batch.mask) == 1]]
    assert seen == list(range(count))


@pytest.mark.parametrize(
    ("count", "batches"),
    [(8, 2), (9, 2), (7, 1), (4, 1), (1, 1), (10, 2), (512, 2)],
)
def test_a_sample_is_of_whole_batches_near_the_count_without_an_image_twice(count, batches):
    sample = make_loader().bn_batches(count, seed=0)
    assert sample.shape == (batches, BATCH, 2, 5, 3)
    assert sample.dtype == np.uint8
    seen = indices(sample).ravel()
    assert len(set(seen)) == len(seen) == batches * BATCH


def test_a_sample_is_the_same_at_each_call_and_another_for_another_seed():
    loader = make_loader()
    first = indices(loader.bn_batches(8, seed=3)).ravel().tolist()
    steps_of(loader, 0, 1)
    assert indices(loader.bn_batches(8, seed=3)).ravel().tolist() == first
    assert indices(make_loader().bn_batches(8, seed=3)).ravel().tolist() == first
    assert indices(loader.bn_batches(8, seed=4)).ravel().tolist() != first
    assert first != list(range(8))
