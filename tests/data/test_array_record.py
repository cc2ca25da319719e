"""ArrayRecord folders: round trips, and messages for damaged files."""

import io
import json
import os
from dataclasses import replace

import numpy as np
import pytest
from conftest import blobs
from PIL import Image

import flaxresnet as fr
from flaxresnet.cli import make_data, parser
from flaxresnet.data.array_record import write_records
from flaxresnet.data.dataset import Splits


def convert(*argv):
    """Runs `flaxresnet make-data`."""
    return make_data.main(parser.parse(make_data.Arguments, [str(argument) for argument in argv], prog="make-data"))


@pytest.fixture
def image_folder(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("test", 2)):
        for label in ("cat", "dog"):
            class_folder = tmp_path / "images" / split / label
            class_folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (40 + i, 50, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(class_folder / f"{i}.jpg")
    return tmp_path / "images"


@pytest.fixture
def records(image_folder, tmp_path, capsys):
    assert convert(tmp_path / "records", "--source", image_folder, "--to", "arrayrecord", "--shards", 3) == 0
    out = capsys.readouterr().out
    assert "10 train images in 3 shards" in out
    assert "4 test images in 3 shards" in out
    return tmp_path / "records"


@pytest.mark.parametrize("mode", ["memory", "stream"])
@pytest.mark.parametrize("size", [(32, 32), (48, 36)])
def test_records_equal_their_folder(image_folder, records, mode, size):
    options = fr.ReadOptions(image_size=size, input=mode, crop_pct=0.5, resize="pad")
    splits = fr.open_dataset(records, options)
    expected = fr.open_dataset(image_folder, options)
    for name in ("train", "test"):
        split = getattr(splits, name)
        expected_split = getattr(expected, name)
        assert split.is_streamed == (mode == "stream")
        np.testing.assert_array_equal(split.images[:], expected_split.images[:])
        np.testing.assert_array_equal(split.labels, expected_split.labels)
        assert split.class_names == expected_split.class_names
    assert splits.source == f"{records} (ArrayRecord)"
    assert splits.path == str(records)

    eval_options = replace(options, eval_preprocessing=True)
    cropped = fr.open_dataset(records, eval_options).train.images[:]
    np.testing.assert_array_equal(cropped, fr.open_dataset(image_folder, eval_options).train.images[:])
    assert not np.array_equal(cropped, splits.train.images[:])


def test_equal_sizes_are_not_resized(tmp_path):
    splits = Splits(train=blobs(20, seed=1), test=blobs(6, seed=2), source="")
    folder = tmp_path / "records"
    folder.mkdir()
    list(write_records(folder, splits, 2))
    opened = fr.open_dataset(folder, fr.ReadOptions(image_size=(64, 64)))
    np.testing.assert_array_equal(opened.train.images, splits.train.images)
    np.testing.assert_array_equal(opened.test.labels, splits.test.labels)
    assert opened.train.class_names == splits.train.class_names


def test_records_convert_to_hdf5(records, tmp_path):
    convert(tmp_path / "h5", "--source", records, "--image-size", 40)
    hdf5 = fr.open_dataset(tmp_path / "h5")
    expected = fr.open_dataset(records, fr.ReadOptions(image_size=(40, 40)))
    np.testing.assert_array_equal(hdf5.train.images, expected.train.images)
    np.testing.assert_array_equal(hdf5.test.labels, expected.test.labels)


def test_records_are_not_overwritten(records, image_folder):
    with pytest.raises(fr.UserError, match=r"index\.json exists"):
        convert(records, "--source", image_folder, "--to", "arrayrecord")


def test_fingerprint_ignores_streaming(records, image_folder, tmp_path):
    streamed, in_memory = (fr.open_dataset(records, fr.ReadOptions(input=mode)).train for mode in ("stream", "memory"))
    assert streamed.fingerprint() == in_memory.fingerprint()
    (image_folder / "train" / "cat" / "0.jpg").unlink()
    convert(tmp_path / "fewer", "--source", image_folder, "--to", "arrayrecord")
    assert fr.open_dataset(tmp_path / "fewer").train.fingerprint() != in_memory.fingerprint()


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
def test_damaged_index_is_reported(records, changes, message):
    index = json.loads((records / "index.json").read_text())
    (records / "index.json").write_text(json.dumps(index | changes))
    with pytest.raises(fr.UserError, match=message):
        fr.open_dataset(records)


def test_missing_labels_are_reported(records):
    np.save(records / "train-labels.npy", np.zeros(4, np.int32))
    with pytest.raises(fr.UserError, match="10 train images, but 4 labels"):
        fr.open_dataset(records)


def npy_header(shape):
    """Returns a .npy file that declares a shape and has no values."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<i4", "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "train-labels.npy cannot be read, EOFError: "),
        (b"PK\x03\x04 no archive", "train-labels.npy cannot be read, BadZipFile: "),
        (b"no labels", "train-labels.npy cannot be read, ValueError: "),
        (npy_header((2**50,)), "train-labels.npy cannot be read, MemoryError: "),
        (npy_header((2**40, 2**40)), "train-labels.npy cannot be read, "),
    ],
    ids=["empty", "archive", "text", "large shape", "overflowing shape"],
)
def test_damaged_labels_are_reported(records, content, message):
    (records / "train-labels.npy").write_bytes(content)
    with pytest.raises(fr.UserError, match=rf"is damaged \(ValueError: {message}.+\); make it again"):
        fr.open_dataset(records)


@pytest.mark.parametrize("fraction", [0, 0.01, 0.5])
def test_truncated_shard_is_reported(records, fraction):
    shard = records / "train-00001-of-00003.array_record"
    content = shard.read_bytes()
    shard.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(fr.UserError, match=r"records is damaged \(.+\); make it again") as caught:
        fr.open_dataset(records)
    assert "\n" not in str(caught.value)


def damage_record(records, image_folder, name):
    """Overwrites the start of an image in its shard."""
    content = (image_folder / name).read_bytes()
    (shard,) = (path for path in records.glob("*.array_record") if content in path.read_bytes())
    shard.write_bytes(shard.read_bytes().replace(content[:200], b"x" * 200))


@pytest.mark.parametrize("is_converted_again", [False, True])
def test_damaged_record_is_named(records, image_folder, tmp_path, monkeypatch, is_converted_again):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = records
    if is_converted_again:
        folder = tmp_path / "records of records"
        convert(folder, "--source", records, "--to", "arrayrecord")
    damage_record(folder, image_folder, "train/dog/3.jpg")
    for mode in ("memory", "stream"):
        with pytest.raises(fr.UserError) as caught:
            fr.open_dataset(folder, fr.ReadOptions(input=mode))
        assert f"record 8 of the train split of {folder} (train/dog/3.jpg) cannot be read" in str(caught.value)


@pytest.mark.parametrize("names", [None, "5", '{"8": "x"}', '["0.jpg"]', "[" * 100_000])
def test_records_without_names_are_numbered(records, image_folder, tmp_path, monkeypatch, names):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (records / "train-names.json").unlink()
    if names:
        (records / "train-names.json").write_text(names)
    damage_record(records, image_folder, "train/dog/3.jpg")
    with pytest.raises(fr.UserError, match=r"record 8 of the train split of .* \(record 8\) cannot be read"):
        fr.open_dataset(records)


def test_unreadable_images_are_not_converted(tmp_path, image_folder):
    (image_folder / "train" / "dog" / "3.jpg").write_text("not an image")
    with pytest.raises(fr.UserError, match="1 of 14 images"):
        convert(tmp_path / "records", "--source", image_folder, "--to", "arrayrecord")
    convert(tmp_path / "records", "--source", image_folder, "--to", "arrayrecord", "--max-corrupt-fraction", 0.1)
    assert len(fr.open_dataset(tmp_path / "records").train) == 9


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_pipe_is_rejected(records):
    (records / "train-names.json").unlink()
    os.mkfifo(records / "train-names.json")
    assert fr.open_dataset(records, fr.ReadOptions(input="stream")).train.images.name(0) == "record 0"
    (records / "train-labels.npy").unlink()
    os.mkfifo(records / "train-labels.npy")
    with pytest.raises(fr.UserError, match=r"train-labels\.npy is a pipe"):
        fr.open_dataset(records)
