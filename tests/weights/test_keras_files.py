"""Keras's weight files: exchange with the real Keras in both directions, and rejection of unsupported files."""

import importlib.util
import itertools
import json
import subprocess
import sys
import time
import zipfile
from functools import partial
from pathlib import Path
from subprocess import PIPE
from tempfile import TemporaryFile

import h5py
import numpy as np
import pytest
from random_weights import (
    after_one_pass,
    assert_close,
    assert_same,
    logits_of,
    random_images,
    random_weights,
    without_relu,
)

from flaxresnet.config.recipes import Network
from flaxresnet.models.resnet import SIZES, resnet
from flaxresnet.runtime.errors import UserError
from flaxresnet.weights import flat_params
from flaxresnet.weights.flat_params import LazyArray
from flaxresnet.weights.keras_config import keras_config, keras_layers, topological_order
from flaxresnet.weights.key_maps import KEY_FORMATS
from flaxresnet.weights.pretrained_weights import identify
from flaxresnet.weights.run_weights import read_run, write_run
from flaxresnet.weights.weight_files import read_weights, write_weights

FORMATS = ("keras", "h5", "weights.h5")


@pytest.fixture(scope="module")
def reference():
    """Yields a function that calls a function of `keras_reference.py` in one child process that has imported Keras."""
    if not all(map(importlib.util.find_spec, ("keras", "torch"))):
        pytest.skip("install keras and torch (the `peers` extra)")
    script = Path(__file__).with_name("keras_reference.py")
    with (
        TemporaryFile("w+") as stderr,
        subprocess.Popen([sys.executable, script], text=True, stdin=PIPE, stdout=PIPE, stderr=stderr) as process,
    ):

        def call(*arguments):
            process.stdin.write(json.dumps([str(argument) for argument in arguments]) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if not line:
                stderr.seek(0)
                pytest.fail(stderr.read())
            reply = json.loads(line)
            assert "result" in reply, reply["error"]
            return reply["result"]

        yield call
        process.stdin.close()


def make_shallow(monkeypatch, size):
    """Reduces a size to two stages, of two blocks and one block."""
    fields = {"bottleneck": True} if size == "resnet14" else SIZES[size]  # conftest.py makes resnet14 a basic one
    monkeypatch.setitem(SIZES, size, fields | {"stage_sizes": (2, 1)})


def check_exchange(reference, folder, network, size, variant, formats):
    """Reads files of a network that Keras made, and has Keras read ours.

    Args:
      reference: the fixture.
      folder: the folder for the files.
      network: the network's name in `keras_reference.py`.
      size: its expected size.
      variant: its expected variant.
      formats: formats in which Keras reads our files.
    """
    images = random_images()
    np.save(folder / "images.npy", images)
    reference("make", folder, network)
    weights = read_weights(folder / "keras.keras")
    assert (weights.network.model, weights.network.variant, weights.num_classes) == (size, variant, 5)
    assert (weights.preprocessing.height, weights.preprocessing.width) == (64, 64)
    for file_format in FORMATS:
        assert_same(read_weights(folder / f"keras.{file_format}"), weights)
    expected = np.load(folder / "logits.npy")
    assert_close(logits_of(weights, images), expected)

    stats = after_one_pass(weights, images)
    moving = np.load(folder / "moving.npz")
    assert len(moving) == len(stats)
    for name, array in stats.items():
        assert_close(array, moving[KEY_FORMATS[variant].key(name, 5)])

    for file_format in formats:
        write_weights(weights, folder / f"ours.{file_format}")
    reference("check", folder, network)
    loaded = {path.stem: np.load(path) for path in folder.glob("loaded_*.npy")}
    assert len(loaded) == sum(1 if name == "weights.h5" else 2 for name in formats) + (variant == "keras")
    for name, logits in loaded.items():
        np.testing.assert_array_equal(logits, expected, err_msg=name)


@pytest.mark.parity
@pytest.mark.parametrize(("network", "variant"), [("shallow tutorial", "tutorial"), ("shallow application", "keras")])
def test_shallow_networks_agree_with_keras(reference, monkeypatch, tmp_path, network, variant):
    make_shallow(monkeypatch, "resnet14")
    check_exchange(reference, tmp_path, network, "resnet14", variant, FORMATS)


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("network", "size", "variant"),
    [
        ("tutorial", "resnet50", "tutorial"),
        ("ResNet50", "resnet50", "keras"),
        ("ResNet101", "resnet101", "keras"),
        ("ResNet152", "resnet152", "keras"),
    ],
)
def test_full_networks_agree_with_keras(reference, tmp_path, network, size, variant):
    # One format suffices for the deep ones: test_all_networks_round_trip opens all of them in Keras.
    formats = FORMATS if size == "resnet50" else ("h5",)
    check_exchange(reference, tmp_path, network, size, variant, formats)


@pytest.mark.parity
def test_names_and_shapes_equal_keras(reference):
    applications = [("ResNet50", "resnet50"), ("ResNet101", "resnet101"), ("ResNet152", "resnet152")]
    for network, size in [("tutorial", "resnet50"), *applications]:
        variant = "tutorial" if network == "tutorial" else "keras"
        shapes = flat_params.shapes_of(resnet(size, variant, num_classes=5), (64, 64))
        actual = {KEY_FORMATS[variant].key(name, 5): list(shape) for name, shape in shapes.items()}
        assert reference("shapes", network) == actual, network


def configured_layers(model, key_format):
    """Returns the tutorials' names of the layers that Keras's configuration gives variables; checks unique names."""
    layers = keras_layers(model, (64, 64), key_format)
    names = {layer.name for layer in layers}
    assert len(names) == len(layers)
    assert {layer.name for layer in topological_order(layers)} == names
    return {layer.param_name for layer in layers if layer.param_name is not None}


def test_identify_recognizes_every_key_format():
    """Covers each kind of block in each key format, and one network of many blocks; the campaign covers all sizes."""
    cases = list(itertools.product(("resnet14", "resnet18", "resnext50_32x4d"), KEY_FORMATS))
    cases.append(("resnet101", "keras"))
    for size, name in cases:
        case = f"{size} of {name}"
        key_format = KEY_FORMATS[name]
        width = 32 if "next" in size else 4
        model = resnet(size, key_format.variant, num_classes=5, width=width)
        shapes = flat_params.shapes_of(model, (64, 64))
        entries = {}
        for flat_name, shape in shapes.items():
            array = np.broadcast_to(np.float32(0), export_shape(key_format, shape))
            entries[key_format.key(flat_name, 5)] = LazyArray(array.shape, partial(np.asarray, array))
        assert len(entries) == len(shapes), case
        weights = identify(entries, 2**32, image_size=(64, 64))
        assert weights.network == Network(size, key_format.variant, width), case
        assert weights.num_classes == 5, case
        assert {flat_name: array.shape for flat_name, array in weights.arrays.items()} == shapes, case
        assert flat_params.flatten(weights.variables).keys() == shapes.keys(), case
        if not key_format.torch:
            assert {flat_name.split("/")[0] for flat_name in shapes} == configured_layers(model, key_format), case


def export_shape(key_format, shape):
    """Returns the shape of an array in a key format; PyTorch's kernels have the output axis first."""
    if not key_format.torch:
        return shape
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]


@pytest.mark.parity
@pytest.mark.parametrize(("size", "variant"), [("resnet18", "keras"), ("resnext50_32x4d", "tutorial")])
def test_shallow_networks_round_trip(reference, tmp_path, monkeypatch, size, variant):
    make_shallow(monkeypatch, size)
    check_round_trip(reference, tmp_path, size, variant)


@pytest.mark.parity
@pytest.mark.parametrize("variant", ["tutorial", "keras"])
def test_small_stem_round_trips(reference, tmp_path, monkeypatch, variant):
    monkeypatch.setitem(SIZES, "resnet18", {"stage_sizes": (2, 1), "bottleneck": False, "stem": "small"})
    check_round_trip(reference, tmp_path, "resnet18", variant)


@pytest.mark.campaign
@pytest.mark.parametrize("variant", ["tutorial", "keras"])
@pytest.mark.parametrize("size", [size for size, fields in SIZES.items() if "shortcut" not in fields])
def test_all_networks_round_trip(reference, tmp_path, size, variant):
    check_round_trip(reference, tmp_path, size, variant)


def check_round_trip(reference, folder, size, variant):
    """Writes a network in every format, reads it back, and compares logits and running statistics in Keras."""
    weights = random_weights(size, variant, width=32 if "next" in size else 8)
    images = random_images()
    for file_format in FORMATS:
        path = folder / f"weights.{file_format}"
        write_weights(weights, path)
        restored = read_weights(path)
        assert_same(restored, weights)
        assert restored.preprocessing == weights.preprocessing
        assert restored.class_names == weights.class_names
    write_run(weights, folder / "run", "a test")
    assert_same(read_run(folder / "run"), weights)

    np.save(folder / "images.npy", images)
    reference("train", folder)
    expected = {KEY_FORMATS[variant].key(name, 5): array for name, array in weights.arrays.items()}
    for name in ("model_keras", "model_h5", "weights_h5", "weights_weights.h5"):
        variables = np.load(folder / f"{name}.npz")
        assert set(variables) == expected.keys(), name
        for key, array in expected.items():
            np.testing.assert_array_equal(variables[key], array, err_msg=f"{name}: {key}")
    assert_close(np.load(folder / "logits.npy"), logits_of(weights, images))
    trained = read_weights(folder / "trained.weights.h5").arrays
    for name, array in after_one_pass(weights, images).items():
        assert_close(trained[name], array)


@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_config_determines_stem_relu(tmp_path, stem):
    write_weights(without_relu(random_weights("resnet14", "tutorial", stem=stem)), tmp_path / "w.h5")
    with h5py.File(tmp_path / "w.h5", "a") as file:
        del file.attrs["flaxresnet"]
    restored = read_weights(tmp_path / "w.h5")
    assert restored.network.stem_relu is False
    assert restored.network.stem == stem
    assert restored.class_names is None
    assert (restored.preprocessing.height, restored.preprocessing.width) == (64, 64)


def test_missing_head_is_read_not_written(tmp_path):
    write_weights(random_weights("resnet18", "keras"), tmp_path / "w.h5")
    with h5py.File(tmp_path / "w.h5", "a") as file:
        del file["model_weights/predictions"]
    restored = read_weights(tmp_path / "w.h5")
    assert restored.num_classes is None
    assert restored.network.model == "resnet18"
    with pytest.raises(UserError, match=r"have no last layer; train one with --init"):
        write_weights(restored, tmp_path / "again.h5")


def replace_kernel(file):
    del file["model_weights/conv1/conv1/kernel"]
    file["model_weights/conv1/conv1/kernel"] = np.zeros((7, 7, 3, 4), np.float32)


def add_external_link(file):
    del file["model_weights/conv1/conv1/kernel"]
    file["model_weights/conv1/conv1/kernel"] = h5py.ExternalLink("/etc/hostname", "x")


def add_sparse_array(file):
    file.create_dataset("model_weights/huge", shape=(2**40,), dtype="f4", chunks=(1024,))


def add_unallocated_array(file):
    file.create_dataset("model_weights/zz", shape=(2**22,), dtype="f4")


def add_oversized_chunk(file):
    file.create_dataset("model_weights/zz", (10,), "f4", maxshape=(None,), chunks=(900_000_000,))


def add_compressed_array(file):
    file.create_dataset("model_weights/zz", data=np.zeros(1000, np.float32), compression="gzip")


def repeat_weight_name(file):
    file["model_weights/conv1"].attrs["weight_names"] = [b"conv1/kernel"] * 600


def drop_bias(file):
    file["model_weights/res2a_branch2a"].attrs["weight_names"] = [b"res2a_branch2a/kernel"]


def add_hard_link(file):
    file["model_weights/again"] = file["model_weights/conv1"]


def add_nan(file):
    file["model_weights/conv1/conv1/kernel"][0, 0, 0, 0] = np.nan


def reduce_to_one_output(file):
    del file["model_weights/fc5/fc5"]
    file["model_weights/fc5/fc5/kernel"] = np.zeros((128, 1), np.float32)
    file["model_weights/fc5/fc5/bias"] = np.zeros(1, np.float32)


def add_time_array(file):
    h5py.h5d.create(file["model_weights"].id, b"zz", h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple((3,)))


def replace_bias_by_text(file):
    del file["model_weights/conv1/conv1/bias"]
    file["model_weights/conv1/conv1/bias"] = "eight"


def change_layer(name, kind=None, inputs=None, **options):
    """Returns a function that changes the class, inputs or options of a layer in the model's configuration."""

    def change(file):
        config = json.loads(file.attrs["model_config"])
        layer = next(layer for layer in config["config"]["layers"] if layer["name"] == name)
        layer["class_name"] = kind or layer["class_name"]
        if inputs is not None:
            layer["inbound_nodes"] = [[[source, 0, 0, {}] for source in inputs]]
        layer["config"].update(options)
        file.attrs["model_config"] = json.dumps(config)

    return change


def replace_in_config(old, new):
    """Returns a function that replaces text in the model's configuration, once."""

    def change(file):
        file.attrs["model_config"] = file.attrs["model_config"].replace(old, new, 1)

    return change


def set_metadata(**metadata):
    """Returns a function that replaces our metadata in the file."""

    def change(file):
        file.attrs["flaxresnet"] = json.dumps(metadata)

    return change


def differs(layer):
    return f"layer {layer} has other options or inputs than in a resnet14 of the tutorials"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add_external_link, "model_weights/conv1/conv1/kernel is a link; store the array itself"),
        (add_sparse_array, r"the arrays take more bytes than the file's [\d,]+; store every element"),
        (add_unallocated_array, r"the arrays take more bytes than the file's [\d,]+; store every element"),
        (add_oversized_chunk, r"the arrays take more bytes than the file's [\d,]+; store every element"),
        (add_compressed_array, "model_weights/zz is compressed .* `h5repack -f NONE` unpacks it"),
        (repeat_weight_name, "layer conv1 lists conv1/kernel more than once; save the model again"),
        (change_layer("conv1", inputs=["fc5"]), r"layer \w+ depends on its own output"),
        (change_layer("conv1", inputs=["nowhere"]), "layer conv1 has the input nowhere, which is not in the model"),
        (change_layer("fc5", inputs=["nowhere"]), "layer fc5 has the input nowhere, which is not in the model"),
        (add_hard_link, "model_weights/conv1 is a second name of another item"),
        (change_layer("res2a_branch2b", strides=[2, 2]), differs("res2a_branch2b")),
        (change_layer("res2a_branch2b", dilation_rate=[2, 2]), differs("res2a_branch2b")),
        (change_layer("res2a_branch2b", activation="relu"), differs("res2a_branch2b")),
        (
            change_layer("res2a_branch2b", data_format="channels_first"),
            "channels_first; save the model as channels_last",
        ),
        (change_layer("conv1", padding="same"), differs("conv1")),
        (change_layer("conv1_pad", padding=[[2, 3], [3, 3]]), differs("conv1")),
        (change_layer("input_1", batch_input_shape=[None, 64, 64, 1]), differs("conv1")),
        (change_layer("pool1_pool", pool_size=[2, 2]), differs("res2a_branch2a")),
        (change_layer("pool1_pool", "AveragePooling2D"), differs("res2a_branch2a")),
        (change_layer("res2a_1_relu", activation="leaky_relu"), differs("res2a_branch2b")),
        (change_layer("res2a_1_relu", activation="linear"), differs("res2a_branch2b")),
        (change_layer("res2a_1_relu", "ReLU", max_value=6.0), differs("res2a_branch2b")),
        (change_layer("res2a_1_relu", "ReLU", negative_slope=0.2), differs("res2a_branch2b")),
        (change_layer("avg_pool", pool_size=[3, 3]), differs("fc5")),
        (change_layer("avg_pool", strides=[1, 1]), differs("fc5")),
        (change_layer("avg_pool", "GlobalAveragePooling2D"), differs("fc5")),
        (
            replace_in_config('"ZeroPadding2D"', '"Rescaling"'),
            "layer conv1_pad is a Rescaling, which is no layer",
        ),
        (
            replace_in_config('"epsilon": 0.001', '"epsilon": 0.01'),
            "batch norm has epsilon 0.01; the network of .* tutorials supports only 0.001",
        ),
        (set_metadata(class_names=["one"]), "1 class names do not fit the last layer's 5 outputs"),
        (set_metadata(class_names=["a", "b", "c", "d", "a"]), "class name 'a' is empty, unprintable or repeated"),
        (set_metadata(class_names=["a", "b", "c", "d", "e\nf"]), r"class name 'e\\nf' is empty, unprintable"),
        (set_metadata(class_names={"a": 1}), r"class names are \"\{'a': 1\}\"; give a list of strings"),
        (set_metadata(preprocessing={"height": 64, "width": 64, "resize": "foo"}), r"resize.*\{'height': 64"),
        (add_nan, "array conv1/kernel contains nan; every weight must be finite"),
        (reduce_to_one_output, "the last layer has 1 output; a classifier needs 2 or more"),
        (add_time_array, "model_weights/zz is not an array of numbers"),
        (replace_bias_by_text, "conv1/conv1/bias is not an array of numbers"),
        (drop_bias, r"do not fit a resnet14 of the tutorials: missing: res2a_branch2a/bias$"),
        (replace_kernel, r"wrong shape: bn2a_branch2a/beta \(8,\), not \(4,\), .* and 10 more$"),
    ],
)
def test_changed_file_is_rejected(tmp_path, change, message):
    path = tmp_path / "w.h5"
    write_weights(random_weights("resnet14", "tutorial"), path)
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(UserError, match=message) as caught:
        read_weights(path)
    assert str(caught.value).startswith(str(path))


def test_oversized_config_is_rejected(tmp_path, monkeypatch):
    write_weights(random_weights("resnet14", "tutorial"), tmp_path / "w.keras")
    monkeypatch.setattr("flaxresnet.weights.keras_files.MAX_CONFIG_SIZE", 0)
    with pytest.raises(UserError, match=r"w\.keras: \w+\.json in the archive is larger than 0 MiB"):
        read_weights(tmp_path / "w.keras")


@pytest.mark.parametrize(
    "change",
    [
        change_layer("res2a_1_relu", "ReLU", max_value=None, negative_slope=0.0),
        change_layer("res2a_branch2a", padding="same"),
        change_layer("conv1_pad", padding=3),
        change_layer("avg_pool", strides=None),
    ],
    ids=["ReLU", "same", "padding", "strides"],
)
def test_equivalent_config_is_accepted(tmp_path, change):
    path = tmp_path / "w.h5"
    weights = random_weights("resnet14", "tutorial")
    write_weights(weights, path)
    with h5py.File(path, "a") as file:
        change(file)
    assert_same(read_weights(path), weights)


def test_full_window_equals_global_average(tmp_path):
    weights = random_weights("resnet18", "tutorial", width=4)  # its last stage has 2×2 pixels
    write_weights(weights, tmp_path / "w.h5")
    with h5py.File(tmp_path / "w.h5", "a") as file:
        change_layer("avg_pool", "GlobalAveragePooling2D")(file)
        change_layer("flatten", "Dropout")(file)
    assert_same(read_weights(tmp_path / "w.h5"), weights)


def test_head_may_have_any_name(tmp_path):
    weights = random_weights("resnet18", "keras", width=4)
    write_weights(weights, tmp_path / "w.h5")
    with h5py.File(tmp_path / "w.h5", "a") as file:
        root = file["model_weights"]
        root.move("predictions", "probs")
        root["probs"].move("predictions", "probs")
        root["probs"].attrs["weight_names"] = [b"probs/kernel:0", b"probs/bias:0"]
        for leaf in ("kernel", "bias"):
            root["probs"].move(f"probs/{leaf}", f"probs/{leaf}:0")
        file.attrs["model_config"] = file.attrs["model_config"].replace("predictions", "probs")
    assert_same(read_weights(tmp_path / "w.h5"), weights)


def test_unnamed_store_needs_config(tmp_path):
    weights = random_weights("resnet14", "tutorial")
    write_weights(weights, tmp_path / "w.keras")
    with zipfile.ZipFile(tmp_path / "w.keras") as archive:
        archive.extract("model.weights.h5", tmp_path)
    store = tmp_path / "model.weights.h5"
    with h5py.File(store, "a") as file:
        for group in file["layers"].values():
            del group["vars"].attrs["name"]
    with pytest.raises(UserError, match=r"the layers have no names, as in Keras before 3\.6; save"):
        read_weights(store)
    # A configuration by Keras lists the layers in Keras's order, by which the store's groups are numbered.
    layers = topological_order(keras_layers(weights.model, (64, 64), KEY_FORMATS["tutorial"]))
    with zipfile.ZipFile(tmp_path / "old.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(keras_config(layers, "old")))
        archive.write(store, "model.weights.h5")
    assert_same(read_weights(tmp_path / "old.keras"), weights)


def test_store_with_other_layer_is_rejected(tmp_path):
    path = tmp_path / "w.weights.h5"
    write_weights(random_weights("resnet14", "tutorial"), path)
    with h5py.File(path, "a") as file:
        file["layers/normalization/vars/0"] = np.zeros(3, np.float32)
    with pytest.raises(UserError, match=r"do not fit a resnet14 of the tutorials: unexpected: normalization/0$"):
        read_weights(path)


def test_keras_2_store_is_read(tmp_path):
    weights = random_weights("resnet14", "tutorial")
    write_weights(weights, tmp_path / "w.weights.h5")
    with h5py.File(tmp_path / "w.weights.h5", "a") as file:
        file.move("layers", "_layer_checkpoint_dependencies")
    assert_same(read_weights(tmp_path / "w.weights.h5"), weights)


@pytest.mark.parametrize("image_size", [(32, 32), (64, 160)])
def test_image_size_is_preserved(tmp_path, image_size):
    weights = random_weights("resnet14", "tutorial", width=4, image=image_size)
    for name in ("w.weights.h5", "w.keras"):
        write_weights(weights, tmp_path / name)
        restored = read_weights(tmp_path / name)
        assert_same(restored, weights)
        assert (restored.preprocessing.height, restored.preprocessing.width) == image_size
    with zipfile.ZipFile(tmp_path / "w.keras") as archive:
        input_layer = json.loads(archive.read("config.json"))["config"]["layers"][0]
    assert input_layer["config"]["batch_input_shape"] == [None, *image_size, 3]


@pytest.mark.parity
def test_keras_loads_small_image_size(reference, tmp_path):
    write_weights(random_weights("resnet14", "tutorial", width=4, image=32), tmp_path / "w.keras")
    assert reference("input_shape", tmp_path / "w.keras") == [None, 32, 32, 3]


@pytest.mark.parity
def test_lambda_layer_is_not_executed(reference, tmp_path):
    reference("save_malicious", tmp_path)
    for name in ("w.keras", "w.h5"):
        with pytest.raises(UserError, match=name.replace(".", "[.]")):
            read_weights(tmp_path / name)
        assert not (tmp_path / "executed").exists()


def test_archive_paths_are_not_extracted(tmp_path):
    weights = random_weights("resnet14", "tutorial")
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    write_weights(weights, folder / "w.keras")
    with zipfile.ZipFile(folder / "w.keras", "a") as archive:
        for name in ("../evil.h5", "/tmp/evil.h5", str(tmp_path / "evil.h5")):
            archive.writestr(name, b"evil")
    before = sorted(tmp_path.rglob("*"))
    assert_same(read_weights(folder / "w.keras"), weights)
    assert sorted(tmp_path.rglob("*")) == before


def rewrite_archive(path, change):
    """Rewrites an archive with compression; `change` takes and returns {name: bytes}."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in change(members).items():
            archive.writestr(name, content)


def test_zip_bomb_is_rejected(tmp_path):
    path = tmp_path / "w.keras"
    write_weights(random_weights("resnet14", "tutorial"), path)
    rewrite_archive(path, lambda members: members | {"model.weights.h5": members["model.weights.h5"] + bytes(2**25)})
    with pytest.raises(UserError, match=r"w\.keras: the archive has [\d,]+ bytes but unpacks to 33,\d{3},\d{3}; store"):
        read_weights(path)


def test_compressed_archive_is_read(tmp_path):
    path = tmp_path / "w.keras"
    weights = random_weights("resnet14", "tutorial")
    write_weights(weights, path)
    rewrite_archive(path, lambda members: members)
    assert_same(read_weights(path), weights)


def test_reversed_layers_take_linear_time(tmp_path):
    path = tmp_path / "w.keras"
    weights = random_weights("resnet14", "tutorial")
    write_weights(weights, path)

    def add_layers(members):
        config = json.loads(members["config.json"])
        layers = config["config"]["layers"]
        chain = [layers[0]["config"]["name"], *(f"dropout_{i}" for i in range(6000))]
        dropouts = []
        for before, name in itertools.pairwise(chain):
            nodes = [[[before, 0, 0, {}]]]
            dropouts.append({"class_name": "Dropout", "config": {"name": name}, "inbound_nodes": nodes})
        layers.extend(reversed(dropouts))
        return members | {"config.json": json.dumps(config)}

    rewrite_archive(path, add_layers)
    start = time.process_time()
    assert_same(read_weights(path), weights)
    assert time.process_time() - start < 10  # a search of the full list for each layer took a minute
