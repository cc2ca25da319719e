"""A run made for other photos: its statistics are theirs, its answers better, the rest as it was."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import blobs
from matplotlib.figure import Figure
from PIL import Image

import flaxresnet as fr
from flaxresnet.adabn import compute_bn_stats
from flaxresnet.data.dataset import Splits
from flaxresnet.data.hdf5 import write_hdf5
from flaxresnet.runs.checkpoint_manager import load_run


def in_fog(count: int, seed: int) -> fr.Dataset:
    """The classes with a third of their contrast."""
    data = blobs(count, seed)
    return replace(data, images=(data.images / 3 + 150).astype(np.uint8))


@pytest.fixture
def shell(monkeypatch, capsys):
    from flaxresnet.cli import main as commands

    def run(*words):
        monkeypatch.setattr("sys.argv", ["flaxresnet", *map(str, words)])
        status = commands.entry_point()
        return status, *capsys.readouterr()

    return run


def test_photos_of_another_place_are_known_without_their_labels(finished_run, tmp_path):
    test = in_fog(60, seed=5)
    before = (fr.Classifier.load(finished_run).probabilities(test.images).argmax(axis=1) == test.labels).mean()
    assert fr.adapt(finished_run, in_fog(24, seed=6).images, tmp_path / "here") is None
    after = (fr.Classifier.load(tmp_path / "here").probabilities(test.images).argmax(axis=1) == test.labels).mean()
    assert before < 0.7
    assert after > before + 0.2


def test_statistics_are_the_photos_and_the_weights_as_they_were(finished_run, tmp_path):
    images = in_fog(24, seed=6).images
    fr.adapt(finished_run, images, tmp_path / "here")
    (info, old), (_, new) = load_run(finished_run), load_run(tmp_path / "here")
    assert jax.tree.all(jax.tree.map(np.array_equal, old["params"], new["params"]))
    # The first convolution by hand, in float64: 7×7, stride 2, three zeros around.
    kernel, bias = (np.asarray(old["params"]["conv1"][name], np.float64) for name in ("kernel", "bias"))
    padded = np.pad(images / 255, ((0, 0), (3, 3), (3, 3), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (7, 7), axis=(1, 2))[:, ::2, ::2]
    features = np.einsum("nhwcij,ijcf->nhwf", windows, kernel) + bias
    stats = new["batch_stats"]["bn_conv1"]
    np.testing.assert_allclose(stats["mean"], features.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats["var"], features.var((0, 1, 2)), rtol=1e-3, atol=1e-6)
    assert not np.allclose(stats["mean"], old["batch_stats"]["bn_conv1"]["mean"], rtol=0.1)
    assert info.preprocessing == load_run(tmp_path / "here")[0].preprocessing


def test_what_the_readme_says_of_photos_without_labels_helps(shell, finished_run, tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / "README.md").read_text()
    adapting, predicting = re.search(r"badly\?\*\*.*?```bash\n(.*?)\n```", page, re.DOTALL)[1].splitlines()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    data = in_fog(30, seed=5)
    for index, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
        Image.fromarray(image).save(f"photos/{index:02}-{data.class_names[label]}.png")
    shutil.copytree(finished_run, tmp_path / "runs" / "signs")

    def right(line):
        lines = shell(*shlex.split(line)[1:])[1].splitlines()
        return sum(line.split("  ")[1] in line.split("  ")[0] for line in lines)

    before = right(predicting.replace("here", "signs"))
    assert shell(*shlex.split(adapting)[1:])[0] == 0
    assert before <= 20  # one class of three is lost
    assert right(predicting) > before + 5


@pytest.mark.parametrize(("count", "form"), [(33, (2, 17)), (192, (6, 32))])
def test_all_photos_count_in_batches_of_all_kinds(count, form, finished_run, monkeypatch):
    seen = []
    monkeypatch.setattr("flaxresnet.adabn.measure_batch_stats", lambda *arguments, **_: seen.append(arguments[2]))
    monkeypatch.setattr("jax.jit", lambda function: function)
    classifier = fr.Classifier.load(finished_run)
    compute_bn_stats(classifier.model, {}, classifier.preprocessing, np.arange(count).reshape(count, 1, 1, 1))
    batches = seen[0][..., 0, 0, 0]
    assert batches.shape == form
    assert len(np.unique(batches)) == count
    for kinds in (batches % 6, batches * 6 // count):  # of photos in turn through six classes, and sorted by class
        assert all(len(np.unique(batch)) >= 5 for batch in kinds)


def test_of_many_images_512_count(finished_run, tmp_path, monkeypatch):
    seen = []

    def measure(model, params, preprocessing, images):
        seen.append(images)
        return compute_bn_stats(model, params, preprocessing, images[:24])

    monkeypatch.setattr("flaxresnet.adabn.compute_bn_stats", measure)
    images = blobs(600, seed=5).images
    fr.adapt(finished_run, images, tmp_path / "here")
    assert len(seen[0]) == 512
    np.testing.assert_array_equal(seen[0][[0, -1]], images[[0, -1]])
    assert load_run(tmp_path / "here")[0].data["adapted"].endswith("adapted to 512 photos")


def test_a_run_whose_statistics_were_not_to_change_is_adapted_too(finished_run, tmp_path):
    kept = shutil.copytree(finished_run, tmp_path / "kept")
    described = json.loads((kept / "config.json").read_text())
    described["config"] |= {"init": str(finished_run), "freeze_bn_stats": True, "freeze": "backbone"}
    (kept / "config.json").write_text(json.dumps(described))
    fr.adapt(tmp_path / "kept", in_fog(24, seed=6).images, tmp_path / "here")
    info, variables = load_run(tmp_path / "kept")
    assert info.model().freeze_bn_stats
    assert info.model().frozen
    plain = info.model().clone(frozen=(), freeze_bn_stats=False, momentum=0.0)
    images = jnp.asarray(in_fog(24, seed=6).images / 255, jnp.float32)
    apply = jax.jit(partial(plain.apply, train=True, mutable=["batch_stats"]))
    _, expected = apply({"params": variables["params"]}, images)
    found = load_run(tmp_path / "here")[1]["batch_stats"]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), found, expected["batch_stats"])


def test_what_a_run_knows_of_its_training_images_goes_along_and_its_report_leaves_it(
    shell, calibrated_run, tmp_path, monkeypatch
):
    fr.adapt(calibrated_run, in_fog(24, seed=6).images, tmp_path / "here")
    knowing, here = fr.Classifier.load(calibrated_run), fr.Classifier.load(tmp_path / "here")
    assert here.temperature == knowing.temperature
    assert here.predict_batch(np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)).is_ood.all()
    assert here.uses_hflip == knowing.uses_hflip
    assert fr.evaluate(tmp_path / "here").source == fr.evaluate(calibrated_run).source
    config = replace(load_run(tmp_path / "here")[0].config, epochs=9)
    with pytest.raises(
        fr.UserError, match=r"here holds the weights of .*run, adapted to 24 photos, which cannot be resumed"
    ):
        fr.fit(config, quiet=True)
    # To the new statistics the run's own images are the strange ones: its report must not learn from them.
    kept = (tmp_path / "here" / "calibration.safetensors").read_bytes()
    assert kept == (calibrated_run / "calibration.safetensors").read_bytes()
    for chart in ("learning_curves", "confusion_chart", "reliability_chart"):
        monkeypatch.setattr(f"flaxresnet.report.text.{chart}", lambda *_: Figure(figsize=(1, 1)))
    status, out, _ = shell("report", tmp_path / "here")
    assert status == 0
    assert out.splitlines()[1:] == [
        "the run's own calibration stays as it is: it is that of before the run was adapted to other photos"
    ]
    assert (tmp_path / "here" / "calibration.safetensors").read_bytes() == kept
    page = (tmp_path / "here" / "report" / "index.html").read_text()
    assert "adapted to 24 photos" in page
    assert "The training of its weights again:" in page
    assert "The run was adapted to photos of another place." in page
    assert "flaxresnet adapt" not in page


def test_photos_of_one_class_are_warned_of_if_they_are_known(calibrated_run, finished_run, tmp_path, monkeypatch):
    as_it_was = load_run(finished_run)[1]["batch_stats"]
    monkeypatch.setattr("flaxresnet.adabn.compute_bn_stats", lambda *_: as_it_was)  # which do not count for it
    data = blobs(72, seed=5)
    green = data.images[data.labels == 1]
    warning = fr.adapt(calibrated_run, green, tmp_path / "green")
    known = len(green) - int(fr.Classifier.load(calibrated_run).predict_batch(green).is_ood.sum())
    assert warning == (
        f"{known} of {known} photos that are like the training images are taken for 'green'; "
        "adapt to photos of all classes instead"
    )
    mixed = np.concatenate([green, in_fog(24, seed=6).images])
    assert fr.adapt(calibrated_run, mixed, tmp_path / "mixed") == warning
    assert fr.adapt(calibrated_run, data.images[:24], tmp_path / "all") is None
    assert fr.adapt(finished_run, green, tmp_path / "unknown") is None
    foggy = in_fog(72, seed=5).images[data.labels == 1]
    assert fr.Classifier.load(calibrated_run).predict_batch(foggy).is_ood.all()
    assert fr.adapt(calibrated_run, foggy, tmp_path / "foggy") is None


def test_too_few_photos_and_folders_that_are_there_are_refused(finished_run, tmp_path):
    images = in_fog(15, seed=6).images
    with pytest.raises(fr.UserError, match=r"too few photos to adapt to \(15\); give 16 or more, of all"):
        fr.adapt(finished_run, images, tmp_path / "here")
    with pytest.raises(fr.UserError, match="exists and is not overwritten; name another folder"):
        fr.adapt(finished_run, images, tmp_path)
    with pytest.raises(fr.UserError, match=r"this network takes \(n, 32, 32, 3\) uint8"):
        fr.adapt(finished_run, np.zeros((16, 8, 8, 3), np.uint8), tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_photos_and_data_are_adapted_to_from_the_command_line(shell, finished_run, data_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    images = in_fog(16, seed=6).images
    for index, image in enumerate(images):
        Image.fromarray(image).save(f"photos/{index:02}.png")
    (tmp_path / "photos" / "junk.jpg").write_text("no picture")
    status, out, err = shell("adapt", finished_run, "here", "photos")
    assert status == 1, "one could not be read"
    assert "photos/junk.jpg cannot be read" in err
    assert out.splitlines()[0] == f"here: {finished_run}, adapted to 16 photos"
    assert out.splitlines()[1] == "(all classes have to be among them: others would be taken for those that are)"
    fr.adapt(finished_run, images, "same")
    same = jax.tree.map(np.array_equal, load_run("here")[1], load_run("same")[1])
    assert jax.tree.all(same)
    assert shell("evaluate", "here", "--data", data_folder)[0] == 0
    as_it_was = load_run(finished_run)[1]["batch_stats"]
    monkeypatch.setattr("flaxresnet.adabn.compute_bn_stats", lambda *_: as_it_was)
    assert "adapted to 63 photos\n" in shell("adapt", finished_run, "of-data", "--data", data_folder)[1]


def test_of_data_with_many_images_512_count_from_all_over_it(finished_run, monkeypatch):
    from flaxresnet.cli import adapt as command

    train, test = (replace(blobs(count, 1), images=np.zeros((count, 32, 32, 3), np.uint8)) for count in (1027, 102))
    for first, some in ((0, train), (1027, test)):
        some.images[:, 0, 0, 0], some.images[:, 0, 0, 1] = np.divmod(np.arange(first, first + len(some)), 256)
    monkeypatch.setattr(command, "load_data", lambda *_: Splits(train, test, "many"))
    arguments = command.Arguments(str(finished_run), "here", data="many")
    images = command.load_dataset_images(arguments, fr.Classifier.load(finished_run).preprocessing)
    places = images[:, 0, 0, 0].astype(int) * 256 + images[:, 0, 0, 1]
    np.testing.assert_array_equal(places, np.linspace(0, 1128, 512).astype(int))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["new"], "no photo given to adapt to; name some after the new run's folder (new), or give --data"),
        (["new", "a.png", "--data", "d"], "a.png and --data d are two things to adapt to; give one of them"),
        (
            ["new", "a.png", "--max-corrupt-fraction", "0.1"],
            "--max-corrupt-fraction 0.1 is of --data; photos that cannot be read are named and",
        ),
        (["there"], "there exists and is not overwritten; name another folder"),
        (["n" * 300, "a.png"], f"{'n' * 300} cannot be written: File name too long"),
        (["new", "a.png"], "too few photos to adapt to (0); give 16 or more, of all classes"),
        (["new", "--data", "larger.h5"], "has images of (48, 48) pixels, but the network takes (32, 32)"),
        (["new", "a.png", "--checkpoint", "third"], "--checkpoint must be 'latest' or 'best', not 'third'"),
    ],
)
def test_a_mistake_is_a_sentence(words, said, shell, finished_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    write_hdf5(Path("larger.h5"), "test", blobs(20, seed=5, size=48))
    status, _, err = shell("adapt", finished_run, *words)
    assert status == 2
    assert said in err.replace("\n", " ")
    assert not Path("new").exists()


def test_the_weights_are_those_of_the_checkpoint_that_is_asked_for(finished_run, tmp_path, monkeypatch):
    asked = []
    load = fr.Classifier.load
    monkeypatch.setattr(fr.Classifier, "load", lambda run, which="latest": asked.append(which) or load(run, which))
    fr.adapt(finished_run, in_fog(24, seed=6).images, tmp_path / "best", "best")
    assert asked == ["best"]


def test_of_photos_of_one_class_the_command_line_warns(shell, calibrated_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = blobs(48, seed=5)
    for index, image in enumerate(data.images[data.labels == 1]):
        Image.fromarray(image).save(f"{index:02}.png")
    assert shell("adapt", calibrated_run, "here", "*.png")[1].splitlines()[1].startswith("warning: 1")
