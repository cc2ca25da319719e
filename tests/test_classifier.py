"""A saved run that answers."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import blobs
from PIL import Image

import flaxresnet as fr
from flaxresnet.reliability.calibration_file import Calibration, digest
from flaxresnet.reliability.ood import normalized_features


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


def test_views_are_those_that_training_had(finished_run):
    classifier = fr.Classifier.load(finished_run)
    assert classifier.uses_hflip is False  # it was trained with --aug-strength 0
    images = blobs(3, seed=7).images
    _, embeddings = classifier.forward(images)
    apply, seen = jax.jit(classifier.model.apply), {}
    for uses_hflip in (False, True):
        classifier.uses_hflip = uses_hflip
        averaged, same = classifier.forward(images, tta=True)
        np.testing.assert_array_equal(same, embeddings)
        shapes = [(zoom, side) for zoom in (0.9, 1.0, 1.1) for side in ((1, -1) if uses_hflip else (1,))]
        views = [apply(classifier.variables, viewed(images, *shape)) for shape in shapes]
        assert len(views) == (6 if uses_hflip else 3)
        np.testing.assert_allclose(averaged, np.mean(views, axis=0), rtol=1e-3, atol=1e-4)
        seen[uses_hflip] = averaged
    assert np.abs(seen[True] - seen[False]).max() > 1e-4


def viewed(images: np.ndarray, zoom: float, side: int) -> np.ndarray:
    """Bilinear sampling by NumPy: (n, 32, 32, 3) uint8 → float32 in [0, 1]; positions beyond the edge repeat it."""
    result = images / 255.0
    for axis, sign in ((1, 1), (2, side)):
        place = np.clip((np.arange(32) - 15.5) * zoom * sign + 15.5, 0, 31)
        low = np.floor(place).astype(int)
        share = (place - low).reshape([-1 if i == axis else 1 for i in range(4)])
        above = result.take(np.minimum(low + 1, 31), axis)
        result = result.take(low, axis) * (1 - share) + above * share
    return result.astype(np.float32)


def test_a_calibrated_run_answers_with_its_temperature_and_knows_strange_photos(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    before = fr.Classifier.load(run)
    images = blobs(40, seed=7).images
    logits, embeddings = before.forward(images)
    assert before.predict_batch(images).is_ood is None
    assert before.predict(images[0]).ood_score is None
    noise = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    calibration = Calibration(
        digest(before.variables["params"]), 2.0, normalized_features(embeddings).astype(np.float16), 0.0
    )
    usual, odd = (np.median(calibration.ood_score(before.forward(some)[1])) for some in (images, noise))
    assert usual < odd
    replace(calibration, threshold=float(usual)).write(run)
    after = fr.Classifier.load(run)
    expected = np.exp(logits.astype(np.float64) / 2)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(after.probabilities(images), expected, rtol=1e-4, atol=1e-7)
    assert after.predict_batch(images).is_ood.mean() == pytest.approx(0.5, abs=0.05)
    answers = after.predict_batch(noise)
    np.testing.assert_array_equal(answers.is_ood, answers.ood_score > np.float32(usual))
    strangest = int(answers.ood_score.argmax())
    answer = after.predict(noise[strangest])
    assert answer.is_ood is True
    assert answer.ood_score == pytest.approx(float(answers.ood_score[strangest]), rel=1e-3)


def test_with_too_few_test_images_to_tell_no_photo_is_called_strange_or_not(calibrated_run, tmp_path):
    run = shutil.copytree(calibrated_run, tmp_path / "run")
    replace(fr.Classifier.load(run).calibration, threshold=float("inf")).write(run)
    classifier, noise = fr.Classifier.load(run), np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    answer = classifier.predict(noise)
    assert answer.ood_score > 0
    assert answer.is_ood is None
    assert not classifier.detects_ood
    assert fr.Classifier.load(calibrated_run).predict(noise).is_ood is True


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
    same = jax.tree.all(jax.tree.map(np.array_equal, latest.variables, best.variables))
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


def test_nothing_is_logged_where_a_run_is_opened(finished_run, caplog):
    with caplog.at_level("WARNING", logger="absl"):
        fr.Classifier.load(finished_run)
    assert not caplog.records


def test_photos_are_answered_with_batch_norm_folded_into_the_convolutions(classifier):
    program = classifier._apply.lower(classifier._folded, np.zeros((1, 32, 32, 3), np.uint8)).as_text()
    assert "rsqrt" not in program  # which batch norm divides by a standard deviation with
