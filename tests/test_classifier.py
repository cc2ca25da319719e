"""A saved run that answers."""

import json
import shutil

import jax
import numpy as np
import pytest
from conftest import blobs
from PIL import Image

import flaxresnet as fr


@pytest.fixture(scope="module")
def classifier(finished_run):
    return fr.Classifier.load(finished_run)


def test_probabilities_are_the_softmax_of_the_networks_logits(classifier):
    images = blobs(5, seed=7).images
    probabilities = classifier.probabilities(images)
    assert probabilities.shape == (5, 3)
    assert probabilities.dtype == np.float32
    logits = np.asarray(jax.jit(classifier.model.apply)(classifier.variables, images / np.float32(255)), np.float64)
    exponentials = np.exp(logits)
    np.testing.assert_allclose(probabilities, exponentials / exponentials.sum(axis=1, keepdims=True), rtol=1e-4)


@pytest.mark.parametrize("count", [0, 1, 2, 31, 32, 33, 70])
def test_any_number_of_images_is_answered_in_order(count, classifier):
    images = blobs(70, seed=7).images
    everything = classifier.probabilities(images)
    some = classifier.probabilities(images[:count])
    assert some.shape == (count, 3)
    np.testing.assert_allclose(some, everything[:count], rtol=1e-4, atol=1e-6)


def test_a_photo_is_answered_as_its_pixels_are(classifier, tmp_path):
    image = blobs(3, seed=8).images[1]
    Image.fromarray(image).save(tmp_path / "photo.png")
    answer = classifier.predict(tmp_path / "photo.png")
    assert answer == classifier.predict(image)
    assert answer.label == "green"
    assert answer.probability == max(answer.probabilities.values()) == answer.probabilities["green"]
    assert list(answer.probabilities) == ["red", "green", "blue"]
    assert sum(answer.probabilities.values()) == pytest.approx(1)


def test_a_photo_of_any_size_is_answered(classifier):
    large = np.asarray(Image.fromarray(blobs(3, seed=8).images[2]).resize((300, 200)))
    assert classifier.predict(large).label == "blue"


@pytest.mark.parametrize(
    "images",
    [np.zeros((1, 16, 16, 3), np.uint8), np.zeros((32, 32, 3), np.uint8), np.zeros((1, 32, 32, 3), np.float32)],
)
def test_images_of_another_form_are_refused(images, classifier):
    with pytest.raises(fr.UserError, match=r"this network takes \(n, 32, 32, 3\) uint8"):
        classifier.probabilities(images)


def test_best_and_latest_checkpoints_can_be_chosen(finished_run):
    latest, best = (fr.Classifier.load(finished_run, which) for which in ("latest", "best"))
    rows = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    same = jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), latest.variables, best.variables))
    best_epoch = max(rows, key=lambda row: (row["test_accuracy"], -row["test_loss"]))["epoch"]
    assert same == (best_epoch == len(rows))


def test_a_run_moved_elsewhere_without_its_data_still_answers(finished_run, tmp_path):
    moved = shutil.copytree(finished_run, tmp_path / "elsewhere")
    config = json.loads((moved / "config.json").read_text())
    config["config"]["data"] = "/not/here"
    (moved / "config.json").write_text(json.dumps(config))
    images = blobs(4, seed=9).images
    expected = fr.Classifier.load(finished_run).probabilities(images)
    np.testing.assert_array_equal(fr.Classifier.load(moved).probabilities(images), expected)


def test_a_folder_without_a_run_or_without_a_checkpoint_is_refused(finished_run, tmp_path):
    with pytest.raises(fr.UserError, match=r"holds no run \(no config.json\)"):
        fr.Classifier.load(tmp_path)
    shutil.copy(finished_run / "config.json", tmp_path)
    with pytest.raises(fr.UserError, match="holds no checkpoint yet"):
        fr.Classifier.load(tmp_path)
