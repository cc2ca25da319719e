"""Pictures that cannot be read are found before training, and looked for only once."""

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
from flaxresnet.data.lazy_images import ContentHash, LazyImages
from flaxresnet.runtime.process_group import ProcessGroup


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for label in ("cat", "dog"):
        (folder := tmp_path / "pictures" / "train" / label).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(np.full((32, 32, 3), 20 * i, np.uint8)).save(folder / f"{i}.png")
    (tmp_path / "pictures" / "train" / "dog" / "7.png").write_bytes(b"")
    return tmp_path / "pictures"


def stream(folder, max_corrupt_fraction=0.1, **options):
    return fr.open_dataset(folder, fr.ReadOptions(input="stream", max_corrupt_fraction=max_corrupt_fraction, **options))


@pytest.fixture
def looks(monkeypatch):
    """How many pictures each search for unreadable ones reads."""
    seen, search = [], LazyImages.read_errors

    def unreadable(self, places=None):
        seen.append(len(self) if places is None else len(places))
        return search(self, places)

    monkeypatch.setattr(LazyImages, "read_errors", unreadable)
    return seen


def test_streamed_pictures_are_looked_through_before_and_named(pictures, looks):
    with pytest.raises(fr.UserError, match=r"1 of 13 images in .* give --max-corrupt-fraction .*7\.png cannot be read"):
        stream(pictures, 0.0)
    splits = stream(pictures)
    assert len(splits.train) == len(splits.train.labels) == 12
    assert splits.train.labels.tolist() == [0] * 6 + [1] * 6
    assert "skipped 1 unreadable: " in splits.source
    np.testing.assert_array_equal(splits.train.images[:][:, 0, 0, 0], [20 * i for i in (*range(6), *range(6))][:12])
    assert looks == [13, 0, 1, 0]  # training and test, twice: the second time the bad one alone


def test_what_was_unreadable_and_is_mended_counts_again(pictures):
    bad = pictures / "train" / "dog" / "7.png"
    bad.write_bytes(b"x" * 80)
    assert len(stream(pictures).train) == 12
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(bad)
    assert len(stream(pictures, 0.0).train) == 13


def test_another_picture_makes_all_be_looked_through(pictures, looks):
    for _ in range(2):
        stream(pictures)
    Image.fromarray(np.zeros((40, 32, 3), np.uint8)).save(pictures / "train" / "cat" / "9.png")
    stream(pictures)
    assert looks == [13, 0, 1, 0, 14, 0]


def changed_later(path, content=None):
    """Writes a file of the same size, a second later by the clock."""
    path.write_bytes(path.read_bytes() if content is None else content)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))


def test_a_picture_of_the_same_size_that_was_written_later_is_looked_at(pictures, looks):
    picture = pictures / "train" / "cat" / "2.png"
    for _ in range(2):
        before = stream(pictures).train.fingerprint()
    changed_later(picture)
    assert stream(pictures).train.fingerprint() == before
    changed_later(picture, bytes(picture.stat().st_size))
    with pytest.raises(fr.UserError, match=r"2 of 13 images in .*2\.png cannot be read"):
        stream(pictures)
    assert looks == [13, 0, 1, 0, 13, 0, 13, 0]


@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_other_bytes_of_the_same_size_are_other_data(pictures, mode, tmp_path):
    def fingerprint(folder=pictures):
        return fr.open_dataset(folder, fr.ReadOptions(input=mode, max_corrupt_fraction=0.1)).train.fingerprint()

    one, other = (pictures / "train" / "cat" / name for name in ("2.png", "3.png"))
    before, contents = fingerprint(), [one.read_bytes(), other.read_bytes()]
    assert len(contents[0]) == len(contents[1])
    assert before == fingerprint()  # whether they are read or known
    assert before == fingerprint(shutil.copytree(pictures, tmp_path / "copy", copy_function=shutil.copyfile))
    changed_later(one, contents[1])
    changed = fingerprint()
    changed_later(other, contents[0])
    assert len({before, changed, fingerprint()}) == 3  # a swap too is a change
    for path, content in zip((one, other), contents, strict=True):
        changed_later(path, content)
    assert fingerprint() == before


def test_contents_add_up_over_processes_and_over_what_is_mended(pictures, looks, tmp_path, monkeypatch):
    stored = stream(pictures).train.images.take(np.arange(12))
    whole = scan(stored, "all of them")
    said, parts = [], []

    def gather(mine):
        said.append(mine)
        return [mine]

    for index in range(2):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"of machine {index}"))
        parts.append(scan(stored, "shares", ProcessGroup(index, 2, gather)).contents)
    assert sum(parts) % ContentHash.MODULUS == whole.contents
    looks.clear()
    knowing = ProcessGroup(0, 2, lambda mine: [mine, None if isinstance(mine, str) else mine])
    with pytest.raises(TypeError):  # the other has no share of a sum
        scan(stored, "shares", knowing)
    assert looks == [6]  # for the other does not know


def test_a_fault_of_the_network_changes_nothing_once_it_is_over(pictures, monkeypatch):
    whole = stream(pictures).train.fingerprint()
    picture, real = pictures / "train" / "dog" / "1.png", ImageFolderImages._read_bytes
    os.utime(picture, ns=(0, 10**9))

    def bytes_of(self, place):
        if self.name(place).endswith("dog/1.png"):
            raise fr.UserError("the network is down")
        return real(self, place)

    with monkeypatch.context() as patch:
        patch.setattr(ImageFolderImages, "_read_bytes", bytes_of)
        assert len(stream(pictures, 0.2).train) == 11
    assert stream(pictures).train.fingerprint() == whole


def test_shards_that_were_written_later_are_looked_through(pictures, looks, tmp_path):
    (pictures / "train" / "dog" / "7.png").unlink()
    (folder := tmp_path / "records").mkdir()
    list(write_records(folder, stream(pictures, 0.0), 2))
    looks.clear()
    before = stream(folder, 0.0).train.fingerprint()
    shard = folder / "train-00001-of-00002.array_record"
    changed_later(shard, shard.read_bytes().replace(b"PNG", b"???"))
    with pytest.raises(fr.UserError, match=r"6 of 12 images in .*train/dog/0\.png\) cannot be read"):
        stream(folder, 0.0)
    changed_later(shard, shard.read_bytes().replace(b"???", b"PNG"))
    assert stream(folder, 0.0).train.fingerprint() == before
    assert looks == [12, 0] * 3


def test_all_is_looked_through_again_where_that_is_asked_for(pictures, looks):
    picture = pictures / "train" / "cat" / "2.png"
    stream(pictures)
    about = picture.stat()
    picture.write_bytes(bytes(about.st_size))  # as a disk that loses what is on it, which changes no times
    os.utime(picture, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert "skipped 1 " in stream(pictures, 0.5).source
    assert "skipped 2 " in stream(pictures, 0.5, rescan=True).source
    assert "skipped 2 " in stream(pictures, 0.5).source  # and known from then on
    assert looks == [13, 0, 1, 0, 13, 0, 2, 0]


def test_a_cache_that_is_damaged_or_cannot_be_written_costs_time_alone(pictures, looks, tmp_path, monkeypatch):
    stream(pictures)
    for file in (tmp_path / "cache").rglob("*.json"):
        file.write_text("[[")
    assert len(stream(pictures).train) == 12
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(stream(pictures).train) == 12
    assert looks == [13, 0] * 3


def test_in_memory_the_same_pictures_are_left_out(pictures):
    held, streamed = (
        fr.open_dataset(pictures, fr.ReadOptions(input=mode, max_corrupt_fraction=0.1)).train
        for mode in ("memory", "stream")
    )
    np.testing.assert_array_equal(held.images, streamed.images[:])
    assert held.fingerprint() == streamed.fingerprint()


def test_many_processes_look_through_a_share_each_and_know_what_all_found(pictures, looks, tmp_path):
    for broken in (
        tmp_path / "pictures" / "train" / "cat" / "0.png",
        tmp_path / "pictures" / "train" / "cat" / "3.png",
    ):
        broken.write_bytes(b"x")
    stored = stream(pictures, 0.5).train.images
    stored = stored.take(np.arange(10))
    told = [[[1, "one"]], [[5, "five"], [6, "six"]]]  # by two others; this one is in their middle
    asked = []

    def gather(mine):
        if not isinstance(mine, list):
            return [mine] * 3
        asked.append(mine)
        return [told[0], mine, told[1]]

    looks.clear()
    others = ProcessGroup(1, 3, gather)
    for _ in range(2):
        assert scan(stored, "these", others).errors == {1: "one", 5: "five", 6: "six"}
    assert asked == [[], []]
    assert looks == [3, 2]  # places 4, 5 and 6; then those of them that somebody could not read
    assert [others.local_indices(10).tolist() for others in (ProcessGroup(i, 3) for i in range(3))] == [
        [0, 1, 2, 3],
        [4, 5, 6],
        [7, 8, 9],
    ]


@pytest.mark.parametrize(("memories", "streamed"), [([2**40, 2**40], False), ([2**40, 4], True), ([None, None], False)])
def test_the_machine_with_the_least_memory_decides_for_all(pictures, memories, streamed):
    def gather(mine):
        return memories if mine is None or isinstance(mine, int) else [mine, mine]

    splits = fr.open_dataset(pictures, fr.ReadOptions(max_corrupt_fraction=0.1, processes=ProcessGroup(0, 2, gather)))
    assert splits.train.is_streamed == streamed


def test_what_another_process_cannot_read_is_left_out_here_too(pictures):
    of_others = iter([[[0, "not there"]], []])  # training, test

    def gather(mine):
        return [mine, next(of_others)] if isinstance(mine, list) else [mine, mine]

    train = fr.open_dataset(
        pictures, fr.ReadOptions(max_corrupt_fraction=0.3, input="memory", processes=ProcessGroup(0, 2, gather))
    ).train
    assert train.labels.tolist() == [0] * 5 + [1] * 6
    (pictures / "train" / "cat" / "0.png").write_bytes(b"")  # nor this one
    assert (
        fr.open_dataset(pictures, fr.ReadOptions(max_corrupt_fraction=0.3, input="memory")).train.contents
        == train.contents
    )


def test_images_in_memory_are_not_looked_through():
    with pytest.raises(TypeError, match="images in memory are not scanned"):
        drop_unreadable("here", [blobs(3, 1)], fr.ReadOptions())
