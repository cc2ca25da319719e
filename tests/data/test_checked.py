"""Pictures that cannot be read are found before training, and looked for only once."""

import numpy as np
import pytest
from PIL import Image

import flaxresnet as fr
from flaxresnet.data.stored import StoredImages


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for label in ("cat", "dog"):
        (folder := tmp_path / "pictures" / "train" / label).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(np.full((32, 32, 3), 20 * i, np.uint8)).save(folder / f"{i}.png")
    (tmp_path / "pictures" / "train" / "dog" / "7.png").write_bytes(b"")
    return tmp_path / "pictures"


@pytest.fixture
def looks(monkeypatch):
    """How many pictures each search for unreadable ones reads."""
    seen, search = [], StoredImages.unreadable

    def unreadable(self, places=None):
        seen.append(len(self) if places is None else len(places))
        return search(self, places)

    monkeypatch.setattr(StoredImages, "unreadable", unreadable)
    return seen


def test_streamed_pictures_are_looked_through_before_and_named(pictures, looks):
    with pytest.raises(fr.UserError, match=r"1 of 13 pictures in .* give --skip-bad .*7\.png cannot be read"):
        fr.open_dataset(pictures, input="stream")
    splits = fr.open_dataset(pictures, input="stream", skip_bad=0.1)
    assert len(splits.train) == len(splits.train.labels) == 12
    assert splits.train.labels.tolist() == [0] * 6 + [1] * 6
    assert "left out 1 unreadable: " in splits.source
    np.testing.assert_array_equal(splits.train.images[:][:, 0, 0, 0], [20 * i for i in (*range(6), *range(6))][:12])
    assert looks == [13, 0, 1, 0]  # training and test, twice: the second time the bad one alone


def test_what_was_unreadable_and_is_mended_counts_again(pictures):
    bad = pictures / "train" / "dog" / "7.png"
    bad.write_bytes(b"x" * 80)
    assert len(fr.open_dataset(pictures, input="stream", skip_bad=0.1).train) == 12
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(bad)
    assert len(fr.open_dataset(pictures, input="stream").train) == 13


def test_another_picture_makes_all_be_looked_through(pictures, looks):
    for _ in range(2):
        fr.open_dataset(pictures, input="stream", skip_bad=0.1)
    Image.fromarray(np.zeros((40, 32, 3), np.uint8)).save(pictures / "train" / "cat" / "9.png")
    fr.open_dataset(pictures, input="stream", skip_bad=0.1)
    assert looks == [13, 0, 1, 0, 14, 0]


def test_a_cache_that_is_damaged_or_cannot_be_written_costs_time_alone(pictures, looks, tmp_path, monkeypatch):
    fr.open_dataset(pictures, input="stream", skip_bad=0.1)
    for file in (tmp_path / "cache").rglob("*.json"):
        file.write_text("[[")
    assert len(fr.open_dataset(pictures, input="stream", skip_bad=0.1).train) == 12
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(fr.open_dataset(pictures, input="stream", skip_bad=0.1).train) == 12
    assert looks == [13, 0] * 3


def test_in_memory_the_same_pictures_are_left_out(pictures):
    held, streamed = (fr.open_dataset(pictures, input=mode, skip_bad=0.1).train for mode in ("memory", "stream"))
    np.testing.assert_array_equal(held.images, streamed.images[:])
    assert held.fingerprint() == streamed.fingerprint()
