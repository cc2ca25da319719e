"""Keras's files against the real Keras, there and back, and what is refused."""

import dataclasses
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from networks import after_one_pass, assert_close, assert_same, logits_of, random_images, random_weights, without_relu

from flaxresnet.errors import UserError
from flaxresnet.interop.files import read_weights, write_weights
from flaxresnet.interop.keras_model import in_keras_order, keras_config, keras_layers
from flaxresnet.interop.run_folders import read_run, write_run
from flaxresnet.interop.worlds import WORLDS
from flaxresnet.models.resnet import SIZES

KINDS = ("keras", "h5", "weights.h5")
real_keras = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("keras", "torch"))), reason="install keras and torch (the `peers` extra)"
)
LONG = pytest.mark.skipif("KILLS" not in os.environ, reason="takes a minute; set KILLS")


def reference(*arguments) -> None:
    script = Path(__file__).with_name("keras_reference.py")
    done = subprocess.run([sys.executable, script, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@real_keras
@pytest.mark.parametrize(
    ("network", "size", "variant"),
    [
        ("tutorial", "resnet50", "tutorial"),
        ("ResNet50", "resnet50", "keras"),
        # Blocks of deeper ones are named by the same rule; below, all sizes go there and come back, but narrower.
        pytest.param("ResNet101", "resnet101", "keras", marks=LONG),
        pytest.param("ResNet152", "resnet152", "keras", marks=LONG),
    ],
)
def test_keras_and_we_read_each_others_files_and_agree(tmp_path, network, size, variant):
    images = random_images()
    np.save(tmp_path / "images.npy", images)
    reference("make", tmp_path, network)
    weights = read_weights(tmp_path / "theirs.keras")
    assert (weights.network.model, weights.network.variant, weights.num_classes) == (size, variant, 5)
    assert (weights.preprocessing.height, weights.preprocessing.width) == (64, 64)
    for kind in KINDS:
        assert_same(read_weights(tmp_path / f"theirs.{kind}"), weights)
    expected = np.load(tmp_path / "logits.npy")
    assert_close(logits_of(weights, images), expected)

    stats, moving = after_one_pass(weights, images), np.load(tmp_path / "moving.npz")
    assert len(moving) == len(stats)
    for name, array in stats.items():
        assert_close(array, moving[WORLDS[variant].key(name, 5)])

    # Of the deepest one file is enough: the test below opens all of them in Keras.
    for kind in KINDS if size == "resnet50" else ("h5",):
        write_weights(weights, tmp_path / f"ours.{kind}")
    reference("check", tmp_path, network)
    loaded = sorted(tmp_path.glob("loaded_*.npy"))
    assert len(loaded) == {"tutorial": 5, "ResNet50": 6}.get(network, 3)
    for path in loaded:
        np.testing.assert_array_equal(np.load(path), expected, err_msg=path.name)


@pytest.mark.parametrize("variant", ["tutorial", "keras"])
@pytest.mark.parametrize("size", SIZES)
def test_every_network_comes_back_as_it_went_and_keras_answers_and_learns_alike(tmp_path, size, variant):
    keras = pytest.importorskip("keras", reason="install keras (the `test` extra)")
    weights, images = random_weights(size, variant, width=32 if "next" in size else 8), random_images()
    for kind in KINDS:
        path = tmp_path / f"weights.{kind}"
        write_weights(weights, path)
        back = read_weights(path)
        assert_same(back, weights)
        assert back.preprocessing == weights.preprocessing
        assert back.class_names == weights.class_names
    write_run(weights, tmp_path / "run", "a test")
    assert_same(read_run(tmp_path / "run"), weights)

    keys = {WORLDS[variant].key(name, 5): array for name, array in weights.table.items()}
    model = keras.saving.load_model(tmp_path / "weights.keras", compile=False)
    for kind in KINDS:
        if kind == "h5" and size == "resnet18":  # the description in it is the one in .keras
            model = keras.saving.load_model(tmp_path / "weights.h5", compile=False)
        elif kind != "keras":
            for variable in model.variables:
                variable.assign(np.zeros(variable.shape))
            model.load_weights(tmp_path / f"weights.{kind}")
        held = {f"{layer.name}/{v.name}": v.numpy() for layer in model.layers for v in layer.variables}
        assert held.keys() == keys.keys()
        for key, array in keys.items():
            np.testing.assert_array_equal(held[key], array, err_msg=key)

    model.layers[-1].activation = None
    # Called op by op: compiling the whole takes a minute for the deepest.
    inputs = {model.inputs[0].name: images}
    assert_close(np.asarray(model(inputs, training=False)), logits_of(weights, images))
    model(inputs, training=True)
    model.save_weights(tmp_path / "passed.weights.h5")
    table = read_weights(tmp_path / "passed.weights.h5").table
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
        (damage_layout, r"of another shape: bn2a_branch1/beta \(32,\), not \(16,\), .* and 22 more$"),
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
    monkeypatch.setattr("flaxresnet.interop.keras_files.LARGEST_TEXT", 0)
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
    ordered = in_keras_order(keras_layers(weights.model, (64, 64), WORLDS["tutorial"]))
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


def test_small_and_oblong_images_of_the_tutorials_network(tmp_path):
    keras = pytest.importorskip("keras", reason="install keras (the `test` extra)")
    small = random_weights("resnet18", "tutorial", width=4, image=32)
    write_weights(small, tmp_path / "w.keras")
    assert keras.saving.load_model(tmp_path / "w.keras", compile=False).input_shape == (None, 32, 32, 3)
    oblong = dataclasses.replace(
        random_weights("resnet18", "tutorial", width=4, image=(64, 160)),
        preprocessing=dataclasses.replace(small.preprocessing, height=64, width=160),
    )
    write_weights(oblong, tmp_path / "w.weights.h5")
    assert_same(read_weights(tmp_path / "w.weights.h5"), oblong)


def test_a_lambda_layer_is_refused_and_not_executed(tmp_path, monkeypatch):
    keras = pytest.importorskip("keras", reason="install keras (the `test` extra)")
    monkeypatch.chdir(tmp_path)
    harm = keras.layers.Lambda(lambda x: (__import__("os").mkdir("harm-was-done"), x)[1], output_shape=(8, 8, 3))
    model = keras.Sequential([keras.Input((8, 8, 3)), harm, keras.layers.Flatten(), keras.layers.Dense(3)])
    for name in ("w.keras", "w.h5"):
        model.save(name)
        if (done := Path("harm-was-done")).exists():  # by Keras, when the model was built
            done.rmdir()
        with pytest.raises(UserError, match=rf"{name.replace('.', '[.]')}"):
            read_weights(name)
        assert not done.exists()


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
