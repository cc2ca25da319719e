"""Keras's files against the real Keras, there and back, and what is refused."""

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

KINDS = ("keras", "h5", "weights.h5")


@pytest.fixture(scope="module")
def reference():
    """Asks the real Keras in a process of its own: the name of a function of `keras_reference.py` and its arguments."""
    if not all(map(importlib.util.find_spec, ("keras", "torch"))):
        pytest.skip("install keras and torch (the `peers` extra)")
    script = Path(__file__).with_name("keras_reference.py")
    with (
        TemporaryFile("w+") as complaints,
        subprocess.Popen([sys.executable, script], text=True, stdin=PIPE, stdout=PIPE, stderr=complaints) as process,
    ):

        def ask(*words):
            process.stdin.write(json.dumps([str(word) for word in words]) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if not line:
                complaints.seek(0)
                pytest.fail(complaints.read())
            told = json.loads(line)
            assert "answer" in told, told["error"]
            return told["answer"]

        yield ask
        process.stdin.close()


def make_shallow(monkeypatch, size):
    """Has a network be of two blocks that follow each other and one that halves the sides."""
    fields = {"bottleneck": True} if size == "resnet14" else SIZES[size]  # the tests make it a basic one
    monkeypatch.setitem(SIZES, size, fields | {"stage_sizes": (2, 1)})


def check_exchange(reference, folder, network, expected_network, kinds):
    """Has Keras make a network, reads its files, and has Keras read ours in turn."""
    images = random_images()
    np.save(folder / "images.npy", images)
    reference("make", folder, network)
    weights = read_weights(folder / "theirs.keras")
    variant = weights.network.variant
    assert (weights.network.model, variant, weights.num_classes) == (*expected_network, 5)
    assert (weights.preprocessing.height, weights.preprocessing.width) == (64, 64)
    for kind in KINDS:
        assert_same(read_weights(folder / f"theirs.{kind}"), weights)
    expected = np.load(folder / "logits.npy")
    assert_close(logits_of(weights, images), expected)

    stats, moving = after_one_pass(weights, images), np.load(folder / "moving.npz")
    assert len(moving) == len(stats)
    for name, array in stats.items():
        assert_close(array, moving[KEY_FORMATS[variant].key(name, 5)])

    for kind in kinds:
        write_weights(weights, folder / f"ours.{kind}")
    reference("check", folder, network)
    loaded = {path.stem: np.load(path) for path in folder.glob("loaded_*.npy")}
    assert len(loaded) == sum(1 if kind == "weights.h5" else 2 for kind in kinds) + (variant == "keras")
    for name, found in loaded.items():
        np.testing.assert_array_equal(found, expected, err_msg=name)


@pytest.mark.parity
@pytest.mark.parametrize(("network", "variant"), [("shallow tutorial", "tutorial"), ("shallow application", "keras")])
def test_keras_and_we_read_each_others_files_and_agree(reference, monkeypatch, tmp_path, network, variant):
    make_shallow(monkeypatch, "resnet14")
    check_exchange(reference, tmp_path, network, ("resnet14", variant), KINDS)


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
    # Of the deeper ones one file is enough: the test of every network opens all of them in Keras.
    check_exchange(reference, tmp_path, network, (size, variant), KINDS if size == "resnet50" else ("h5",))


@pytest.mark.parity
def test_names_and_shapes_equal_keras(reference):
    applications = [("ResNet50", "resnet50"), ("ResNet101", "resnet101"), ("ResNet152", "resnet152")]
    for network, size in [("tutorial", "resnet50"), *applications]:
        variant = "tutorial" if network == "tutorial" else "keras"
        shapes = flat_params.shapes_of(resnet(size, variant, num_classes=5), (64, 64))
        ours = {KEY_FORMATS[variant].key(name, 5): list(shape) for name, shape in shapes.items()}
        assert reference("shapes", network) == ours, network


def described(model, key_format):
    """Lists the layers with variables in a description for Keras, by our names; no two may be called alike."""
    listed = keras_layers(model, (64, 64), key_format)
    names = {layer.name for layer in listed}
    assert len(names) == len(listed)
    assert {layer.name for layer in topological_order(listed)} == names
    return {layer.table for layer in listed if layer.table is not None}


def test_every_network_is_recognized_by_names():
    """One size with each kind of block in each world, and one of many blocks; the campaign exchanges all sizes."""
    pairs = list(itertools.product(("resnet14", "resnet18", "resnext50_32x4d"), KEY_FORMATS.items()))
    pairs.append(("resnet101", ("keras", KEY_FORMATS["keras"])))
    for size, (title, key_format) in pairs:
        case = f"{size} of {title}"
        width = 32 if "next" in size else 4
        model = resnet(size, key_format.variant, num_classes=5, width=width)
        shapes = flat_params.shapes_of(model, (64, 64))
        keys = {name: key_format.key(name, 5) for name in shapes}
        assert len(set(keys.values())) == len(keys), case
        arrays = {key: np.broadcast_to(np.float32(0), theirs(key_format, shapes[name])) for name, key in keys.items()}
        entries = {key: LazyArray(array.shape, partial(np.asarray, array)) for key, array in arrays.items()}
        found = identify(entries, 2**32, image_size=(64, 64))
        assert (found.network, found.num_classes) == (Network(size, key_format.variant, width), 5), case
        assert {name: array.shape for name, array in found.arrays.items()} == shapes, case
        assert flat_params.flatten(flat_params.unflatten(found.arrays, 5)).keys() == shapes.keys(), case
        if not key_format.torch:
            assert {name.split("/")[0] for name in shapes} == described(model, key_format), case


def theirs(key_format, shape):
    """The shape that an array of ours has in a world: PyTorch has kernels' axes the other way round."""
    if not key_format.torch:
        return shape
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]


@pytest.mark.parity
@pytest.mark.parametrize(("size", "variant"), [("resnet18", "keras"), ("resnext50_32x4d", "tutorial")])
def test_shallow_networks_come_back_and_keras_answers_alike(reference, tmp_path, monkeypatch, size, variant):
    make_shallow(monkeypatch, size)
    check_return(reference, tmp_path, size, variant)


@pytest.mark.campaign
@pytest.mark.parametrize("variant", ["tutorial", "keras"])
@pytest.mark.parametrize("size", SIZES)
def test_every_network_comes_back_as_it_went_and_keras_answers_and_learns_alike(reference, tmp_path, size, variant):
    check_return(reference, tmp_path, size, variant)


def check_return(reference, folder, size, variant):
    """Writes a network in every format, reads it back, and has Keras load it, answer and learn."""
    weights, images = random_weights(size, variant, width=32 if "next" in size else 8), random_images()
    for kind in KINDS:
        path = folder / f"weights.{kind}"
        write_weights(weights, path)
        back = read_weights(path)
        assert_same(back, weights)
        assert back.preprocessing == weights.preprocessing
        assert back.class_names == weights.class_names
    write_run(weights, folder / "run", "a test")
    assert_same(read_run(folder / "run"), weights)

    np.save(folder / "images.npy", images)
    reference("learn", folder)
    arrays = {KEY_FORMATS[variant].key(name, 5): array for name, array in weights.arrays.items()}
    for loaded in ("model_keras", "model_h5", "weights_h5", "weights_weights.h5"):
        held = np.load(folder / f"{loaded}.npz")
        assert set(held) == arrays.keys(), loaded
        for key, array in arrays.items():
            np.testing.assert_array_equal(held[key], array, err_msg=f"{loaded}: {key}")
    assert_close(np.load(folder / "logits.npy"), logits_of(weights, images))
    table = read_weights(folder / "passed.weights.h5").arrays
    for name, expected in after_one_pass(weights, images).items():
        assert_close(table[name], expected)


def test_a_stem_without_relu_is_read_from_the_models_description(tmp_path):
    weights = without_relu(random_weights("resnet14", "tutorial"))
    write_weights(weights, tmp_path / "w.h5")
    with h5py.File(tmp_path / "w.h5", "a") as file:
        del file.attrs["flaxresnet"]
    back = read_weights(tmp_path / "w.h5")
    assert back.network.stem_relu is False
    assert back.class_names is None
    assert (back.preprocessing.height, back.preprocessing.width) == (64, 64)


def test_a_network_without_its_last_layer_is_read(tmp_path):
    write_weights(random_weights("resnet18", "keras"), tmp_path / "w.h5")
    with h5py.File(tmp_path / "w.h5", "a") as file:
        del file["model_weights/predictions"]
    back = read_weights(tmp_path / "w.h5")
    assert back.num_classes is None
    assert back.network.model == "resnet18"
    with pytest.raises(UserError, match=r"have no last layer; train one with --init"):
        write_weights(back, tmp_path / "again.h5")


def damage_layout(file):
    file["model_weights/conv1/conv1/kernel"][...] = 0
    del file["model_weights/conv1/conv1/kernel"]
    file["model_weights/conv1/conv1/kernel"] = np.zeros((7, 7, 3, 4), np.float32)


def link_outside(file):
    del file["model_weights/conv1/conv1/kernel"]
    file["model_weights/conv1/conv1/kernel"] = h5py.ExternalLink("/etc/hostname", "x")


def lie_about_size(file):
    file.create_dataset("model_weights/huge", shape=(2**40,), dtype="f4", chunks=(1024,))


def never_written(file):
    file.create_dataset("model_weights/zz", shape=(2**22,), dtype="f4")


def one_large_chunk(file):
    file.create_dataset("model_weights/zz", (10,), "f4", maxshape=(None,), chunks=(900_000_000,))


def packed(file):
    file.create_dataset("model_weights/zz", data=np.zeros(1000, np.float32), compression="gzip")


def repeated_name(file):
    file["model_weights/conv1"].attrs["weight_names"] = [b"conv1/kernel"] * 600


def taking(source):
    def damage(file):
        config = json.loads(file.attrs["model_config"])
        layer = next(of for of in config["config"]["layers"] if of["name"] == "conv1")
        layer["inbound_nodes"] = [[[source, 0, 0, {}]]]
        file.attrs["model_config"] = json.dumps(config)

    return damage


layer_after_itself, layer_after_none = taking("fc5"), taking("nowhere")


def other_epsilon(file):
    config = file.attrs["model_config"]
    file.attrs["model_config"] = config.replace('"epsilon": 0.001', '"epsilon": 0.01')


def drop_a_bias(file):
    group = file["model_weights/res2a_branch2a"]
    group.attrs["weight_names"] = [b"res2a_branch2a/kernel"]


def same_thing_twice(file):
    file["model_weights/again"] = file["model_weights/conv1"]


def changed_layer(name, kind=None, **options):
    """Damage that changes a layer in the model's description."""

    def damage(file):
        config = json.loads(file.attrs["model_config"])
        layer = next(of for of in config["config"]["layers"] if of["name"] == name)
        layer["class_name"] = kind or layer["class_name"]
        layer["config"].update(options)
        file.attrs["model_config"] = json.dumps(config)

    return damage


def taken_from_nowhere(file):
    config = json.loads(file.attrs["model_config"])
    layer = next(of for of in config["config"]["layers"] if of["name"] == "fc5")
    layer["inbound_nodes"] = json.loads(json.dumps(layer["inbound_nodes"]).replace("flatten", "nowhere"))
    file.attrs["model_config"] = json.dumps(config)


def layer_in_front(file):
    file.attrs["model_config"] = file.attrs["model_config"].replace('"ZeroPadding2D"', '"Rescaling"', 1)


def wrong_class_names(file):
    file.attrs["flaxresnet"] = json.dumps({"class_names": ["one"]})


def same_class_name_twice(file):
    file.attrs["flaxresnet"] = json.dumps({"class_names": ["a", "b", "c", "d", "a"]})


def class_name_with_a_line_break(file):
    file.attrs["flaxresnet"] = json.dumps({"class_names": ["a", "b", "c", "d", "e\nf"]})


def class_names_in_a_table(file):
    file.attrs["flaxresnet"] = json.dumps({"class_names": {"a": 1}})


def not_a_number(file):
    file["model_weights/conv1/conv1/kernel"][0, 0, 0, 0] = np.nan


def strange_resizing(file):
    file.attrs["flaxresnet"] = json.dumps({"preprocessing": {"height": 64, "width": 64, "resize": "foo"}})


def one_output(file):
    del file["model_weights/fc5/fc5"]
    file["model_weights/fc5/fc5/kernel"] = np.zeros((128, 1), np.float32)
    file["model_weights/fc5/fc5/bias"] = np.zeros(1, np.float32)


def times_for_numbers(file):
    h5py.h5d.create(file["model_weights"].id, b"zz", h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple((3,)))


def text_for_numbers(file):
    del file["model_weights/conv1/conv1/bias"]
    file["model_weights/conv1/conv1/bias"] = "eight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (link_outside, "model_weights/conv1/conv1/kernel in it is a link; only plain arrays are read"),
        (lie_about_size, r"its arrays take more than the [\d,]+ bytes that it has; store every number"),
        (never_written, r"its arrays take more than the [\d,]+ bytes that it has; store every number"),
        (one_large_chunk, r"its arrays take more than the [\d,]+ bytes that it has; store every number"),
        (packed, "model_weights/zz in it is packed, and may unpack to any size; `h5repack -f NONE` unpacks it"),
        (repeated_name, "its layer conv1 lists conv1/kernel more than once"),
        (layer_after_itself, r"its layer \w+ takes what is computed from it"),
        (layer_after_none, "its layer conv1 takes something that is not in the model"),
        (same_thing_twice, "model_weights/conv1 in it is there under another name too; only plain arrays are read"),
        (
            changed_layer("res2a_branch2b", strides=[2, 2]),
            "its layer res2a_branch2b computes something else, or from something else, than in .*resnet14",
        ),
        (changed_layer("res2a_branch2b", dilation_rate=[2, 2]), "its layer res2a_branch2b computes something else"),
        (changed_layer("res2a_branch2b", activation="relu"), "its layer res2a_branch2b computes something else"),
        (
            changed_layer("res2a_branch2b", data_format="channels_first"),
            "res2a_branch2b has data_format channels_first",
        ),
        (changed_layer("conv1", padding="same"), "its layer conv1 computes something else"),
        (changed_layer("conv1_pad", padding=[[2, 3], [3, 3]]), "its layer conv1 computes something else"),
        (changed_layer("input_1", batch_input_shape=[None, 64, 64, 1]), "its layer conv1 computes something else"),
        (changed_layer("pool1_pool", pool_size=[2, 2]), "its layer res2a_branch2a computes something else"),
        (changed_layer("pool1_pool", "AveragePooling2D"), "its layer res2a_branch2a computes something else"),
        (changed_layer("res2a_1_relu", activation="leaky_relu"), "its layer res2a_branch2b computes something else"),
        (changed_layer("res2a_1_relu", activation="linear"), "its layer res2a_branch2b computes something else"),
        (changed_layer("res2a_1_relu", "ReLU", max_value=6.0), "its layer res2a_branch2b computes something else"),
        (changed_layer("res2a_1_relu", "ReLU", negative_slope=0.2), "its layer res2a_branch2b computes something else"),
        (changed_layer("avg_pool", pool_size=[3, 3]), "its layer fc5 computes something else"),
        (changed_layer("avg_pool", strides=[1, 1]), "its layer fc5 computes something else"),
        (changed_layer("avg_pool", "GlobalAveragePooling2D"), "its layer fc5 computes something else"),
        (taken_from_nowhere, "its layer fc5 takes something that is not in the model"),
        (layer_in_front, "its layer conv1_pad is a Rescaling, which is no part of a ResNet as known here"),
        (wrong_class_names, "it names 1 classes, and its last layer has 5 outputs"),
        (same_class_name_twice, "'a' among the names of classes is empty, not printable, or there twice"),
        (class_name_with_a_line_break, r"'e\\nf' among the names of classes is empty, not printable"),
        (class_names_in_a_table, r"its names of classes are \"\{'a': 1\}\", not a list of words"),
        (not_a_number, "its array conv1/kernel holds nan, which no trained network has"),
        (strange_resizing, r"preprocessing with resize that cannot be: \{'height': 64"),
        (one_output, "its last layer has 1 output; a classifier needs one for each of two or more classes"),
        (times_for_numbers, "model_weights/zz in it is not a plain array of numbers"),
        (text_for_numbers, "conv1/conv1/bias in it is not a plain array of numbers"),
        (other_epsilon, "its batch norm has epsilon 0.01, where the network of the tutorials has 0.001"),
        (drop_a_bias, r"not those of a resnet14 of the tutorials: missing: res2a_branch2a/bias$"),
        (damage_layout, r"of another shape: bn2a_branch2a/beta \(8,\), not \(4,\), .* and 10 more$"),
    ],
)
def test_a_file_with_something_wrong_is_refused(tmp_path, damage, message):
    path = tmp_path / "w.h5"
    write_weights(random_weights("resnet14", "tutorial"), path)
    with h5py.File(path, "a") as file:
        damage(file)
    with pytest.raises(UserError, match=message) as caught:
        read_weights(path)
    assert str(caught.value).startswith(str(path))


def test_a_description_that_is_too_large_is_not_unpacked(tmp_path, monkeypatch):
    write_weights(random_weights("resnet14", "tutorial"), tmp_path / "w.keras")
    monkeypatch.setattr("flaxresnet.weights.keras_files.MAX_TEXT", 0)
    with pytest.raises(UserError, match=r"w\.keras: \w+\.json in it is larger than 0 MiB"):
        read_weights(tmp_path / "w.keras")


@pytest.mark.parametrize(
    "damage",
    [
        changed_layer("res2a_1_relu", "ReLU", max_value=None, negative_slope=0.0),
        changed_layer("res2a_branch2a", padding="same"),
        changed_layer("conv1_pad", padding=3),
        changed_layer("avg_pool", strides=None),
    ],
    ids=["ReLU", "same", "padding", "strides"],
)
def test_another_way_to_write_the_same_is_read(tmp_path, damage):
    path, weights = tmp_path / "w.h5", random_weights("resnet14", "tutorial")
    write_weights(weights, path)
    with h5py.File(path, "a") as file:
        damage(file)
    assert_same(read_weights(path), weights)


def test_an_average_over_all_may_be_written_as_one(tmp_path):
    weights = random_weights("resnet18", "tutorial", width=4)  # its last stage gives 2×2
    write_weights(weights, tmp_path / "w.h5")
    with h5py.File(tmp_path / "w.h5", "a") as file:
        changed_layer("avg_pool", "GlobalAveragePooling2D")(file)
        changed_layer("flatten", "Dropout")(file)
    assert_same(read_weights(tmp_path / "w.h5"), weights)


def test_the_last_layer_may_have_any_name(tmp_path):
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


def test_weights_without_names_are_refused_and_those_with_a_description_read(tmp_path):
    weights = random_weights("resnet14", "tutorial")
    write_weights(weights, tmp_path / "w.keras")
    with zipfile.ZipFile(tmp_path / "w.keras") as archive:
        archive.extract("model.weights.h5", tmp_path)
        config = json.loads(archive.read("config.json"))
    store = tmp_path / "model.weights.h5"
    with h5py.File(store, "a") as file:
        for group in file["layers"].values():
            del group["vars"].attrs["name"]
    with pytest.raises(
        UserError, match=r"its layers have no names, as Keras wrote before 3\.6; save the model as \.keras"
    ):
        read_weights(store)
    # Keras lists the layers in its order; ours are listed in another, so they are put right for an old file.
    ordered = topological_order(keras_layers(weights.model, (64, 64), KEY_FORMATS["tutorial"]))
    assert len(ordered) == len(config["config"]["layers"])
    with zipfile.ZipFile(tmp_path / "old.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(keras_config(ordered, "old")))
        archive.write(store, "model.weights.h5")
    assert_same(read_weights(tmp_path / "old.keras"), weights)


def test_another_layers_variables_in_a_store_are_unexpected(tmp_path):
    path = tmp_path / "w.weights.h5"
    write_weights(random_weights("resnet14", "tutorial"), path)
    with h5py.File(path, "a") as file:
        file["layers/normalization/vars/0"] = np.zeros(3, np.float32)
    with pytest.raises(UserError, match=r"not those of a resnet14 of the tutorials: unexpected: normalization/0$"):
        read_weights(path)


def test_the_store_of_keras_2_is_read(tmp_path):
    weights = random_weights("resnet14", "tutorial")
    write_weights(weights, tmp_path / "w.weights.h5")
    with h5py.File(tmp_path / "w.weights.h5", "a") as file:
        file.move("layers", "_layer_checkpoint_dependencies")
    assert_same(read_weights(tmp_path / "w.weights.h5"), weights)


@pytest.mark.parametrize("image", [(32, 32), (64, 160)])
def test_small_and_oblong_images_of_the_tutorials_network(tmp_path, image):
    weights = random_weights("resnet14", "tutorial", width=4, image=image)
    for name in ("w.weights.h5", "w.keras"):
        write_weights(weights, tmp_path / name)
        back = read_weights(tmp_path / name)
        assert_same(back, weights)
        assert (back.preprocessing.height, back.preprocessing.width) == image
    with zipfile.ZipFile(tmp_path / "w.keras") as archive:
        inputs = json.loads(archive.read("config.json"))["config"]["layers"][0]
    assert inputs["config"]["batch_input_shape"] == [None, *image, 3]


@pytest.mark.parity
def test_keras_takes_small_images(reference, tmp_path):
    write_weights(random_weights("resnet14", "tutorial", width=4, image=32), tmp_path / "w.keras")
    assert reference("input_shape", tmp_path / "w.keras") == [None, 32, 32, 3]


@pytest.mark.parity
def test_a_lambda_layer_is_refused_and_not_executed(reference, tmp_path):
    reference("harm", tmp_path)
    for name in ("w.keras", "w.h5"):
        with pytest.raises(UserError, match=rf"{name.replace('.', '[.]')}"):
            read_weights(tmp_path / name)
        assert not (tmp_path / "harm-was-done").exists()


def test_names_in_an_archive_that_lead_out_of_it_write_nothing(tmp_path):
    weights, inside = random_weights("resnet14", "tutorial"), tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    write_weights(weights, inside / "w.keras")
    with zipfile.ZipFile(inside / "w.keras", "a") as archive:
        for name in ("../evil.h5", "/tmp/evil.h5", str(tmp_path / "evil.h5")):
            archive.writestr(name, b"evil")
    before = sorted(tmp_path.rglob("*"))
    assert_same(read_weights(inside / "w.keras"), weights)
    assert sorted(tmp_path.rglob("*")) == before


def rewritten(path, change):
    """Writes `path` again with its members changed: `change` takes and gives name → bytes."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in change(members).items():
            archive.writestr(name, content)


def test_an_archive_that_unpacks_to_far_more_is_refused_before_it_does(tmp_path):
    path = tmp_path / "w.keras"
    write_weights(random_weights("resnet14", "tutorial"), path)
    rewritten(path, lambda members: members | {"model.weights.h5": members["model.weights.h5"] + bytes(2**25)})
    with pytest.raises(
        UserError,
        match=r"w\.keras: it unpacks to 33,\d{3},\d{3} bytes and has [\d,]+; store weights without packing them",
    ):
        read_weights(path)


def test_a_packed_archive_is_read(tmp_path):
    path, weights = tmp_path / "w.keras", random_weights("resnet14", "tutorial")
    write_weights(weights, path)
    rewritten(path, lambda members: members)
    assert_same(read_weights(path), weights)


def test_many_layers_listed_backwards_are_read_in_their_order(tmp_path):
    path, weights = tmp_path / "w.keras", random_weights("resnet14", "tutorial")
    write_weights(weights, path)

    def longer(members):
        config = json.loads(members["config.json"])
        layers = config["config"]["layers"]
        chain = [layers[0]["config"]["name"], *(f"dropout_{i}" for i in range(6000))]
        more = [
            {"class_name": "Dropout", "config": {"name": name}, "inbound_nodes": [[[before, 0, 0, {}]]]}
            for before, name in itertools.pairwise(chain)
        ]
        config["config"]["layers"] = [*layers, *reversed(more)]
        return members | {"config.json": json.dumps(config)}

    rewritten(path, longer)
    start = time.process_time()
    assert_same(read_weights(path), weights)
    assert time.process_time() - start < 10  # looking for what is ready in all of them, again and again, took a minute
