"""ArrayRecord folders: what goes in comes out, and what is said of damaged ones."""

import io
import json
import os

import numpy as np
import pytest
from conftest import blobs
from PIL import Image

import flaxresnet as fr
from flaxresnet.cli import make_data, parser
from flaxresnet.data.array_record import write_records
from flaxresnet.data.dataset import Splits


def convert(*argv):
    return make_data.main(parser.parse(make_data.Arguments, [str(a) for a in argv], prog="make-data"))


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("test", 2)):
        for label in ("cat", "dog"):
            (folder := tmp_path / "pictures" / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (40 + i, 50, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.jpg")
    return tmp_path / "pictures"


@pytest.fixture
def records(pictures, tmp_path, capsys):
    assert convert(tmp_path / "records", "--source", pictures, "--to", "arrayrecord", "--shards", 3) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path / 'records'}: 10 train images in 3 shards",
        f"{tmp_path / 'records'}: 4 test images in 3 shards",
    ]
    return tmp_path / "records"


@pytest.mark.parametrize("mode", ["memory", "stream"])
@pytest.mark.parametrize("size", [(32, 32), (48, 36)])
def test_pictures_come_out_as_from_their_folder(pictures, records, mode, size):
    by_middle, others_by_middle, whole = (
        fr.open_dataset(
            path, fr.ReadOptions(image_size=size, input=mode, crop_pct=0.5, eval_preprocessing=eval_preprocessing)
        ).train.images[:]
        for path, eval_preprocessing in ((records, True), (pictures, True), (records, False))
    )
    np.testing.assert_array_equal(by_middle, others_by_middle)
    mine, theirs = (fr.open_dataset(path, fr.ReadOptions(image_size=size, input=mode)) for path in (records, pictures))
    np.testing.assert_array_equal(whole, mine.train.images[:])
    assert not np.array_equal(by_middle, whole)
    for split in ("train", "test"):
        ours, others = getattr(mine, split), getattr(theirs, split)
        assert ours.is_streamed == (mode == "stream")
        np.testing.assert_array_equal(ours.images[:], others.images[:])
        np.testing.assert_array_equal(ours.labels, others.labels)
        assert ours.class_names == others.class_names
    assert mine.source == f"{records} (ArrayRecord)"
    assert mine.path == str(records)


def test_images_of_one_size_keep_it(tmp_path):
    splits = Splits(train=blobs(20, seed=1), test=blobs(6, seed=2), source="")
    (folder := tmp_path / "records").mkdir()
    list(write_records(folder, splits, 2))
    found = fr.open_dataset(folder, fr.ReadOptions(image_size=(64, 64)))
    np.testing.assert_array_equal(found.train.images, splits.train.images)
    np.testing.assert_array_equal(found.test.labels, splits.test.labels)
    assert found.train.class_names == splits.train.class_names


def test_records_go_back_into_hdf5(records, tmp_path):
    convert(tmp_path / "h5", "--source", records, "--image-size", 40)
    mine, theirs = fr.open_dataset(tmp_path / "h5"), fr.open_dataset(records, fr.ReadOptions(image_size=(40, 40)))
    np.testing.assert_array_equal(mine.train.images, theirs.train.images)
    np.testing.assert_array_equal(mine.test.labels, theirs.test.labels)


def test_what_is_there_is_not_overwritten(records, pictures):
    with pytest.raises(fr.UserError, match=r"index\.json exists and is not overwritten; move it away"):
        convert(records, "--source", pictures, "--to", "arrayrecord")


def test_fingerprints_do_not_depend_on_streaming_but_on_the_data(records, pictures, tmp_path):
    streamed, held = (fr.open_dataset(records, fr.ReadOptions(input=mode)).train for mode in ("stream", "memory"))
    assert streamed.fingerprint() == held.fingerprint()
    (pictures / "train" / "cat" / "0.jpg").unlink()
    convert(tmp_path / "fewer", "--source", pictures, "--to", "arrayrecord")
    assert fr.open_dataset(tmp_path / "fewer").train.fingerprint() != held.fingerprint()


def edit(records, **changes):
    index = json.loads((records / "index.json").read_text())
    (records / "index.json").write_text(json.dumps(index | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "has format 2, but this version reads up to 1"),
        ({"shards": {"train": ["../x.array_record"]}}, r"names '\.\./x\.array_record', which is not a file beside it"),
        ({"image_size": [0, 3]}, r"is damaged \(ValueError: image_size is \(0, 3\)\); make it again"),
        ({"image_size": [60_000, 60_000]}, r"is damaged \(ValueError: image_size is \(60000, 60000\)\); make it again"),
        ({"class_names": ["cat"]}, r"is damaged \(ValueError: train-labels\.npy holds int32 \(10,\), not a class for"),
        ({"class_names": 3}, "is damaged"),
    ],
    ids=str,
)
def test_a_damaged_index_is_a_sentence(records, changes, message):
    edit(records, **changes)
    with pytest.raises(fr.UserError, match=message):
        fr.open_dataset(records)


def test_labels_that_are_too_few_are_a_sentence(records):
    np.save(records / "train-labels.npy", np.zeros(4, np.int32))
    with pytest.raises(fr.UserError, match="10 train images, but 4 labels"):
        fr.open_dataset(records)


def declaring(shape):
    """A file of labels that has none of those it says it has."""
    np.lib.format.write_array_header_1_0(file := io.BytesIO(), {"descr": "<i4", "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "train-labels.npy cannot be read, EOFError: "),
        (b"PK\x03\x04 no archive", "train-labels.npy cannot be read, BadZipFile: "),
        (b"no labels", "train-labels.npy cannot be read, ValueError: "),
        (declaring((2**50,)), "train-labels.npy cannot be read, MemoryError: "),
        (declaring((2**40, 2**40)), "train-labels.npy cannot be read, "),
    ],
    ids=["empty", "archive", "text", "too many", "far too many"],
)
def test_labels_that_cannot_be_read_are_a_sentence(records, content, message):
    (records / "train-labels.npy").write_bytes(content)
    with pytest.raises(fr.UserError, match=rf"is damaged \(ValueError: {message}.+\); make it again"):
        fr.open_dataset(records)


@pytest.mark.parametrize("kept", [0, 10, 0.5])
def test_a_shard_that_is_cut_off_is_a_sentence(records, kept):
    shard = records / "train-00001-of-00003.array_record"
    content = shard.read_bytes()
    shard.write_bytes(content[: kept if isinstance(kept, int) else int(len(content) * kept)])
    with pytest.raises(fr.UserError, match=r"records is damaged \(.+\); make it again") as caught:
        fr.open_dataset(records)
    assert "\n" not in str(caught.value)


def damaged_at(records, pictures, name):
    """Overwrites, in the shards, the beginning of the picture that this file had."""
    content = (pictures / name).read_bytes()
    (shard,) = (path for path in records.glob("*.array_record") if content in path.read_bytes())
    shard.write_bytes(shard.read_bytes().replace(content[:200], b"x" * 200))


@pytest.mark.parametrize("again", [False, True])
def test_a_damaged_record_is_called_as_its_file_was(records, pictures, tmp_path, monkeypatch, again):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    damaged, split = records, f"record 8 of the train split of {records}"
    if again:  # records of records
        convert(tmp_path / "more", "--source", records, "--to", "arrayrecord")
        damaged, split = tmp_path / "more", f"record 8 of the train split of {tmp_path / 'more'}"
    damaged_at(damaged, pictures, "train/dog/3.jpg")
    for mode in ("memory", "stream"):
        with pytest.raises(fr.UserError) as caught:
            fr.open_dataset(damaged, fr.ReadOptions(input=mode))
        assert f"{split} (train/dog/3.jpg) cannot be read" in str(caught.value)


@pytest.mark.parametrize("names", [None, "5", '{"8": "x"}', '["0.jpg"]', "[" * 100_000])
def test_without_a_list_of_names_records_have_numbers(records, pictures, tmp_path, monkeypatch, names):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (records / "train-names.json").unlink()  # as in folders of before
    if names:
        (records / "train-names.json").write_text(names)
    damaged_at(records, pictures, "train/dog/3.jpg")
    with pytest.raises(fr.UserError, match=r"record 8 of the train split of .* \(record 8\) cannot be read"):
        fr.open_dataset(records)


def test_a_damaged_record_is_named_and_may_be_left_out(tmp_path, pictures):
    (pictures / "train" / "dog" / "3.jpg").write_text("no picture")
    with pytest.raises(fr.UserError, match="1 of 14 images"):
        convert(tmp_path / "records", "--source", pictures, "--to", "arrayrecord")
    convert(tmp_path / "records", "--source", pictures, "--to", "arrayrecord", "--max-corrupt-fraction", 0.1)
    assert len(fr.open_dataset(tmp_path / "records").train) == 9


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_in_a_files_place_is_not_waited_for(records):
    (records / "train-names.json").unlink()
    os.mkfifo(records / "train-names.json")
    assert fr.open_dataset(records, fr.ReadOptions(input="stream")).train.images.name(0) == "record 0"
    (records / "train-labels.npy").unlink()
    os.mkfifo(records / "train-labels.npy")
    with pytest.raises(fr.UserError, match=r"train-labels\.npy is a pipe or a device; give a file that is stored"):
        fr.open_dataset(records)
