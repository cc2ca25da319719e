"""Which kind of file it is, what is refused, and that a file is written whole or not at all."""

import json
import os
import struct
import zipfile

import numpy as np
import pytest
from random_weights import random_weights, without_relu
from safetensors.numpy import save_file

from flaxresnet.runtime.errors import UserError
from flaxresnet.weights import torch_files
from flaxresnet.weights.flat_params import LazyArray
from flaxresnet.weights.pretrained_weights import identify
from flaxresnet.weights.weight_files import WRITERS, read_weights, write_weights


def truncated(path, kind):
    write_weights(random_weights("resnet14", "tutorial"), path.with_suffix(kind))
    data = path.with_suffix(kind).read_bytes()
    path.write_bytes(data[: len(data) // 2])


def truncated_h5(path):
    truncated(path, ".h5")


def truncated_keras(path):
    truncated(path, ".keras")


def lying_header(path):
    header = json.dumps({"conv1.weight": {"dtype": "F32", "shape": [64, 3, 7, 7], "data_offsets": [0, 10**9]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 16)


def endless_header(path):
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")


def other_archive(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photo.txt", "no weights")


def strange_names(path):
    save_file({"backbone.weight": np.zeros((2, 2), np.float32)}, path)


def extra_entry(path):
    write_weights(random_weights("resnet18", "torchvision"), path)
    from safetensors.numpy import load_file

    save_file(load_file(path) | {"layer5.0.conv1.weight": np.zeros((8, 8, 3, 3), np.float32)}, path)


def changed_first(change):
    """Damage that changes the first convolution's kernel."""

    def damage(path):
        write_weights(random_weights("resnet18", "torchvision"), path)
        from safetensors.numpy import load_file

        entries = load_file(path)
        save_file(entries | {"conv1.weight": change(entries["conv1.weight"])}, path)

    return damage


def five_gigabytes(path):
    with path.open("wb") as file:
        file.truncate(5 * 2**30)  # of nothing, which takes no room


@pytest.mark.parametrize(
    ("damage", "name", "message"),
    [
        (truncated_h5, "w.h5", r"w\.h5 cannot be read as weights \(.*truncated file.*\); is it whole\?"),
        (truncated_keras, "w.keras", r"w\.keras cannot be read as weights \(File is not a zip file\); is it whole\?"),
        (lying_header, "w.safetensors", r"w\.safetensors cannot be read as weights \(.*\); is it whole\?"),
        (endless_header, "w.safetensors", r"w\.safetensors cannot be read as weights \(.*\); is it whole\?"),
        (other_archive, "w.keras", r"w\.keras: it is an archive of neither Keras nor PyTorch"),
        (five_gigabytes, "w.h5", r"w\.h5: it is larger than 4 GiB, which no ResNet is"),
        (
            changed_first(lambda kernel: kernel > 0),
            "w.safetensors",
            r"its array conv1\.weight holds numbers of the type bool, which no trained network has",
        ),
        (
            changed_first(lambda kernel: kernel[0, 0]),
            "w.safetensors",
            r"conv1\.weight has shape \(7, 7\), which is no convolution's",
        ),
        (strange_names, "w.safetensors", r"no ResNet is recognised; .* conv1\.weight \(torchvision and timm\)"),
        (
            extra_entry,
            "w.safetensors",
            r"not those of a resnet18 of torchvision and timm: unexpected: layer5\.0\.conv1",
        ),
        (lambda path: path.write_text("hello"), "w.txt", r"w\.txt: it is no file of weights; known are \.weights\.h5,"),
        (lambda path: None, "w.h5", r"w\.h5 does not exist; give a file of weights or a run's folder"),
    ],
)
def test_a_file_that_is_no_weights_is_refused_in_one_sentence(tmp_path, damage, name, message):
    damage(tmp_path / name)
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
            r"variant torchvision cannot be written as \.h5; .* \.safetensors, \.pth",
        ),
        (
            "resnet18",
            "keras",
            "w.pth",
            None,
            r"variant keras cannot be written as \.pth; its kinds are \.weights\.h5, \.h5",
        ),
        ("resnet18", "keras", "w.h5", "tutorial", r"cannot be written with the names of tutorial; choose keras"),
        (
            "wide_resnet50_2",
            "torchvision",
            "w.pth",
            "huggingface",
            r"neither groups nor wide blocks, .* wide_resnet50_2",
        ),
        (
            "resnet18",
            "keras",
            "weights",
            None,
            r"weights does not say what to write; let its name end in \.weights\.h5",
        ),
        (
            "no relu",
            "torchvision",
            "w.pth",
            "torchvision",
            "variant torchvision without a ReLU in its stem cannot be written for torchvision and timm, which has one",
        ),
        ("resnet18", "keras", "no/w.h5", None, r"no/w\.h5 cannot be written: No such file or directory"),
    ],
)
def test_what_cannot_be_written_is_refused_and_nothing_is_left(tmp_path, size, variant, name, key_format, message):
    weights = random_weights("resnet18" if size == "no relu" else size, variant, width=4)
    with pytest.raises(UserError, match=message):
        write_weights(without_relu(weights) if size == "no relu" else weights, tmp_path / name, key_format)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "w.h5"
    path.write_text("old")

    def full(weights, key_format, temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(WRITERS, ".h5", (WRITERS[".h5"][0], full))
    with pytest.raises(UserError, match=r"w\.h5 cannot be written: No space left on device"):
        write_weights(random_weights("resnet14", "tutorial"), path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("w.h5", "old")]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "w.h5")
    with pytest.raises(UserError, match=r"w\.h5 is a pipe or a device; give a file that is stored on disk"):
        read_weights(tmp_path / "w.h5")


def test_no_array_is_loaded_before_names_and_shapes_fit():
    weights = random_weights("resnet14", "torchvision", width=4)
    arrays = torch_files.state_dict(weights, "torchvision")
    loaded = []

    def loads(key):
        return lambda: loaded.append(key) or arrays[key]

    entries = {key: LazyArray(array.shape, loads(key)) for key, array in arrays.items()}
    assert identify(entries, 2**20).network == weights.network
    assert set(loaded) == {key for key in arrays if not key.endswith("num_batches_tracked")}
    loaded.clear()
    with pytest.raises(UserError, match=r"unexpected: x$"):
        identify(entries | {"x": LazyArray((900_000_000,), loads("x"))}, 2**32)
    assert not loaded


def test_more_numbers_than_bytes_are_refused():
    entries = {"conv1.weight": LazyArray((4, 3, 7, 7), lambda: None), "x": LazyArray((2**22,), lambda: None)}
    with pytest.raises(UserError, match=r"its arrays have 4,194,892 numbers, and it has 1,000 bytes; store every"):
        identify(entries, 1000)


def test_a_large_file_with_nothing_in_it_takes_no_memory(tmp_path):
    arrays = torch_files.write_safetensors(random_weights("resnet14", "torchvision", width=4), "torchvision")
    end = 8 + int.from_bytes(arrays[:8], "little")
    header = json.loads(arrays[8:end])
    length = len(arrays) - end
    header["x"] = {"dtype": "F32", "shape": [2**28], "data_offsets": [length, length + 2**30]}
    written = json.dumps(header).encode()
    with (tmp_path / "w.safetensors").open("wb") as file:
        file.write(len(written).to_bytes(8, "little") + written + arrays[end:])
        file.truncate(8 + len(written) + length + 2**30)
    with pytest.raises(UserError, match=r"unexpected: x$"):
        read_weights(tmp_path / "w.safetensors")
