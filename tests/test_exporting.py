"""Exported programs: the same probabilities without flaxresnet, any number of images, and metadata."""

import importlib.util
import json
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
from conftest import blobs
from random_weights import random_weights

import flaxresnet as fr
from flaxresnet.cli import main as commands
from flaxresnet.data.preprocess import Preprocessing
from flaxresnet.exporting import export_onnx, export_stablehlo
from flaxresnet.models.resnet import SIZES
from flaxresnet.reliability.calibration_file import Calibration, digest
from flaxresnet.weights.run_weights import write_run

IMAGES = blobs(5, seed=3).images
# README's example: no import of flaxresnet, and a number of images that export has not compiled.
PROGRAM = """
import json, sys, zipfile
import jax, numpy as np

with zipfile.ZipFile(sys.argv[1]) as archive:
    program = jax.export.deserialize(archive.read("program.stablehlo"))
    about = json.loads(archive.read("metadata.json"))
images = np.load(sys.argv[2])
assert images.shape[1:3] == (about["height"], about["width"])
np.save(sys.argv[3], program.call(images))
assert not any(name.startswith(("flaxresnet", "flax", "orbax")) for name in sys.modules)
"""


@pytest.fixture(scope="module")
def classifier(finished_run):
    return fr.Classifier.load(finished_run)


def read_archive(path):
    """Returns the program and its metadata."""
    with zipfile.ZipFile(path) as archive:
        program = jax.export.deserialize(archive.read("program.stablehlo"))
        return program, json.loads(archive.read("metadata.json"))


@pytest.mark.parametrize("preprocessing", [True, False])
def test_stablehlo_probabilities_are_equal(tmp_path, classifier, preprocessing):
    export_stablehlo(classifier, tmp_path / "signs.zip", preprocessing)
    program, _ = read_archive(tmp_path / "signs.zip")
    images = IMAGES if preprocessing else np.asarray(classifier.preprocessing.preprocess_uint8(IMAGES))
    for count in (1, 5):
        expected = classifier.probabilities(IMAGES[:count])
        np.testing.assert_allclose(program.call(images[:count]), expected, atol=1e-5)


@pytest.mark.parity
def test_stablehlo_needs_only_jax(tmp_path, classifier):
    export_stablehlo(classifier, tmp_path / "signs.zip")
    np.save(tmp_path / "images.npy", IMAGES)
    paths = [str(tmp_path / name) for name in ("signs.zip", "images.npy", "probabilities.npy")]
    subprocess.run([sys.executable, "-c", PROGRAM, *paths], check=True)
    np.testing.assert_allclose(np.load(paths[2]), classifier.probabilities(IMAGES), atol=1e-5)


def test_stablehlo_applies_temperature(tmp_path, classifier):
    calibration = Calibration(digest(classifier.variables["params"]), 2.5, np.zeros((0, 1), np.float16), float("inf"))
    calibrated = fr.Classifier(
        classifier.model, classifier.variables, classifier.class_names, classifier.preprocessing, calibration
    )
    export_stablehlo(calibrated, tmp_path / "signs.zip")
    program, metadata = read_archive(tmp_path / "signs.zip")
    assert metadata["temperature"] == 2.5
    np.testing.assert_allclose(program.call(IMAGES), calibrated.probabilities(IMAGES), atol=1e-5)
    assert np.abs(program.call(IMAGES) - classifier.probabilities(IMAGES)).max() > 0.01


def test_stablehlo_exports_full_width(tmp_path):
    """Covers convolution algorithms that are chosen by the number of images, which is symbolic here."""
    model = fr.ResNet(num_classes=3, stage_sizes=(1, 1), bottleneck=False)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))
    classifier = fr.Classifier(model, variables, ("a", "b", "c"), Preprocessing(64, 64))
    export_stablehlo(classifier, tmp_path / "wide.zip")
    program, _ = read_archive(tmp_path / "wide.zip")
    photos = np.random.default_rng(0).integers(0, 256, (7, 64, 64, 3), np.uint8)
    np.testing.assert_allclose(program.call(photos), classifier.probabilities(photos), atol=1e-5)


def test_stablehlo_metadata_and_platforms(tmp_path, classifier):
    export_stablehlo(classifier, tmp_path / "signs.zip")
    program, metadata = read_archive(tmp_path / "signs.zip")
    assert metadata == {
        "class_names": ["red", "green", "blue"],
        "height": 32,
        "width": 32,
        "input": "uint8 RGB",
        "output": "probabilities",
        "temperature": 1.0,
        "preprocessing": json.loads(json.dumps(classifier.preprocessing.to_json())),
    }
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert str(program.in_avals[0].shape) == "(n, 32, 32, 3)"


@pytest.mark.parity
@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("jax2onnx", "onnxruntime"))), reason="install the `onnx` extra"
)
@pytest.mark.parametrize("preprocessing", [True, False])
def test_onnx_probabilities_are_equal(tmp_path, classifier, preprocessing, caplog):
    import onnx
    import onnxruntime

    with caplog.at_level("WARNING"):
        export_onnx(classifier, tmp_path / "signs.onnx", preprocessing)
    assert not [record for record in caplog.records if record.name.startswith("onnx_ir")]
    operators = [node.op_type for node in onnx.load(tmp_path / "signs.onnx").graph.node]
    assert operators.count("Relu") == 3  # runtimes do not fuse `Max`, which is one more pass over the pixels
    assert "Max" not in operators
    session = onnxruntime.InferenceSession(str(tmp_path / "signs.onnx"))
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == ["red", "green", "blue"]
    images = IMAGES if preprocessing else np.asarray(classifier.preprocessing.preprocess_uint8(IMAGES))
    for count in (1, 5):
        (probabilities,) = session.run(["probabilities"], {"images": images[:count]})
        np.testing.assert_allclose(probabilities, classifier.probabilities(IMAGES[:count]), atol=1e-4)


@pytest.fixture(scope="module")
def cifar_classifier(tmp_path_factory):
    """Returns a classifier with a padded block."""
    run = tmp_path_factory.mktemp("cifar") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "resnet20", SIZES["resnet20"] | {"stage_sizes": (1, 1)})
        write_run(random_weights("resnet20", "torchvision", width=4, image=32, classes=3), run, "a test")
        yield fr.Classifier.load(run)


def test_stablehlo_of_cifar_network(tmp_path, cifar_classifier):
    export_stablehlo(cifar_classifier, tmp_path / "cifar.zip")
    program, _ = read_archive(tmp_path / "cifar.zip")
    np.testing.assert_allclose(program.call(IMAGES), cifar_classifier.probabilities(IMAGES), atol=1e-5)


@pytest.mark.parity
@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("jax2onnx", "onnxruntime"))), reason="install the `onnx` extra"
)
def test_onnx_of_cifar_network(tmp_path, cifar_classifier):
    import onnxruntime

    export_onnx(cifar_classifier, tmp_path / "cifar.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "cifar.onnx"))
    for count in (1, 5):
        (probabilities,) = session.run(["probabilities"], {"images": IMAGES[:count]})
        np.testing.assert_allclose(probabilities, cifar_classifier.probabilities(IMAGES[:count]), atol=1e-4)


def run_export(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["flaxresnet", "export", *map(str, arguments)])
    return commands.main()


def test_export_command_prints_shapes(monkeypatch, capsys, tmp_path, finished_run):
    assert run_export(monkeypatch, finished_run, tmp_path / "s.zip") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == ["input: (n, 32, 32, 3) uint8 RGB", "output: (n, 3) probabilities"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("s.txt", r"s\.txt .* \.zip or \.onnx"), ("no/s.zip", "no/s.zip cannot be written: No such file or directory")],
)
def test_export_command_rejects_path(monkeypatch, tmp_path, finished_run, name, message):
    with pytest.raises(fr.UserError, match=message):
        run_export(monkeypatch, finished_run, tmp_path / name)


def test_export_onnx_names_missing_extra(monkeypatch, tmp_path, classifier):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(fr.UserError, match=r"needs \w+; install it with: pip install 'flaxresnet\[onnx\]'"):
        export_onnx(classifier, tmp_path / "s.onnx")
