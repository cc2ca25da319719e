"""Programs that run without flaxresnet: the same answers, any number of images, all that a caller has to know."""

import importlib.util
import json
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
from conftest import blobs

import flaxresnet as fr
from flaxresnet.cli import main as commands
from flaxresnet.data.preprocess import Preprocessing
from flaxresnet.exporting import export_stablehlo
from flaxresnet.reliability.calibration_file import Calibration, digest

IMAGES = blobs(5, seed=3).images
# What README shows: nothing of flaxresnet, and a number of images that the program has not seen before.
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


def program_in(path):
    with zipfile.ZipFile(path) as archive:
        return jax.export.deserialize(archive.read("program.stablehlo"))


@pytest.mark.parametrize("preprocessing", [True, False])
def test_stablehlo_program_answers_alike(tmp_path, classifier, preprocessing):
    export_stablehlo(classifier, tmp_path / "signs.zip", preprocessing)
    images = IMAGES if preprocessing else np.asarray(classifier.preprocessing.preprocess_uint8(IMAGES))
    for count in (1, 5):
        answers = program_in(tmp_path / "signs.zip").call(images[:count])
        np.testing.assert_allclose(answers, classifier.probabilities(IMAGES[:count]), atol=1e-5)


@pytest.mark.parity
def test_stablehlo_answers_alike_with_nothing_but_jax(tmp_path, classifier):
    export_stablehlo(classifier, tmp_path / "signs.zip")
    np.save(tmp_path / "images.npy", IMAGES)
    paths = [str(tmp_path / name) for name in ("signs.zip", "images.npy", "answers.npy")]
    subprocess.run([sys.executable, "-c", PROGRAM, *paths], check=True)
    np.testing.assert_allclose(np.load(paths[2]), classifier.probabilities(IMAGES), atol=1e-5)


def test_a_calibrated_run_keeps_its_temperature(tmp_path, classifier):
    calibration = Calibration(digest(classifier.variables["params"]), 2.5, np.zeros((0, 1), np.float16), float("inf"))
    sure = fr.Classifier(
        classifier.model, classifier.variables, classifier.class_names, classifier.preprocessing, calibration
    )
    export_stablehlo(sure, tmp_path / "signs.zip")
    with zipfile.ZipFile(tmp_path / "signs.zip") as archive:
        program = jax.export.deserialize(archive.read("program.stablehlo"))
        assert json.loads(archive.read("metadata.json"))["temperature"] == 2.5
    np.testing.assert_allclose(program.call(IMAGES), sure.probabilities(IMAGES), atol=1e-5)
    assert np.abs(program.call(IMAGES) - classifier.probabilities(IMAGES)).max() > 0.01


def test_a_network_of_full_width_can_be_written_for_any_number_of_images(tmp_path):
    """The forms of its convolutions are chosen by the number of images, which is a symbol here."""
    model = fr.ResNet(num_classes=3, stage_sizes=(1, 1), bottleneck=False)
    images = np.zeros((1, 64, 64, 3), np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    wide = fr.Classifier(model, variables, ("a", "b", "c"), Preprocessing(64, 64))
    export_stablehlo(wide, tmp_path / "wide.zip")
    program = program_in(tmp_path / "wide.zip")
    photos = np.random.default_rng(0).integers(0, 256, (7, 64, 64, 3), np.uint8)
    np.testing.assert_allclose(program.call(photos), wide.probabilities(photos), atol=1e-5)


def test_the_archive_says_what_a_caller_has_to_know_and_runs_on_three_platforms(tmp_path, classifier):
    export_stablehlo(classifier, tmp_path / "signs.zip")
    with zipfile.ZipFile(tmp_path / "signs.zip") as archive:
        about = json.loads(archive.read("metadata.json"))
        program = jax.export.deserialize(archive.read("program.stablehlo"))
    assert about == {
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
def test_onnx_answers_alike(tmp_path, classifier, preprocessing, caplog):
    import onnx
    import onnxruntime

    from flaxresnet.exporting import export_onnx

    with caplog.at_level("WARNING"):
        export_onnx(classifier, tmp_path / "signs.onnx", preprocessing)
    assert not [record for record in caplog.records if record.name.startswith("onnx_ir")]
    kinds = [node.op_type for node in onnx.load(tmp_path / "signs.onnx").graph.node]
    assert kinds.count("Relu") == 3  # `Max` is one more pass over the pixels, which no runtime fuses
    assert "Max" not in kinds
    session = onnxruntime.InferenceSession(str(tmp_path / "signs.onnx"))
    about = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert about["class_names"] == ["red", "green", "blue"]
    images = IMAGES if preprocessing else np.asarray(classifier.preprocessing.preprocess_uint8(IMAGES))
    for count in (1, 5):
        (answers,) = session.run(["probabilities"], {"images": images[:count]})
        np.testing.assert_allclose(answers, classifier.probabilities(IMAGES[:count]), atol=1e-4)


def command(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["flaxresnet", "export", *map(str, words)])
    return commands.main()


def test_the_command_says_what_it_wrote(monkeypatch, capsys, tmp_path, finished_run):
    assert command(monkeypatch, finished_run, tmp_path / "s.zip") == 0
    assert "MiB: (n, 32, 32, 3) uint8 RGB → (n, 3) probabilities" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("s.txt", "s.txt does not say what to write; let its name end in .zip or .onnx"),
        ("no/s.zip", "no/s.zip cannot be written: No such file or directory"),
    ],
)
def test_where_nothing_can_be_written_it_says_so(monkeypatch, tmp_path, finished_run, name, message):
    with pytest.raises(fr.UserError) as caught:
        command(monkeypatch, finished_run, tmp_path / name)
    assert str(caught.value).endswith(message)


def test_without_the_extra_it_says_which(monkeypatch, tmp_path, finished_run):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(fr.UserError, match=r"needs \w+; install it with: pip install 'flaxresnet\[onnx\]'"):
        command(monkeypatch, finished_run, tmp_path / "s.onnx")
