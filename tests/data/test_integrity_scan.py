"""The scan for unreadable images: its results, its cache, and its work in several processes."""

import os
import shutil

import numpy as np
import pytest
from conftest import blobs
from PIL import Image

import flaxresnet as fr
from flaxresnet.data.array_record import write_records
from flaxresnet.data.image_folder import ImageFolderImages
from flaxresnet.data.integrity_scan import drop_unreadable, scan
from flaxresnet.data.lazy_images import LazyImages
from flaxresnet.runtime.process_group import ProcessGroup


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with 12 readable training images and an unreadable one, `dog/7.png`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for label in ("cat", "dog"):
        class_folder = tmp_path / "images" / "train" / label
        class_folder.mkdir(parents=True)
        for i in range(6):
            Image.fromarray(np.full((32, 32, 3), 20 * i, np.uint8)).save(class_folder / f"{i}.png")
    (tmp_path / "images" / "train" / "dog" / "7.png").write_bytes(b"")
    return tmp_path / "images"


def stream(folder, max_corrupt_fraction=0.1, **options):
    return fr.open_dataset(folder, fr.ReadOptions(input="stream", max_corrupt_fraction=max_corrupt_fraction, **options))


def load(folder, max_corrupt_fraction=0.1, **options):
    return fr.open_dataset(folder, fr.ReadOptions(input="memory", max_corrupt_fraction=max_corrupt_fraction, **options))


@pytest.fixture
def scan_calls(monkeypatch):
    """The number of images that each scan reads; `stream` scans the training and the test split."""
    counts = []
    read_errors = LazyImages.read_errors

    def record(self, indices):
        counts.append(len(indices))
        return read_errors(self, indices)

    monkeypatch.setattr(LazyImages, "read_errors", record)
    return counts


def rewrite(path, content=None):
    """Writes a file, by default with its content, and sets its mtime a second later."""
    path.write_bytes(path.read_bytes() if content is None else content)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))


def test_scan_names_unreadable_images(folder, scan_calls):
    with pytest.raises(fr.UserError, match=r"(?s)1 of 13 images .* 0\.077 to skip .*7\.png cannot be read"):
        stream(folder, 0.0)
    splits = stream(folder)
    assert splits.train.labels.tolist() == [0] * 6 + [1] * 6
    assert "skipped 1 unreadable: " in splits.source
    np.testing.assert_array_equal(splits.train.images[:][:, 0, 0, 0], [20 * i for i in (*range(6), *range(6))])
    assert scan_calls == [13, 0, 1, 0]  # the second scan reads the unreadable image only


def test_repaired_image_is_used(folder):
    image = folder / "train" / "dog" / "7.png"
    image.write_bytes(b"x" * 80)
    assert len(stream(folder).train) == 12
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(image)
    assert len(stream(folder, 0.0).train) == 13


def test_added_image_invalidates_cache(folder, scan_calls):
    stream(folder)
    stream(folder)
    Image.fromarray(np.zeros((40, 32, 3), np.uint8)).save(folder / "train" / "cat" / "9.png")
    stream(folder)
    assert scan_calls == [13, 0, 1, 0, 14, 0]


def test_rewritten_image_invalidates_cache(folder, scan_calls):
    image = folder / "train" / "cat" / "2.png"
    stream(folder)
    fingerprint = stream(folder).train.fingerprint()
    rewrite(image)
    assert stream(folder).train.fingerprint() == fingerprint
    rewrite(image, bytes(image.stat().st_size))
    with pytest.raises(fr.UserError, match=r"(?s)2 of 13 images .*2\.png cannot be read"):
        stream(folder)
    assert scan_calls == [13, 0, 1, 0, 13, 0, 13, 0]


@pytest.mark.parametrize("open_images", [load, stream])
def test_fingerprint_covers_file_contents(folder, open_images, tmp_path):
    def fingerprint(path=folder):
        return open_images(path).train.fingerprint()

    files = [folder / "train" / "cat" / name for name in ("2.png", "3.png")]
    contents = [file.read_bytes() for file in files]
    assert len(contents[0]) == len(contents[1])
    original = fingerprint()
    assert fingerprint() == original  # from the cache
    assert fingerprint(shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)) == original
    rewrite(files[0], contents[1])
    changed = fingerprint()
    rewrite(files[1], contents[0])
    assert len({original, changed, fingerprint()}) == 3  # the last one of swapped images
    for file, content in zip(files, contents, strict=True):
        rewrite(file, content)
    assert fingerprint() == original


def test_contents_add_up_over_processes(folder, scan_calls, tmp_path, monkeypatch):
    images = stream(folder).train.images.take(np.arange(12))
    expected = scan(images, "one process").contents
    parts = []
    for index in range(2):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"machine {index}"))
        parts.append(scan(images, "two processes", ProcessGroup(index, 2, lambda value: [value])).contents)
    assert sum(parts) % 2**256 == expected > 2**200


def test_partial_cache_is_ignored(folder, scan_calls):
    """A process that has a cached sum scans again if another one has none."""
    images = stream(folder).train.images.take(np.arange(12))
    scan(images, "shares", ProcessGroup(0, 2, lambda value: [value]))
    scan_calls.clear()

    def gather(value):
        if isinstance(value, list):
            return [value, []]
        return [value, "0x0" if scan_calls else None]

    scan(images, "shares", ProcessGroup(0, 2, gather))
    assert scan_calls == [6]


def test_transient_error_leaves_fingerprint(folder, monkeypatch):
    fingerprint = stream(folder).train.fingerprint()
    os.utime(folder / "train" / "dog" / "1.png", ns=(0, 10**9))
    read_bytes = ImageFolderImages._read_bytes

    def fail(self, index):
        if self.name(index).endswith("dog/1.png"):
            raise fr.UserError("the network is down")
        return read_bytes(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(ImageFolderImages, "_read_bytes", fail)
        assert len(stream(folder, 0.2).train) == 11
    assert stream(folder).train.fingerprint() == fingerprint


def test_rewritten_shard_invalidates_cache(folder, scan_calls, tmp_path):
    (folder / "train" / "dog" / "7.png").unlink()
    records = tmp_path / "records"
    records.mkdir()
    list(write_records(records, stream(folder), 2))
    scan_calls.clear()
    fingerprint = stream(records).train.fingerprint()
    shard = records / "train-00001-of-00002.array_record"
    rewrite(shard, shard.read_bytes().replace(b"PNG", b"???"))
    with pytest.raises(fr.UserError, match=r"(?s)6 of 12 images .*train/dog/0\.png\) cannot be read"):
        stream(records)
    rewrite(shard, shard.read_bytes().replace(b"???", b"PNG"))
    assert stream(records).train.fingerprint() == fingerprint
    assert scan_calls == [12, 0] * 3


def test_rescan_ignores_cache(folder, scan_calls):
    image = folder / "train" / "cat" / "2.png"
    stream(folder)
    status = image.stat()
    image.write_bytes(bytes(status.st_size))
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))  # as if the disk had lost the content
    assert "skipped 1 " in stream(folder, 0.5).source
    assert "skipped 2 " in stream(folder, 0.5, rescan=True).source
    assert "skipped 2 " in stream(folder, 0.5).source
    assert scan_calls == [13, 0, 1, 0, 13, 0, 2, 0]


def test_unusable_cache_is_ignored(folder, scan_calls, tmp_path, monkeypatch):
    stream(folder)
    for file in (tmp_path / "cache").rglob("*.json"):
        file.write_text("[[")
    assert len(stream(folder).train) == 12
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(stream(folder).train) == 12
    assert scan_calls == [13, 0] * 3


def test_memory_equals_stream(folder):
    in_memory = load(folder).train
    streamed = stream(folder).train
    np.testing.assert_array_equal(in_memory.images, streamed.images[:])
    assert in_memory.fingerprint() == streamed.fingerprint()


def test_processes_share_the_scan(folder, scan_calls):
    for name in ("0.png", "3.png"):
        (folder / "train" / "cat" / name).write_bytes(b"x")
    images = stream(folder, 0.5).train.images.take(np.arange(10))
    own_errors = []

    def gather(value):
        if not isinstance(value, list):
            return [value] * 3
        own_errors.append(value)
        return [[[1, "a"]], value, [[5, "b"], [6, "c"]]]

    scan_calls.clear()
    for _ in range(2):
        assert scan(images, "images", ProcessGroup(1, 3, gather)).errors == {1: "a", 5: "b", 6: "c"}
    assert own_errors == [[], []]
    assert scan_calls == [3, 2]  # indices 4, 5 and 6, then the unreadable ones of them


@pytest.mark.parametrize(("memories", "streamed"), [([2**40, 2**40], False), ([2**40, 4], True), ([None, None], False)])
def test_smallest_machine_decides_streaming(folder, memories, streamed):
    def gather(value):
        return memories if value is None or isinstance(value, int) else [value, value]

    options = fr.ReadOptions(max_corrupt_fraction=0.1, processes=ProcessGroup(0, 2, gather))
    assert fr.open_dataset(folder, options).train.is_streamed == streamed


def test_error_of_another_process_counts(folder):
    errors_of_other = iter([[[0, "not there"]], []])  # training, test

    def gather(value):
        return [value, next(errors_of_other)] if isinstance(value, list) else [value, value]

    train = load(folder, 0.3, processes=ProcessGroup(0, 2, gather)).train
    assert train.labels.tolist() == [0] * 5 + [1] * 6
    (folder / "train" / "cat" / "0.png").write_bytes(b"")
    assert load(folder, 0.3).train.contents == train.contents


def test_images_in_memory_are_rejected():
    with pytest.raises(TypeError, match="images in memory are not scanned; give LazyImages, not ndarray"):
        drop_unreadable("data", [blobs(3, 1)], fr.ReadOptions())
