"""Streamed batches equal those from device memory, for threads and worker processes, from any step on."""

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

BATCH = 4
SEED = 7
SHARDING = NamedSharding(Mesh(np.array(jax.devices()[:1]), ("data",)), PartitionSpec("data"))
REPLICATED = NamedSharding(SHARDING.mesh, PartitionSpec())


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    """A folder of 22 training and 6 test images of noise, 40×50, in two classes."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 11), ("test", 3)):
        for label in ("cat", "dog"):
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (40, 50, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def lazy_dataset(image_folder):
    return fr.open_dataset(image_folder, fr.ReadOptions(image_size=(32, 36), input="stream")).train


@pytest.fixture(scope="module")
def memory_dataset(image_folder):
    return fr.open_dataset(image_folder, fr.ReadOptions(image_size=(32, 36), input="memory")).train


@pytest.fixture(scope="module")
def device_loader(memory_dataset):
    return Loader(DeviceSource(memory_dataset, BATCH, REPLICATED, SHARDING), memory_dataset, BATCH, SHARDING)


def stream_loader(dataset, workers=0, **options):
    return Loader(StreamSource(dataset, BATCH, SHARDING, workers, **options), dataset, BATCH, SHARDING)


def assert_equal(batch, expected):
    for name in ("images", "labels", "mask"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(expected, name))
        assert getattr(batch, name).dtype == getattr(expected, name).dtype


PROCESSES = [pytest.param(count, marks=pytest.mark.parity) for count in (1, 2)]


@pytest.mark.parametrize("workers", [0, *PROCESSES])
def test_train_batches_equal_device_batches(lazy_dataset, device_loader, workers):
    batches = list(islice(stream_loader(lazy_dataset, workers).train(SEED), 12))  # more than two epochs
    for batch, expected in zip(batches, device_loader.train(SEED), strict=False):
        assert_equal(batch, expected)
    assert not np.array_equal(batches[0].images, batches[5].images)


def test_train_starts_at_any_step(lazy_dataset):
    loader = stream_loader(lazy_dataset)
    batches = list(islice(loader.train(SEED), 12))
    for first in (1, 5, 7):
        for batch, expected in zip(loader.train(SEED, first), batches[first:], strict=False):
            assert_equal(batch, expected)


def test_eval_batches_equal_device_batches(lazy_dataset, device_loader):
    loader = stream_loader(lazy_dataset)
    batches = list(loader.eval_batches())
    assert len(batches) == 6
    for batch, expected in zip(batches, device_loader.eval_batches(), strict=True):
        assert_equal(batch, expected)
    np.testing.assert_array_equal(loader.bn_batches(9, SEED), device_loader.bn_batches(9, SEED))


def test_shapes_match_batches(lazy_dataset):
    loader = stream_loader(lazy_dataset)
    arrays = jax.tree.leaves(next(loader.train(SEED)))
    for shape, array in zip(jax.tree.leaves(loader.shapes()), arrays, strict=True):
        assert (shape.shape, shape.dtype, shape.sharding) == (array.shape, array.dtype, array.sharding)


def test_crops_depend_on_step(lazy_dataset):
    loader = stream_loader(lazy_dataset, crop_min_area=0.3)
    uncropped = stream_loader(lazy_dataset)
    batches = list(islice(loader.train(SEED), 8))
    assert_equal(batches[6], next(loader.train(SEED, 6)))
    full_images = next(uncropped.train(SEED))
    assert not np.array_equal(batches[0].images, full_images.images)
    np.testing.assert_array_equal(batches[0].labels, full_images.labels)
    assert_equal(next(loader.eval_batches()), next(uncropped.eval_batches()))


@pytest.mark.parametrize("size", [(40, 50), (30, 300), (500, 20)])
def test_random_crop_distribution(size):
    height, width = size
    crop = RandomCrop(0.08)
    areas = []
    aspects = []
    for seed in range(400):
        left, upper, right, lower = crop(height, width, np.random.default_rng(seed))
        assert 0 <= left < right <= width + 1e-9
        assert 0 <= upper < lower <= height + 1e-9
        areas.append((right - left) * (lower - upper) / (height * width))
        aspects.append((right - left) / (lower - upper))
    assert min(areas) > 0.0799 * min(1, 3 * min(size) / max(size))
    if size == (40, 50):
        assert max(areas) <= 1
        assert 0.5 < np.mean(areas) < 0.58  # uniform from 0.08 to 1
        assert min(aspects) >= 0.749
        assert max(aspects) <= 1.334


def test_load_crops_the_box(image_folder):
    load = Preprocessing(20, 25).load
    image = np.asarray(Image.open(image_folder / "train" / "cat" / "0.png"))
    part = load(image, lambda height, width: (0, 0, width / 2, height / 2))
    np.testing.assert_array_equal(part, image[:20, :25])
    random_crop = partial(RandomCrop(0.5), rng=np.random.default_rng(3))
    assert load(image, random_crop).shape == (20, 25, 3)


@pytest.mark.parametrize("workers", [0, PROCESSES[0]])
def test_missing_file_is_named(lazy_dataset, workers, tmp_path):
    images = lazy_dataset.images.take(np.arange(len(lazy_dataset)))
    images.location = str(tmp_path)
    dataset = fr.Dataset(images, lazy_dataset.labels, lazy_dataset.class_names)
    with pytest.raises(fr.UserError, match=r"\.png does not exist"):
        list(islice(stream_loader(dataset, workers).train(SEED), 3))


def test_single_process_reads_all_rows():
    assert local_rows(SHARDING, 6).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("cores", "workers"), [(1, 0), (2, 0), (3, 2), (8, 7), (96, 16)])
def test_workers_leave_a_core(cores, workers, monkeypatch):
    monkeypatch.setattr("flaxresnet.data.streaming.available_cpus", lambda: cores)
    assert default_num_workers() == workers


@pytest.mark.parametrize(("spare", "fits"), [(0, True), (-1, False)])
def test_dataset_fits_quarter_of_device(memory_dataset, monkeypatch, spare, fits):
    assert fits_devices(memory_dataset)  # a CPU does not report its memory
    limit = 4 * memory_dataset.images.nbytes + spare
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": limit})
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert fits_devices(memory_dataset) == fits


def test_images_in_memory_are_streamed(memory_dataset, device_loader):
    loader = stream_loader(memory_dataset)
    assert_equal(next(loader.train(SEED, 3)), next(device_loader.train(SEED, 3)))
    assert_equal(next(loader.eval_batches()), next(device_loader.eval_batches()))
