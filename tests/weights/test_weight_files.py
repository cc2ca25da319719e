"""Detecting formats, rejecting files that are no weights, and atomic writing."""

import json
import os
import struct
import zipfile

import numpy as np
import pytest
from random_weights import random_weights, without_relu
from safetensors.numpy import load_file, save_file

from flaxresnet.runtime.errors import UserError
from flaxresnet.weights import torch_files
from flaxresnet.weights.flat_params import LazyArray
from flaxresnet.weights.pretrained_weights import identify
from flaxresnet.weights.weight_files import WRITERS, read_weights, write_weights


def truncate(path):
    write_weights(random_weights("resnet14", "tutorial"), path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def declare_data_beyond_end(path):
    header = json.dumps({"conv1.weight": {"dtype": "F32", "shape": [64, 3, 7, 7], "data_offsets": [0, 10**9]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 16)


def declare_huge_header(path):
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")


def write_other_archive(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photo.txt", "no weights")


def write_unknown_names(path):
    save_file({"backbone.weight": np.zeros((2, 2), np.float32)}, path)


def add_layer(path):
    write_weights(random_weights("resnet18", "torchvision"), path)
    save_file(load_file(path) | {"layer5.0.conv1.weight": np.zeros((8, 8, 3, 3), np.float32)}, path)


def change_stem(change):
    """Returns a function that writes weights with the first convolution's kernel changed."""

    def write(path):
        write_weights(random_weights("resnet18", "torchvision"), path)
        entries = load_file(path)
        save_file(entries | {"conv1.weight": change(entries["conv1.weight"])}, path)

    return write


def write_five_gibibytes(path):
    with path.open("wb") as file:
        file.truncate(5 * 2**30)  # a sparse file


@pytest.mark.parametrize(
    ("write", "name", "message"),
    [
        (truncate, "w.h5", r"w\.h5 cannot be read as weights \(.*truncated file.*\); check that the file is complete"),
        (truncate, "w.keras", r"w\.keras cannot be read as weights \(File is not a zip file\)"),
        (declare_data_beyond_end, "w.safetensors", r"w\.safetensors cannot be read as weights \(.*\)"),
        (declare_huge_header, "w.safetensors", r"w\.safetensors cannot be read as weights \(.*\)"),
        (write_other_archive, "w.keras", r"w\.keras: the archive was written by neither Keras nor PyTorch"),
        (write_five_gibibytes, "w.h5", r"w\.h5: the file is larger than 4 GiB"),
        (
            change_stem(lambda kernel: kernel > 0),
            "w.safetensors",
            "has dtype bool; store floats or integers",
        ),
        (
            change_stem(lambda kernel: kernel[0, 0]),
            "w.safetensors",
            r"has shape \(7, 7\), but a convolution's kernel has",
        ),
        (write_unknown_names, "w.safetensors", r"no ResNet is recognized; .* conv1\.weight \(torchvision and timm\)"),
        (
            add_layer,
            "w.safetensors",
            r"do not fit a resnet18 of torchvision and timm: unexpected: layer5\.0\.conv1\.weight$",
        ),
        (
            lambda path: path.write_text("hello"),
            "w.txt",
            r"w\.txt: the file is in no format of weights; .* \.h5,",
        ),
        (lambda path: None, "w.h5", r"w\.h5 does not exist; give a weight file or a run folder"),
    ],
)
def test_read_weights_rejects_other_files(tmp_path, write, name, message):
    write(tmp_path / name)
    with pytest.raises(UserError, match=message) as caught:
        read_weights(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("size", "variant", "name", "key_format", "message"),
    [
        (
            "resnet18",
            "torchvision",
            "w.h5",
            None,
            r"variant torchvision cannot .* \.h5; use .* \.safetensors, \.pth",
        ),
        ("resnet18", "keras", "w.pth", None, r"variant keras cannot .* \.pth; use one of \.weights\.h5, \.h5, \.keras"),
        ("resnet18", "keras", "w.h5", "tutorial", r"cannot be written in the key format tutorial; use keras"),
        ("wide_resnet50_2", "torchvision", "w.pth", "huggingface", r"no grouped or wide blocks, .* wide_resnet50_2"),
        ("resnet20", "torchvision", "w.pth", "huggingface", "Hugging Face's ResNet has a 7×7 stem and convolutions"),
        ("resnet20", "tutorial", "w.keras", None, r"no layer that pads channels, .* resnet20; .*--variant torchvision"),
        ("resnet18", "keras", "weights", None, r"weights has no suffix of a weight file; use one of \.weights\.h5"),
        ("resnet18", "torchvision", "w.pth", "torchvision", r"without a ReLU .*: that of torchvision and timm has one"),
        ("resnet18", "keras", "no/w.h5", None, r"no/w\.h5 cannot be written: No such file or directory"),
    ],
)
def test_write_weights_rejects_unsupported_format(tmp_path, size, variant, name, key_format, message):
    weights = random_weights(size, variant, width=4)
    if "ReLU" in message:
        weights = without_relu(weights)
    with pytest.raises(UserError, match=message):
        write_weights(weights, tmp_path / name, key_format)
    assert list(tmp_path.iterdir()) == []


def test_failed_write_preserves_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.h5"
    path.write_text("old")

    def fill_disk(weights, key_format, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(WRITERS, ".h5", (WRITERS[".h5"][0], fill_disk))
    with pytest.raises(UserError, match=r"w\.h5 cannot be written: No space left on device"):
        write_weights(random_weights("resnet14", "tutorial"), path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("w.h5", "old")]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_read_weights_rejects_pipe(tmp_path):
    os.mkfifo(tmp_path / "w.h5")
    with pytest.raises(UserError, match=r"w\.h5 is a pipe or a device"):
        read_weights(tmp_path / "w.h5")


def test_identify_checks_shapes_before_loading():
    weights = random_weights("resnet14", "torchvision", width=4)
    arrays = torch_files.state_dict(weights, "torchvision")
    loaded = []

    def load(key):
        loaded.append(key)
        return arrays[key]

    entries = {key: LazyArray(array.shape, lambda key=key: load(key)) for key, array in arrays.items()}
    assert identify(entries, 2**20).network == weights.network
    assert set(loaded) == {key for key in arrays if not key.endswith("num_batches_tracked")}
    loaded.clear()
    with pytest.raises(UserError, match=r"unexpected: x$"):
        identify(entries | {"x": LazyArray((900_000_000,), lambda: load("x"))}, 2**32)
    assert not loaded


def test_identify_rejects_excess_elements():
    entries = {"conv1.weight": LazyArray((4, 3, 7, 7), lambda: None), "x": LazyArray((2**22,), lambda: None)}
    with pytest.raises(UserError, match=r"the arrays have 4,194,892 elements, but the file has 1,000 bytes"):
        identify(entries, 1000)


def test_read_weights_loads_no_unexpected_array(tmp_path):
    path = tmp_path / "w.safetensors"
    write_weights(random_weights("resnet14", "torchvision", width=4), path)
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    length = len(data) - end
    header = json.loads(data[8:end])
    header["x"] = {"dtype": "F32", "shape": [2**28], "data_offsets": [length, length + 2**30]}
    header_bytes = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(header_bytes).to_bytes(8, "little") + header_bytes + data[end:])
        file.truncate(8 + len(header_bytes) + length + 2**30)  # a sparse file
    with pytest.raises(UserError, match=r"unexpected: x$"):
        read_weights(path)
