"""Loading a run and classifying photos."""

import io
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

NOISE = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def classifier(finished_run):
    return fr.Classifier.load(finished_run)


def test_probabilities_are_softmax_of_logits(classifier):
    images = blobs(5, seed=7).images
    probabilities = classifier.probabilities(images)
    assert probabilities.shape == (5, 3)
    assert probabilities.dtype == np.float32
    logits = np.asarray(jax.jit(classifier.model.apply)(classifier.variables, images / np.float32(255)), np.float64)
    exponentials = np.exp(logits)
    np.testing.assert_allclose(probabilities, exponentials / exponentials.sum(axis=1, keepdims=True), rtol=1e-4)


@pytest.mark.parametrize("count", [0, 1, 2, 31, 32, 33, 70])
def test_any_number_of_images(count, classifier):
    images = blobs(70, seed=7).images
    expected = classifier.probabilities(images)
    actual = classifier.probabilities(images[:count])
    assert actual.shape == (count, 3)
    np.testing.assert_allclose(actual, expected[:count], rtol=1e-4, atol=1e-6)


def test_predict_agrees_across_inputs(classifier, tmp_path):
    image = blobs(3, seed=8).images[1]
    Image.fromarray(image).save(tmp_path / "photo.png")
    prediction = classifier.predict(tmp_path / "photo.png")
    assert prediction == classifier.predict(image)
    assert prediction.label == "green"
    assert prediction.probability == max(prediction.probabilities.values()) == prediction.probabilities["green"]
    assert list(prediction.probabilities) == ["red", "green", "blue"]
    assert sum(prediction.probabilities.values()) == pytest.approx(1)


def test_tta_averages_zooms_and_flips(finished_run):
    classifier = fr.Classifier.load(finished_run)
    assert classifier.uses_hflip is False  # the run was trained with --aug-strength 0
    images = blobs(3, seed=7).images
    _, expected_embeddings = classifier.forward(images)
    apply = jax.jit(classifier.model.apply)
    averages = {}
    for uses_hflip, signs in ((False, (1,)), (True, (1, -1))):
        classifier.uses_hflip = uses_hflip
        averages[uses_hflip], embeddings = classifier.forward(images, tta=True)
        np.testing.assert_array_equal(embeddings, expected_embeddings)
        logits = []
        for zoom in (0.9, 1.0, 1.1):
            for sign in signs:
                logits.append(apply(classifier.variables, sample_view(images, zoom, sign)))
        np.testing.assert_allclose(averages[uses_hflip], np.mean(logits, axis=0), rtol=1e-3, atol=1e-4)
    assert np.abs(averages[True] - averages[False]).max() > 1e-4


def sample_view(images: np.ndarray, zoom: float, sign: int) -> np.ndarray:
    """Samples (n, 32, 32, 3) uint8 images bilinearly in NumPy, with edge padding; returns float32 in [0, 1]."""
    result = images / 255.0
    for axis, scale in ((1, zoom), (2, zoom * sign)):
        source = np.clip((np.arange(32) - 15.5) * scale + 15.5, 0, 31)
        low = np.floor(source).astype(int)
        fraction = np.expand_dims(source - low, [i for i in range(4) if i != axis])
        upper = result.take(np.minimum(low + 1, 31), axis)
        result = result.take(low, axis) * (1 - fraction) + upper * fraction
    return result.astype(np.float32)


def test_calibration_sets_temperature_and_ood(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    uncalibrated = fr.Classifier.load(run)
    images = blobs(40, seed=7).images
    logits, embeddings = uncalibrated.forward(images)
    assert uncalibrated.predict_batch(images).is_ood is None
    assert uncalibrated.predict(images[0]).ood_score is None
    references = normalized_features(embeddings).astype(np.float16)
    calibration = Calibration(digest(uncalibrated.variables["params"]), 2.0, references, 0.0)
    median = float(np.median(calibration.ood_score(embeddings)))
    assert median < np.median(calibration.ood_score(uncalibrated.forward(NOISE)[1]))
    replace(calibration, threshold=median).write(run)
    calibrated = fr.Classifier.load(run)
    expected = np.exp(logits.astype(np.float64) / 2)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(calibrated.probabilities(images), expected, rtol=1e-4, atol=1e-7)
    assert calibrated.predict_batch(images).is_ood.mean() == pytest.approx(0.5, abs=0.05)
    batch = calibrated.predict_batch(NOISE)
    np.testing.assert_array_equal(batch.is_ood, batch.ood_score > np.float32(median))
    furthest = int(batch.ood_score.argmax())
    prediction = calibrated.predict(NOISE[furthest])
    assert prediction.is_ood is True
    assert prediction.ood_score == pytest.approx(float(batch.ood_score[furthest]), rel=1e-3)


def test_infinite_threshold_disables_ood(calibrated_run, tmp_path):
    run = shutil.copytree(calibrated_run, tmp_path / "run")
    replace(fr.Classifier.load(run).calibration, threshold=float("inf")).write(run)
    classifier = fr.Classifier.load(run)
    prediction = classifier.predict(NOISE[0])
    assert prediction.ood_score > 0
    assert prediction.is_ood is None
    assert not classifier.detects_ood
    assert fr.Classifier.load(calibrated_run).predict(NOISE[0]).is_ood is True


def test_predict_resizes_photo(classifier):
    photo = np.asarray(Image.fromarray(blobs(3, seed=8).images[2]).resize((300, 200)))
    assert classifier.predict(photo).label == "blue"


@pytest.mark.parametrize(
    "images",
    [np.zeros((1, 16, 16, 3), np.uint8), np.zeros((32, 32, 3), np.uint8), np.zeros((1, 32, 32, 3), np.float32)],
)
def test_probabilities_reject_other_shapes(images, classifier):
    with pytest.raises(fr.UserError, match=r"this network takes \(n, 32, 32, 3\) uint8"):
        classifier.probabilities(images)


def test_load_chooses_checkpoint(finished_run):
    latest = fr.Classifier.load(finished_run, "latest").variables
    best = fr.Classifier.load(finished_run, "best").variables
    rows = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    best_epoch = max(rows, key=lambda row: (row["test_accuracy"], -row["test_loss"]))["epoch"]
    are_equal = jax.tree.all(jax.tree.map(np.array_equal, latest, best))
    assert are_equal == (best_epoch == len(rows))


def test_load_works_without_training_data(finished_run, tmp_path):
    moved = shutil.copytree(finished_run, tmp_path / "elsewhere")
    config = json.loads((moved / "config.json").read_text())
    config["config"]["data"] = "/not/here"
    (moved / "config.json").write_text(json.dumps(config))
    images = blobs(4, seed=9).images
    expected = fr.Classifier.load(finished_run).probabilities(images)
    np.testing.assert_array_equal(fr.Classifier.load(moved).probabilities(images), expected)


def test_load_rejects_incomplete_run(finished_run, tmp_path):
    with pytest.raises(fr.UserError, match=r"config.json"):
        fr.Classifier.load(tmp_path)
    shutil.copy(finished_run / "config.json", tmp_path)
    with pytest.raises(fr.UserError, match="no checkpoint"):
        fr.Classifier.load(tmp_path)


def test_load_logs_nothing(finished_run, caplog):
    with caplog.at_level("WARNING", logger="absl"):
        fr.Classifier.load(finished_run)
    assert not caplog.records


def test_batch_norm_is_folded(classifier):
    images = np.zeros((1, 32, 32, 3), np.uint8)
    program = classifier._forward_images.lower(classifier._folded_variables, images).as_text()
    assert "rsqrt" not in program  # batch norm divides by the standard deviation


def test_predict_takes_images_and_lists(classifier, tmp_path):
    images = blobs(3, seed=8).images
    expected = [classifier.predict(image) for image in images]
    path = tmp_path / "photo.png"
    Image.fromarray(images[1]).save(path)
    photos = [
        path,
        str(path),
        path.read_bytes(),
        io.BytesIO(path.read_bytes()),
        Image.open(path),
        jax.numpy.array(images[1]),
    ]
    for photo in photos:
        assert classifier.predict(photo).label == "green"
    for several in (list(images), tuple(images), iter(images), images):
        predictions = classifier.predict(several)
        assert [prediction.label for prediction in predictions] == [prediction.label for prediction in expected]
    assert classifier.predict([images[1]])[0].probability == pytest.approx(expected[1].probability, rel=1e-4)
    assert classifier.predict([]) == []
    assert len(classifier.predict([*images] * 20)) == 60


def test_predict_applies_exif_of_images(classifier):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90°
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8)).save(buffer, "jpeg", exif=exif)
    assert classifier.predict(Image.open(buffer)) == classifier.predict(buffer)


@pytest.mark.parametrize("photo", [None, 3, {"image": 1}, [None], object()])
def test_predict_rejects_other_types(photo, classifier):
    with pytest.raises(fr.UserError, match="give a path, an open file, a Pillow image") as caught:
        classifier.predict(photo)
    assert "\n" not in str(caught.value)


def test_forward_rejects_lists(classifier):
    with pytest.raises(fr.UserError, match=r"images are a list, but this network takes an array"):
        classifier.probabilities([blobs(1, seed=8).images[0]])
