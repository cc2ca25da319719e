"""The tutorials' HDF5 layout: reading, writing, invalid files, links, and limits on compressed chunks."""

import os
import pickle
import re
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from flaxresnet.data import hdf5_limits
from flaxresnet.data.dataset import Dataset
from flaxresnet.data.hdf5 import Hdf5Images, read_hdf5, write_hdf5
from flaxresnet.data.open import open_dataset
from flaxresnet.data.read_options import ReadOptions
from flaxresnet.runtime.errors import UserError

X = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), np.uint8)
Y = np.array([0, 2, 1, 2])
X_TEST = 255 - X[:2]
Y_TEST = np.array([1, 0])
NAMES = np.array([b"fist", b"palm", b"thumb"])
TRAIN = {"train_set_x": X, "train_set_y": Y, "list_classes": NAMES}
TEST = {"test_set_x": X_TEST, "test_set_y": Y_TEST, "list_classes": NAMES}


def make(path, content):
    """Writes a file: HDF5 from a dict of arrays, or bytes; a function writes the file itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict):
        with h5py.File(path, "w") as file:
            for key, value in content.items():
                file[key] = value
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    return path


def without(content, *keys):
    return {key: value for key, value in content.items() if key not in keys}


def check(split, images, labels, names):
    np.testing.assert_array_equal(split.images, images)
    np.testing.assert_array_equal(split.labels, labels)
    assert split.images.dtype == np.uint8
    assert split.labels.dtype == np.int32
    assert split.class_names == names


def test_folder_holds_two_files(tmp_path):
    make(tmp_path / "train_signs.h5", TRAIN)
    make(tmp_path / "test_signs.h5", TEST)
    (tmp_path / "notes.txt").write_text("not data")
    splits = open_dataset(tmp_path)
    check(splits.train, X, Y, ("fist", "palm", "thumb"))
    check(splits.test, X_TEST, Y_TEST, ("fist", "palm", "thumb"))
    assert splits.source == str(tmp_path)


def test_file_holds_both_splits(tmp_path):
    splits = open_dataset(make(tmp_path / "signs.h5", TRAIN | TEST))
    check(splits.train, X, Y, ("fist", "palm", "thumb"))
    check(splits.test, X_TEST, Y_TEST, ("fist", "palm", "thumb"))


@pytest.mark.parametrize(("content", "present", "missing"), [(TRAIN, "train", "test"), (TEST, "test", "train")])
def test_missing_split_is_none(tmp_path, content, present, missing):
    splits = open_dataset(make(tmp_path / "signs.h5", content))
    check(getattr(splits, present), content[f"{present}_set_x"], content[f"{present}_set_y"], ("fist", "palm", "thumb"))
    assert getattr(splits, missing) is None


@pytest.mark.parametrize(
    "labels",
    [Y, Y.astype(np.uint8), Y.astype(np.float32), Y[:, None], np.eye(3)[Y], np.eye(3, dtype=np.int8)[Y]],
    ids=["int64", "uint8", "floats", "(n, 1)", "one-hot floats", "one-hot integers"],
)
def test_labels_become_int32(tmp_path, labels):
    content = TRAIN | {"train_set_y": labels}
    check(open_dataset(make(tmp_path / "signs.h5", content)).train, X, Y, ("fist", "palm", "thumb"))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (NAMES, ("fist", "palm", "thumb")),
        (["Fäuste", "五", "c"], ("Fäuste", "五", "c")),
        (np.array(["Fäuste".encode(), b"b", b"c"]), ("Fäuste", "b", "c")),
        (np.arange(5, 9), ("5", "6", "7", "8")),
        (NAMES[:, None], ("fist", "palm", "thumb")),
    ],
    ids=["bytes", "text", "UTF-8 bytes", "integers", "(classes, 1)"],
)
def test_list_classes_gives_names(tmp_path, names, expected):
    split = open_dataset(make(tmp_path / "signs.h5", TRAIN | {"list_classes": names})).train
    assert split.class_names == expected
    assert split.names_given


def test_classes_without_names_are_numbered(tmp_path):
    split = open_dataset(make(tmp_path / "signs.h5", without(TRAIN, "list_classes"))).train
    assert split.class_names == ("0", "1", "2")
    assert not split.names_given


def test_one_hot_columns_are_classes(tmp_path):
    content = {"train_set_x": X, "train_set_y": np.eye(6)[Y]}  # classes 3, 4 and 5 have no image
    assert open_dataset(make(tmp_path / "signs.h5", content)).train.class_names == ("0", "1", "2", "3", "4", "5")


@pytest.mark.parametrize("named", ["train", "test"])
def test_names_apply_to_both_files(tmp_path, named):
    for name, content in (("train", TRAIN), ("test", TEST)):
        make(tmp_path / f"{name}.h5", content if name == named else without(content, "list_classes"))
    splits = open_dataset(tmp_path)
    for split in (splits.train, splits.test):
        assert split.class_names == ("fist", "palm", "thumb")
        assert split.names_given


def test_splits_without_names_share_classes(tmp_path):
    splits = open_dataset(make(tmp_path / "signs.h5", without(TRAIN | TEST, "list_classes")))
    assert splits.train.class_names == splits.test.class_names == ("0", "1", "2")
    assert not splits.train.names_given
    assert not splits.test.names_given


def test_file_is_not_changed(tmp_path):
    path = make(tmp_path / "signs.h5", TRAIN)
    path.chmod(0o444)
    before = path.read_bytes(), path.stat().st_mtime_ns
    check(open_dataset(path).train, X, Y, ("fist", "palm", "thumb"))
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert path.stat().st_mode & 0o777 == 0o444


def test_file_is_opened_read_only(tmp_path):
    path = make(tmp_path / "signs.h5", TRAIN)
    with h5py.File(path, "r"):  # HDF5 does not open a file for writing while it is open for reading
        check(open_dataset(path).train, X, Y, ("fist", "palm", "thumb"))


@pytest.mark.parametrize("name", ["train", "test"])
def test_write_read_round_trip(tmp_path, name):
    split = Dataset(X, Y.astype(np.int32), ("Fäuste", "五", "c"))
    write_hdf5(tmp_path / "signs.h5", name, split)
    splits = read_hdf5([tmp_path / "signs.h5"], "here", ReadOptions())
    check(getattr(splits, name), X, Y, ("Fäuste", "五", "c"))
    assert splits.source == "here"


def test_write_hdf5_layout(tmp_path):
    write_hdf5(tmp_path / "signs.h5", "train", Dataset(X, Y.astype(np.int32), ("fist", "palm", "thumb")))
    with h5py.File(tmp_path / "signs.h5", "r") as file:
        assert set(file) == {"train_set_x", "train_set_y", "list_classes"}
        assert file["train_set_x"].dtype == np.uint8
        assert file["train_set_y"].dtype == np.int64
        assert list(file["list_classes"]) == [b"fist", b"palm", b"thumb"]


def write_truncated(path):
    make(path, TRAIN)
    path.write_bytes(path.read_bytes()[:1500])


# Mistake → (files in the dataset's folder, message).
MISTAKES = {
    "no files": ({}, r"data holds neither an HDF5 file \(\*\.h5\) nor a folder of images for each class; give"),
    "no HDF5 files": ({"a.txt": b"text"}, r"data holds neither an HDF5 file"),
    "neither key": ({"a.h5": {"x": X, "y": Y}}, r"data has neither train_set_x nor test_set_x; store"),
    "split twice": (
        {"a.h5": TRAIN, "b.h5": TRAIN},
        r"train_set_x is in both .*a\.h5 and .*b\.h5; give one file, or a folder with one of each",
    ),
    "text": ({"a.h5": b"hello\n" * 400}, r"a\.h5 cannot be read as HDF5 \(.*file signature not found.*\); check that"),
    "empty file": ({"a.h5": b""}, r"a\.h5 cannot be read as HDF5 \(.+\); check that it is a complete HDF5 file"),
    "truncated": ({"a.h5": write_truncated}, r"a\.h5 cannot be read as HDF5 \(.*truncated file.*\); check that"),
    "one broken among two": ({"a.h5": TRAIN, "b.h5": b"?"}, r"b\.h5 cannot be read as HDF5"),
    "dangling link": (
        {"a.h5": TRAIN | {"train_set_y": h5py.SoftLink("/nowhere")}},
        r"a\.h5 cannot be read as HDF5 \(.*'nowhere' doesn't exist.*\)",
    ),
    "images are a group": (
        {"a.h5": without(TRAIN, "train_set_x") | {"train_set_x/part": X}},
        r"a\.h5: train_set_x is a group",
    ),
    "labels are a group": (
        {"a.h5": without(TRAIN, "train_set_y") | {"train_set_y/part": Y}},
        r"a\.h5: train_set_y is a group",
    ),
    "names are a group": (
        {"a.h5": without(TRAIN, "list_classes") | {"list_classes/part": NAMES}},
        r"a\.h5: list_classes is a group",
    ),
    "rank 3": (
        {"a.h5": TRAIN | {"train_set_x": X[..., 0]}},
        r"a\.h5: train_set_x has shape \(4, 5, 6\), not \(images, height, width, 3\)",
    ),
    "scalar": ({"a.h5": TRAIN | {"train_set_x": 7}}, r"a\.h5: train_set_x has shape \(\), not \(images, height"),
    "one channel": ({"a.h5": TRAIN | {"train_set_x": X[..., :1]}}, r"train_set_x has shape \(4, 5, 6, 1\), not"),
    "four channels": (
        {"a.h5": TEST | {"test_set_x": np.zeros((2, 5, 6, 4), np.uint8)}},
        r"a\.h5: test_set_x has shape \(2, 5, 6, 4\), not \(images, height, width, 3\); store RGB",
    ),
    "channels first": ({"a.h5": TRAIN | {"train_set_x": np.moveaxis(X, -1, 1)}}, r"has shape \(4, 3, 5, 6\), not"),
    "float images": (
        {"a.h5": TRAIN | {"train_set_x": X / 255}},
        r"a\.h5: train_set_x holds float64, not uint8; store pixels as integers from 0 to 255",
    ),
    "wide integers": ({"a.h5": TRAIN | {"train_set_x": X.astype(np.int32)}}, r"train_set_x holds int32, not uint8"),
    "no images": (
        {"a.h5": TRAIN | {"train_set_x": X[:0], "train_set_y": Y[:0]}},
        r"a\.h5: train_set_x is empty \(shape \(0, 5, 6, 3\)\); give at least one image",
    ),
    "no rows": ({"a.h5": TRAIN | {"train_set_x": X[:, :0]}}, r"train_set_x is empty \(shape \(4, 0, 6, 3\)\)"),
    "no labels": (
        {"a.h5": without(TEST, "test_set_y")},
        r"a\.h5 has test_set_x but not test_set_y; store the labels there",
    ),
    "too few labels": (
        {"a.h5": TRAIN | {"train_set_y": Y[:3]}},
        r"a\.h5: train_set_y has shape \(3,\) for 4 images; store one label an image",
    ),
    "too many labels": ({"a.h5": TRAIN | {"train_set_y": np.tile(Y, 2)}}, r"train_set_y has shape \(8,\) for 4 images"),
    "a row of labels": ({"a.h5": TRAIN | {"train_set_y": Y[None]}}, r"train_set_y has shape \(1, 4\) for 4 images"),
    "a scalar label": ({"a.h5": TRAIN | {"train_set_y": 3}}, r"train_set_y has shape \(\) for 4 images"),
    "labels of rank 3": ({"a.h5": TRAIN | {"train_set_y": Y.reshape(4, 1, 1)}}, r"has shape \(4, 1, 1\) for 4 images"),
    "labels of no width": (
        {"a.h5": without(TRAIN, "list_classes") | {"train_set_y": np.zeros((4, 0))}},
        r"train_set_y has shape \(4, 0\)",
    ),
    "halves": (
        {"a.h5": TRAIN | {"train_set_y": Y + 0.5}},
        r"a\.h5: train_set_y holds labels that are not integers \(float64\); number the classes from 0",
    ),
    "text labels": (
        {"a.h5": TRAIN | {"train_set_y": NAMES[Y]}},
        r"train_set_y holds labels that are not integers \(\|S5\)",
    ),
    "text labels of any length": (
        {"a.h5": TRAIN | {"train_set_y": ["fist", "thumb", "palm", "thumb"]}},
        r"train_set_y holds labels that are not integers \(object\)",
    ),
    "NaN": (
        {"a.h5": TRAIN | {"train_set_y": np.array([0, np.nan, 1, 2])}},
        r"train_set_y holds labels that are not integers \(float64\)",
    ),
    "infinity": (
        {"a.h5": TRAIN | {"train_set_y": np.array([0, np.inf, 1, 2])}},
        r"train_set_y holds labels that are not integers \(float64\)",
    ),
    "negative": (
        {"a.h5": TRAIN | {"train_set_y": Y - 1}},
        r"a\.h5: train_set_y holds the label -1; number the classes from 0 to at most 2",
    ),
    "negative without names": (
        {"a.h5": without(TRAIN, "list_classes") | {"train_set_y": Y - 2}},
        r"a\.h5: train_set_y holds the label -2; number the classes from 0",
    ),
    "counted from one": (
        {"a.h5": TRAIN | {"train_set_y": Y + 1}},
        r"holds the label 3; number the classes from 0 to at most 2",
    ),
    "more than int32 holds": (
        {"a.h5": without(TRAIN, "list_classes") | {"train_set_y": Y + 2**31}},
        r"holds the label 2147483648; number the classes from 0",
    ),
    "two ones in a row": (
        {"a.h5": TRAIN | {"train_set_y": np.maximum(np.eye(3)[Y], np.eye(3)[0])}},
        r"a\.h5: train_set_y has shape \(4, 3\) but its rows are not one-hot; set one 1 in a row",
    ),
    "no one in a row": ({"a.h5": TRAIN | {"train_set_y": np.eye(3)[Y] * 0}}, r"but its rows are not one-hot"),
    "a two in a row": ({"a.h5": TRAIN | {"train_set_y": np.eye(3)[Y] * 2}}, r"but its rows are not one-hot"),
    "minus one and two": ({"a.h5": TRAIN | {"train_set_y": np.tile([2, -1, 0], (4, 1))}}, r"rows are not one-hot"),
    "one-hot of another width": (
        {"a.h5": TRAIN | {"train_set_y": np.eye(4)[Y]}},
        r"a\.h5: train_set_y is one-hot over 4 classes, but list_classes names 3",
    ),
    "sizes differ": (
        {"a.h5": TRAIN, "b.h5": TEST | {"test_set_x": X_TEST.transpose(0, 2, 1, 3)}},
        r"data: training images are \(5, 6\) pixels \(height, width\) but test images are \(6, 5\); store both in one",
    ),
    "names differ": (
        {"a.h5": TRAIN, "b.h5": TEST | {"list_classes": NAMES[::-1]}},
        r"list_classes is \('fist', .*\) for training but \('thumb', .*\) for test; store the same names",
    ),
    "an array without a shape": (
        {"a.h5": TRAIN | {"train_set_y": h5py.Empty("i8")}},
        r"a\.h5: train_set_y is an array without a shape; store the values",
    ),
    "names that repeat": (
        {"a.h5": TRAIN | {"list_classes": NAMES[[0, 1, 1]]}},
        r"a\.h5: list_classes is \('fist', 'palm', 'palm'\); name every class once",
    ),
    "a label beyond the other file's names": (
        {"a.h5": TRAIN, "b.h5": without(TEST, "list_classes") | {"test_set_y": [0, 5]}},
        r"data: test_set_y holds the label 5; the last class is 2",
    ),
}


@pytest.mark.parametrize(("files", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_invalid_file_is_rejected(tmp_path, files, message):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, content in files.items():
        make(folder / name, content)
    with pytest.raises(UserError, match=message) as caught:
        open_dataset(folder)
    assert "\n" not in str(caught.value)


def test_large_labels_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("flaxresnet.data.hdf5.MAX_LABEL_BYTES", 8)
    path = make(tmp_path / "a.h5", without(TRAIN, "list_classes"))
    with pytest.raises(UserError, match=r"a\.h5: train_set_y has shape \(4,\); store one label an image, or one name"):
        open_dataset(path)


def test_memory_error_is_reported(tmp_path, monkeypatch):
    path = make(tmp_path / "a.h5", TRAIN)

    def too_large(*_):
        raise MemoryError

    monkeypatch.setattr("flaxresnet.data.hdf5.np.asarray", lambda x: too_large() if np.ndim(x) == 4 else np.array(x))
    with pytest.raises(UserError, match="train_set_x has 0 GiB of pixels, which do not fit in memory"):
        open_dataset(path)


def test_missing_path_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.h5 does not exist; give an HDF5 file, or a folder"):
        open_dataset(tmp_path / "nowhere.h5")


def test_other_suffix_is_read_as_hdf5(tmp_path):
    with pytest.raises(UserError, match=r"data\.bin cannot be read as HDF5"):
        open_dataset(make(tmp_path / "data.bin", b"not HDF5"))


def test_streamed_images_equal_memory(tmp_path):
    with h5py.File(tmp_path / "data.h5", "w") as file:
        images = np.random.default_rng(0).integers(0, 256, (50, 8, 9, 3)).astype(np.uint8)
        file.create_dataset("train_set_x", data=images, chunks=(7, 8, 9, 3), compression="gzip")
        file["train_set_y"] = np.arange(50) % 3
    in_memory, streamed = (
        open_dataset(tmp_path / "data.h5", ReadOptions(input=mode)).train for mode in ("memory", "stream")
    )
    assert streamed.is_streamed
    assert not in_memory.is_streamed
    np.testing.assert_array_equal(in_memory.images, images)
    np.testing.assert_array_equal(streamed.images[:], images)
    np.testing.assert_array_equal(streamed.images[np.array([40, 3, 3])], images[[40, 3, 3]])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(streamed.images))[7], images[7])
    assert in_memory.fingerprint() == streamed.fingerprint()


def test_removed_file_is_reported(tmp_path):
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["train_set_x"] = np.zeros((5, 8, 9, 3), np.uint8)
        file["train_set_y"] = np.arange(5)
    images = open_dataset(tmp_path / "data.h5", ReadOptions(input="stream")).train.images
    (tmp_path / "data.h5").unlink()
    with pytest.raises(UserError, match=r"data\.h5: train_set_x\[2\] cannot be read"):
        pickle.loads(pickle.dumps(images)).read(2)


def write_damaged_chunk(path):
    """Writes a compressed file of 50 images in which chunk 2 (images 14 to 20) is invalid; returns the images."""
    with h5py.File(path, "w") as file:
        images = np.random.default_rng(0).integers(0, 256, (50, 8, 9, 3)).astype(np.uint8)
        data = file.create_dataset("train_set_x", data=images, chunks=(7, 8, 9, 3), compression="gzip")
        file["train_set_y"] = np.arange(50) % 3
        chunk = data.id.get_chunk_info(2)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\xff" * chunk.size
    path.write_bytes(content)
    return images


@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_damaged_chunk_is_skipped(tmp_path, monkeypatch, mode):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("flaxresnet.data.hdf5.MAX_BLOCK_BYTES", 10 * 8 * 9 * 3)
    images = write_damaged_chunk(tmp_path / "data.h5")
    message = r"(?s)7 of 50 images in .*data\.h5 cannot be read; .*train_set_x\[14\] cannot be read \(.* 2 more"
    with pytest.raises(UserError, match=message):
        open_dataset(tmp_path / "data.h5", ReadOptions(input=mode))
    splits = open_dataset(tmp_path / "data.h5", ReadOptions(input=mode, max_corrupt_fraction=0.2))
    readable = np.delete(np.arange(50), np.arange(14, 21))
    np.testing.assert_array_equal(splits.train.images[:], images[readable])
    np.testing.assert_array_equal(splits.train.labels, readable % 3)
    assert "; skipped 7 unreadable: " in splits.source


def test_unchanged_file_is_scanned_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    reads = []
    load = Hdf5Images.load
    monkeypatch.setattr(Hdf5Images, "load", lambda self, indices: reads.append(len(indices)) or load(self, indices))
    make(tmp_path / "a.h5", TRAIN)
    for _ in range(2):
        open_dataset(tmp_path / "a.h5", ReadOptions(input="stream"))
    assert reads == [len(Y)]
    make(tmp_path / "a.h5", TRAIN | {"train_set_x": np.zeros((len(Y), 5, 7, 3), np.uint8)})
    open_dataset(tmp_path / "a.h5", ReadOptions(input="stream"))
    assert reads == [len(Y), len(Y)]


def write_external(path, kind):
    """Writes a file whose training images are in another file."""
    other = make(path.parent / "other.h5", TRAIN)
    make(path, without(TRAIN, "train_set_x"))
    with h5py.File(path, "a") as file:
        if kind == "link":
            file["train_set_x"] = h5py.ExternalLink("other.h5", "/train_set_x")
        elif kind == "link to a group":
            file["there"] = h5py.ExternalLink("other.h5", "/")
            file["train_set_x"] = h5py.SoftLink("/there/train_set_x")
        elif kind == "virtual":
            layout = h5py.VirtualLayout(X.shape, X.dtype)
            layout[...] = h5py.VirtualSource(other, "train_set_x", X.shape)
            file.create_virtual_dataset("train_set_x", layout)
        else:
            (path.parent / "pixels").write_bytes(X.tobytes())
            file.create_dataset("train_set_x", X.shape, X.dtype, external=[("pixels", 0, X.nbytes)])
    return path


@pytest.mark.parametrize("kind", ["link", "link to a group", "virtual", "external storage"])
def test_external_images_are_rejected(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="train_set_x is stored in another file, which is not opened; store the values"):
        open_dataset(write_external(tmp_path / "signs.h5", kind))


@pytest.mark.parametrize(
    ("links", "target"),
    [
        ({"train_set_x": "/x"}, "x"),
        ({"train_set_x": "x"}, "x"),
        ({"train_set_x": "./in//x/"}, "in/x"),
        (
            {"train_set_x": "link/x", "link": "in/other", "in/other": "deep"},
            "in/deep/x",
        ),  # relative to each group
        ({"train_set_x": "in/back", "in/back": "/x"}, "x"),
    ],
    ids=str,
)
def test_soft_links_are_followed(tmp_path, links, target):
    path = make(tmp_path / "signs.h5", {target: X, **without(TRAIN, "train_set_x")})
    with h5py.File(path, "a") as file:
        for name, link_path in links.items():
            file[name] = h5py.SoftLink(link_path)
    check(open_dataset(path).train, X, Y, ("fist", "palm", "thumb"))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("/train_set_x", "train_set_x is a chain of more than 16 links; store the values there"),
        ("train_set_x/train_set_x", "train_set_x is a chain of more than 16 links"),
        ("/train_set_y/x", "cannot be read as HDF5 .*x is inside an array"),
        ("/", "train_set_x is a group; store an array there"),
    ],
)
def test_invalid_links_are_rejected(tmp_path, target, message):
    path = make(tmp_path / "signs.h5", without(TRAIN, "train_set_x"))
    with h5py.File(path, "a") as file:
        file["train_set_x"] = h5py.SoftLink(target)
    with pytest.raises(UserError, match=message):
        open_dataset(path)


@pytest.mark.parametrize("kind", ["link", "link to a group"])
def test_external_file_is_not_opened(tmp_path, kind):
    path = write_external(tmp_path / "signs.h5", kind)
    (tmp_path / "other.h5").unlink()
    os.mkfifo(tmp_path / "other.h5")  # opening it would block
    writer = os.open(tmp_path / "other.h5", os.O_RDWR)  # reading it would block
    try:
        with pytest.raises(UserError, match="train_set_x is stored in another file"):
            open_dataset(path)
    finally:
        os.close(writer)


@pytest.mark.parametrize("input", ["memory", "stream"])
@pytest.mark.parametrize(
    ("shape", "chunks", "message"),
    [
        ((2, 70_000, 70_000, 3), (1, 100, 100, 3), "images of 70000×70000 pixels; store them with 100,000,000 at most"),
        ((2, 9000, 9000, 3), (6, 9000, 9000, 3), r"is in chunks of \(6, 9000, 9000, 3\); store it in chunks of up to"),
    ],
)
def test_huge_images_are_rejected(tmp_path, shape, chunks, message, input):
    path = make(tmp_path / "bomb.h5", {"train_set_y": np.array([0, 1])})
    with h5py.File(path, "a") as file:
        options = {"chunks": chunks, "maxshape": (None,) * 4, "compression": "gzip"}
        file.create_dataset("train_set_x", shape, np.uint8, **options)
    with pytest.raises(UserError, match=message):
        open_dataset(path, ReadOptions(input=input))


def write_chunks(path, key, shape, streams, chunks=None, **filters):
    """Writes an array whose chunks, from the first row on, hold these bytes."""
    with h5py.File(path, "a") as file:
        size = {"chunks": chunks or (1, *shape[1:]), "maxshape": (None, *shape[1:])}
        array = file.create_dataset(key, shape, np.uint8, **size, **filters)
        for row, stream in enumerate(streams):
            array.id.write_direct_chunk((row, *(0 for _ in shape[1:])), stream)


def peak_memory():
    """Returns the peak memory of this process in bytes since its last reset; 0 if the system does not report it."""
    match = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text()) if STATUS.exists() else None
    return 1024 * int(match[1]) if match else 0


STATUS = Path("/proc/self/status")
NOISE = np.random.default_rng(1).integers(0, 256, (3, 400, 400, 3), np.uint8)  # chunks too large to be trusted
STREAMS = [zlib.compress(image.tobytes(), 1) for image in NOISE]


@pytest.fixture(scope="module")
def bomb():
    """320 MiB of zeros, compressed to 1.4 MiB."""
    compressor = zlib.compressobj(1)
    mebibyte = bytes(2**20)
    return b"".join(compressor.compress(mebibyte) for _ in range(320)) + compressor.flush()


@pytest.mark.parametrize("input", ["memory", "stream"])
def test_oversized_chunk_is_not_decompressed(tmp_path, bomb, input):
    path = make(tmp_path / "bomb.h5", {"train_set_y": np.array([0, 1, 2])})
    write_chunks(path, "train_set_x", NOISE.shape, [STREAMS[0], bomb, STREAMS[2]], compression="gzip")

    if STATUS.exists():
        STATUS.with_name("clear_refs").write_text("5")  # resets the peak
    before = peak_memory()
    chunk = r"train_set_x has a chunk, at \(1, 0, 0, 0\), that decompresses to more than the 480,000 bytes it declares"
    with pytest.raises(UserError, match=rf"{chunk}; store the values again"):
        open_dataset(path, ReadOptions(input=input))
    assert peak_memory() - before < 2**28


@pytest.mark.parametrize("input", ["memory", "stream"])
def test_oversized_chunk_is_skipped(tmp_path, bomb, input):
    path = make(tmp_path / "bomb.h5", {"train_set_y": np.array([0, 1, 2])})
    write_chunks(path, "train_set_x", NOISE.shape, [STREAMS[0], bomb, STREAMS[2]], compression="gzip")
    split = open_dataset(path, ReadOptions(input=input, max_corrupt_fraction=0.5)).train
    np.testing.assert_array_equal(split.images[np.arange(2)], NOISE[[0, 2]])


@pytest.mark.parametrize(
    ("key", "shape", "chunks"), [("train_set_y", (4,), (256,)), ("list_classes", (3,), (256,))], ids=["labels", "names"]
)
def test_oversized_labels_are_not_decompressed(tmp_path, bomb, key, shape, chunks):
    path = make(tmp_path / "bomb.h5", without(TRAIN, key))
    write_chunks(path, key, shape, [bomb], chunks, compression="gzip")
    with pytest.raises(UserError, match=rf"bomb\.h5: {key} has a chunk, at \(0,\), that decompresses to more than the"):
        open_dataset(path)


def test_chunk_is_checked_once(tmp_path, monkeypatch):
    path = make(tmp_path / "signs.h5", {"train_set_y": np.arange(64) % 3})
    checked = []
    images = np.repeat(NOISE, 22, axis=0)[:64]
    with h5py.File(path, "a") as file:
        file.create_dataset("train_set_x", data=images, chunks=images.shape, compression="gzip", compression_opts=1)
    is_oversized = hdf5_limits.is_oversized
    monkeypatch.setattr(
        hdf5_limits, "is_oversized", lambda array, offset: checked.append(offset) or is_oversized(array, offset)
    )
    stored = open_dataset(path, ReadOptions(input="stream")).train.images
    with ThreadPoolExecutor(8) as threads:
        read = list(threads.map(lambda index: stored.load(np.array([index]))[0], range(64)))
    np.testing.assert_array_equal(np.concatenate(read), images)
    assert checked == [(0, 0, 0, 0)]
    pickled = pickle.loads(pickle.dumps(stored))
    np.testing.assert_array_equal(pickled.load(np.array([5]))[0][0], images[5])


@pytest.mark.parametrize("input", ["memory", "stream"])
def test_chunk_beyond_the_file_is_damaged(tmp_path, input):
    path = make(tmp_path / "signs.h5", {"train_set_y": np.array([0, 1, 2])})
    write_chunks(path, "train_set_x", NOISE.shape, STREAMS, compression="gzip")
    with h5py.File(path) as file:
        offset = file["train_set_x"].id.get_chunk_info(1).byte_offset.to_bytes(8, "little")
    content = path.read_bytes()
    assert content.count(offset) == 1
    path.write_bytes(content.replace(offset, (2**40).to_bytes(8, "little")))
    with pytest.raises(UserError, match=r"train_set_x\[1\] cannot be read"):
        open_dataset(path, ReadOptions(input=input))
    split = open_dataset(path, ReadOptions(input=input, max_corrupt_fraction=0.5)).train
    np.testing.assert_array_equal(split.images[np.arange(2)], NOISE[[0, 2]])


def test_older_hdf5_lists_chunks(tmp_path):
    path = tmp_path / "signs.h5"
    sizes = []
    write_chunks(path, "train_set_x", NOISE.shape, STREAMS, compression="gzip")
    with h5py.File(path) as file:
        array_id = file["train_set_x"].id
        old_id = SimpleNamespace(get_num_chunks=array_id.get_num_chunks, get_chunk_info=array_id.get_chunk_info)
        hdf5_limits.each_chunk(SimpleNamespace(id=old_id), lambda chunk: sizes.append(chunk.size))
    assert sizes == [len(stream) for stream in STREAMS]


def test_overlong_stored_chunk_is_rejected(tmp_path):
    path = make(tmp_path / "signs.h5", {"train_set_y": np.array([0, 1, 2])})
    write_chunks(path, "train_set_x", (3, 5, 6, 3), [bytes(2**17)], (3, 5, 6, 3), shuffle=True)
    with pytest.raises(UserError, match=r"a chunk, at \(0, 0, 0, 0\), that decompresses to more than the 270 bytes"):
        open_dataset(path)


def deflate_twice(plist):
    plist.set_deflate(9)
    plist.set_deflate(9)


def shuffle_after_deflate(plist):
    plist.set_deflate(9)
    plist.set_shuffle()


def scale_offset(plist):
    plist.set_scaleoffset(h5py.h5z.SO_INT, 0)


def large_lzf(plist):
    plist.set_chunk((1, 2000, 2000, 3))
    plist.set_filter(h5py.h5z.FILTER_LZF, h5py.h5z.FLAG_OPTIONAL)


@pytest.mark.parametrize(
    ("set_filters", "message"),
    [
        (deflate_twice, r"is filtered again after its compression; `h5repack -f GZIP=4`"),
        (shuffle_after_deflate, r"is filtered again after its compression; `h5repack -f GZIP=4`"),
        (scale_offset, r"is compressed by HDF5's filter 6, which is not supported; `h5repack -f GZIP=4`"),
        (large_lzf, r"is compressed by LZF in chunks of \(1, 2000, 2000, 3\); `h5repack -f GZIP=4`"),
    ],
)
def test_unsupported_filters_are_rejected(tmp_path, set_filters, message):
    path, shape = make(tmp_path / "signs.h5", {"train_set_y": np.array([0, 1])}), (2, 2000, 2000, 3)
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((1, 200, 200, 3))
    set_filters(plist)
    with h5py.File(path, "a") as file:
        space = h5py.h5s.create_simple(shape)
        h5py.h5d.create(file.id, b"train_set_x", h5py.h5t.NATIVE_UINT8, space, plist)
    with pytest.raises(UserError, match=rf"signs\.h5: train_set_x {message} compresses it again$"):
        open_dataset(path)


@pytest.mark.parametrize("input", ["memory", "stream"])
@pytest.mark.parametrize("chunks", [(1, 400, 400, 3), (2, 400, 400, 3), (3, 300, 400, 3), True], ids=str)
@pytest.mark.parametrize(
    "filters",
    [
        {"compression": "gzip"},
        {"compression": "gzip", "shuffle": True, "fletcher32": True},
        {"compression": "lzf", "shuffle": True},
        {"shuffle": True},
        {"fletcher32": True},
    ],
    ids=str,
)
def test_usual_filters_are_read(tmp_path, filters, chunks, input):
    path = make(tmp_path / "signs.h5", {"train_set_y": np.array([0, 1, 2]), "list_classes": NAMES})
    with h5py.File(path, "a") as file:
        file.create_dataset("train_set_x", data=NOISE, chunks=chunks, **filters)
    split = open_dataset(path, ReadOptions(input=input)).train
    np.testing.assert_array_equal(split.images[np.arange(3)], NOISE)


TIME = h5py.h5t.UNIX_D32LE
WIDE = h5py.h5t.STD_I64LE.copy()
WIDE.set_size(16)


@pytest.mark.parametrize("kind", [TIME, WIDE], ids=["time", "16 bytes"])
@pytest.mark.parametrize(("key", "shape"), [("train_set_x", X.shape), ("train_set_y", Y.shape), ("list_classes", (3,))])
def test_unsupported_types_are_rejected(tmp_path, kind, key, shape):
    path = make(tmp_path / "signs.h5", without(TRAIN, key))
    with h5py.File(path, "a") as file:
        h5py.h5d.create(file.id, key.encode(), kind, h5py.h5s.create_simple(shape))
    with pytest.raises(UserError, match=rf"signs\.h5: {key} has an unsupported type \(.*\); store"):
        open_dataset(path)


@pytest.mark.parametrize("input", ["memory", "stream"])
@pytest.mark.parametrize("filters", [{}, {"compression": "gzip"}], ids=["no filter", "gzip"])
def test_unstored_images_are_rejected(tmp_path, input, filters):
    path = make(tmp_path / "signs.h5", {"train_set_y": np.arange(200) % 3})
    with h5py.File(path, "a") as file:
        file.create_dataset("train_set_x", (200, 9000, 9000, 3), np.uint8, chunks=(1, 900, 900, 3), **filters)
        file["train_set_x"][0, :5, :6] = X[0]
    message = r"signs\.h5: train_set_x declares 45\.3 GiB, of which [\d,]+ bytes are stored; store the values"
    with pytest.raises(UserError, match=message):
        open_dataset(path, ReadOptions(input=input))


def test_unstored_labels_are_rejected(tmp_path):
    path = make(tmp_path / "signs.h5", without(TRAIN, "train_set_y"))
    with h5py.File(path, "a") as file:
        file.create_dataset("train_set_y", (4, 10**7), np.int16, chunks=(4, 1000))
    with pytest.raises(
        UserError, match=r"train_set_y declares 0\.1 GiB, of which 0 bytes are stored; store the values"
    ):
        open_dataset(path)


def test_best_compression_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("flaxresnet.data.hdf5.MIN_CHECKED_BYTES", 0)
    path = make(tmp_path / "signs.h5", without(TRAIN, "train_set_x"))
    black = np.zeros((4, 500, 500, 3), np.uint8)
    with h5py.File(path, "a") as file:
        file.create_dataset("train_set_x", data=black, chunks=black.shape, compression="gzip", compression_opts=9)
    check(open_dataset(path).train, black, Y, ("fist", "palm", "thumb"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_pipe_is_rejected(tmp_path):
    os.mkfifo(tmp_path / "signs.h5")
    with pytest.raises(UserError, match=r"signs\.h5 is a pipe or a device; give a file that is stored on disk"):
        open_dataset(tmp_path / "signs.h5")
