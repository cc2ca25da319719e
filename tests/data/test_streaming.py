"""Streamed batches: those of the device, whoever reads them and wherever reading begins."""

from functools import partial
from itertools import islice
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

import flaxresnet as fr
from flaxresnet.data.loader import DeviceSource, Loader, fits_devices
from flaxresnet.data.preprocess import Preprocessing, RandomCrop
from flaxresnet.data.streaming import StreamSource, default_num_workers, local_rows

BATCH, SEED = 4, 7
SPLIT = NamedSharding(Mesh(np.array(jax.devices()[:1]), ("data",)), PartitionSpec("data"))
WHOLE = NamedSharding(SPLIT.mesh, PartitionSpec())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of 22 training and 6 test pictures of noise, 40×50, two classes."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, count in (("train", 11), ("test", 3)):
        for label in ("cat", "dog"):
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (40, 50, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def stored(pictures):
    return fr.open_dataset(pictures, fr.ReadOptions(image_size=(32, 36), input="stream")).train


@pytest.fixture(scope="module")
def on_device(pictures):
    dataset = fr.open_dataset(pictures, fr.ReadOptions(image_size=(32, 36), input="memory")).train
    return Loader(DeviceSource(dataset, BATCH, WHOLE, SPLIT), dataset, BATCH, SPLIT)


def streamed(stored, workers=0, **options):
    return Loader(StreamSource(stored, BATCH, SPLIT, workers, **options), stored, BATCH, SPLIT)


def assert_same(mine, theirs):
    for name in ("images", "labels", "mask"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
        assert getattr(mine, name).dtype == getattr(theirs, name).dtype


PROCESSES = [pytest.param(count, marks=pytest.mark.parity) for count in (1, 2)]


@pytest.mark.parametrize("workers", [0, *PROCESSES])
def test_steps_are_those_of_the_device_by_threads_and_by_any_number_of_processes(stored, on_device, workers):
    mine = list(islice(streamed(stored, workers).train(SEED), 12))  # two epochs and a bit
    for batch, expected in zip(mine, on_device.train(SEED), strict=False):
        assert_same(batch, expected)
    assert not np.array_equal(mine[0].images, mine[5].images)


def test_reading_begins_at_any_step(stored):
    loader = streamed(stored)
    whole = list(islice(loader.train(SEED), 12))
    for first in (1, 5, 7):
        for batch, expected in zip(loader.train(SEED, first), whole[first:], strict=False):
            assert_same(batch, expected)


def test_evaluation_and_the_sample_are_those_of_the_device(stored, on_device):
    loader = streamed(stored)
    mine, theirs = list(loader.eval_batches()), list(on_device.eval_batches())
    assert len(mine) == len(theirs) == 6
    for batch, expected in zip(mine, theirs, strict=True):
        assert_same(batch, expected)
    np.testing.assert_array_equal(loader.bn_batches(9, SEED), on_device.bn_batches(9, SEED))


def test_shapes_are_those_of_the_batches(stored):
    loader = streamed(stored)
    for shape, array in zip(jax.tree.leaves(loader.shapes()), jax.tree.leaves(next(loader.train(SEED))), strict=True):
        assert (shape.shape, shape.dtype, shape.sharding) == (array.shape, array.dtype, array.sharding)


def test_crops_are_taken_where_pictures_are_decoded_and_depend_on_the_step_alone(stored):
    loader, plain = streamed(stored, crop_min_area=0.3), streamed(stored)
    first = list(islice(loader.train(SEED), 8))
    assert_same(first[6], next(loader.train(SEED, 6)))
    assert not np.array_equal(first[0].images, next(plain.train(SEED)).images)
    np.testing.assert_array_equal(first[0].labels, next(plain.train(SEED)).labels)
    epochs = [batch for batch in first if np.array_equal(batch.labels, first[0].labels)]
    assert all(not np.array_equal(batch.images, first[0].images) for batch in epochs[1:])
    assert_same(next(loader.eval_batches()), next(plain.eval_batches()))  # evaluation sees whole pictures


@pytest.mark.parametrize("size", [(40, 50), (30, 300), (500, 20)])
def test_a_random_crop_lies_within_the_picture_and_has_the_area_and_the_proportion_asked_for(size):
    height, width = size
    crop, areas, aspects = RandomCrop(0.08), [], []
    for seed in range(400):
        left, upper, right, lower = crop(height, width, np.random.default_rng(seed))
        assert 0 <= left < right <= width + 1e-9
        assert 0 <= upper < lower <= height + 1e-9
        areas.append((right - left) * (lower - upper) / (height * width))
        aspects.append((right - left) / (lower - upper))
    assert min(areas) > 0.0799 * min(1, 3 * min(size) / max(size))
    if size == (40, 50):
        assert max(areas) <= 1
        assert 0.5 < np.mean(areas) < 0.58  # evenly from 0.08 to 1
        assert min(aspects) >= 0.749
        assert max(aspects) <= 1.334


def test_a_crop_is_that_part_of_the_picture(pictures):
    load = Preprocessing(20, 25).load
    photo = np.asarray(Image.open(pictures / "train" / "cat" / "0.png"))
    part = load(photo, lambda height, width: (0, 0, width / 2, height / 2))
    np.testing.assert_array_equal(part, photo[:20, :25])
    drawn = partial(RandomCrop(0.5), rng=np.random.default_rng(3))
    assert load(photo, drawn).shape == (20, 25, 3)


@pytest.mark.parametrize("workers", [0, PROCESSES[0]])
def test_a_picture_that_is_gone_ends_it_with_its_name(stored, workers, monkeypatch, tmp_path):
    gone = fr.Dataset(stored.images.take(np.arange(len(stored))), stored.labels, stored.class_names)
    gone.images.location = str(tmp_path)
    with pytest.raises(fr.UserError, match=r"\.png does not exist"):
        list(islice(streamed(gone, workers).train(SEED), 3))


def test_rows_of_this_process_are_all_rows_where_it_is_the_only_one():
    assert local_rows(SPLIT, 6).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("available_cpus", "workers"), [(1, 0), (2, 0), (3, 2), (8, 7), (96, 16)])
def test_workers_leave_a_core_to_training(available_cpus, workers, monkeypatch):
    monkeypatch.setattr("flaxresnet.data.streaming.available_cpus", lambda: available_cpus)
    assert default_num_workers() == workers


def test_images_in_memory_that_a_device_has_no_room_for_go_over_batch_by_batch(pictures, on_device, monkeypatch):
    dataset = fr.open_dataset(pictures, fr.ReadOptions(image_size=(32, 36), input="memory")).train
    assert fits_devices(dataset)  # on a CPU, which is not asked
    for limit, fits in ((4 * dataset.images.nbytes, True), (4 * dataset.images.nbytes - 1, False)):
        device = SimpleNamespace(memory_stats=lambda limit=limit: {"bytes_limit": limit})
        monkeypatch.setattr(jax, "local_devices", lambda device=device: [device])
        assert fits_devices(dataset) == fits
    monkeypatch.undo()
    loader = Loader(StreamSource(dataset, BATCH, SPLIT, workers=0), dataset, BATCH, SPLIT)
    assert_same(next(loader.train(SEED, 3)), next(on_device.train(SEED, 3)))
    assert_same(next(loader.eval_batches()), next(on_device.eval_batches()))
