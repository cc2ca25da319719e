"""The report of a run: its data, its page, and TensorBoard and the profiler beside it."""

import base64
import contextlib
import html
import io
import json
import re
import shlex
import shutil
import sys
from dataclasses import replace
from html.parser import HTMLParser

import h5py
import numpy as np
import pytest
from browser import chromium, listen
from conftest import TINY_CONFIG, blobs
from PIL import Image

import flaxresnet as fr
from flaxresnet.cli import main as commands
from flaxresnet.cli.parser import parse
from flaxresnet.data.dataset import Splits
from flaxresnet.data.hdf5 import write_hdf5
from flaxresnet.reliability.calibration import fit_temperature
from flaxresnet.reliability.calibration_file import Calibration, digest
from flaxresnet.reliability.corruptions import CORRUPTIONS
from flaxresnet.reliability.cross_fit import split_halves
from flaxresnet.report.collect import collect_report_data, most_confident_mistakes
from flaxresnet.report.text import train_command, write_report
from flaxresnet.runs.run_dir import RunDir
from flaxresnet.training import tensorboard
from flaxresnet.training.profiler import StepProfiler
from flaxresnet.visualize.plot_style import replace_unrenderable

PICTURES = {f"{name}{theme}.png" for name in ("curves", "confusion", "reliability") for theme in ("", "-dark")}
REPORTING = TINY_CONFIG | {"report": True}
NAMES = ("red", "<i>green</i>", "blue")


def copy_with_html_names(finished_run, folder):
    """Returns a copy of the run with HTML in the names of its folder and of a class."""
    run = shutil.copytree(finished_run, folder / "run <b>&")
    config = json.loads((run / "config.json").read_text())
    config["class_names"][1] = NAMES[1]
    (run / "config.json").write_text(json.dumps(config))
    return run


@pytest.fixture
def run(finished_run, tmp_path):
    """Returns a run with HTML in its names, which a test may change."""
    return copy_with_html_names(finished_run, tmp_path)


@pytest.fixture(scope="module")
def html_run(finished_run, tmp_path_factory):
    """Returns a run with HTML in its names, which tests only read."""
    return copy_with_html_names(finished_run, tmp_path_factory.mktemp("odd"))


@pytest.fixture(scope="module")
def report_data(html_run, noisy_splits):
    """Returns the report data of `html_run` on `noisy_splits`."""
    return collect_report_data(html_run, noisy_splits)


@pytest.fixture(scope="module")
def page(html_run, report_data):
    """Returns the path of the page with its charts."""
    return write_report(html_run, report_data)


@pytest.fixture
def tiny_charts(monkeypatch):
    """Replaces the charts by single pixels; drawing them takes most of the time of a report."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "PNG")
    for chart in ("learning_curves", "confusion_chart", "reliability_chart"):
        monkeypatch.setattr(f"flaxresnet.report.text.{chart}", lambda *_: None)
    monkeypatch.setattr("flaxresnet.report.text.save", lambda _, path, __: path.write_bytes(file.getvalue()))


@pytest.fixture
def report(monkeypatch, tiny_charts):
    """Runs `flaxresnet report …` without charts."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["flaxresnet", "report", *map(str, words)])
        assert commands.main() == 0

    return run


def images_of(count, seed):
    return replace(blobs(count, seed), class_names=NAMES)


@pytest.fixture(scope="module")
def noisy_splits():
    """Returns splits with wrong labels for a third of the test images."""
    test = blobs(60, seed=3)
    labels = test.labels.copy()
    labels[::3] = (labels[::3] + 1) % 3
    return Splits(blobs(44, seed=1), fr.Dataset(test.images, labels, NAMES), "noisy.h5")


def test_fit_writes_report_and_calibration(data_folder, tmp_path, capsys, tiny_charts):
    config = fr.TrainConfig(data=data_folder, workdir=tmp_path / "run", epochs=3, **REPORTING)
    fr.fit(config)
    page = tmp_path / "run" / "report" / "index.html"
    assert f"report: {page}" in capsys.readouterr().out.replace("\n", "")
    assert {path.name for path in page.parent.iterdir()} == {"index.html"} | PICTURES
    assert "3 epochs, weights after epoch 3; tested on" in page.read_text()
    classifier = fr.Classifier.load(tmp_path / "run")
    assert classifier.calibration is not None
    assert classifier.predict(blobs(1, seed=0).images[0]).is_ood is not None


def test_resuming_deletes_old_calibration(data_folder, finished_run, tmp_path, capsys):
    """The stored calibration describes weights that training changes."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    last = RunDir(run).read_metrics()[-1]["step"]
    shutil.rmtree(run / "checkpoints" / str(last))
    params = fr.Classifier.load(run).variables["params"]
    Calibration(digest(params), 2.0, np.zeros((0, 1), np.float16), 0.0).write(run)
    assert fr.Classifier.load(run).calibration is not None
    fr.fit(fr.TrainConfig(data=data_folder, workdir=run, epochs=3, **TINY_CONFIG))
    assert f"the report and the calibration in {run} belong to earlier weights" in capsys.readouterr().out
    assert RunDir(run).read_metrics()[-1]["step"] == last
    assert fr.Classifier.load(run).calibration is None


def test_fit_survives_report_error(data_folder, tmp_path, capsys, monkeypatch):
    """The run is also too short for a profiler trace, which prints a warning."""

    def fail(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("flaxresnet.report.collect.collect_report_data", fail)
    monkeypatch.setattr("flaxresnet.training.profiler.SKIPPED_STEPS", 1000)
    run = tmp_path / "run"
    config = fr.TrainConfig(data=data_folder, workdir=run, epochs=3, profile=True, **REPORTING)
    assert fr.fit(config).history[-1]["epoch"] == 3
    printed = capsys.readouterr().out.replace("\n", "")
    assert f"could not write the report (RuntimeError: out of memory); `flaxresnet report {run}` tries again" in printed
    assert "--profile wrote no trace: too few steps were left" in printed.replace("\n", "")
    assert not (run / "profile").exists()


def test_report_repairs_corrupt_calibration(finished_run, data_folder, tmp_path, report):
    """Moved data with the same fingerprint are still the run's own data."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    moved = shutil.copytree(data_folder, tmp_path / "moved")
    (run / "calibration.safetensors").write_bytes(b"corrupt")
    with pytest.raises(fr.UserError, match="is damaged"):
        fr.Classifier.load(run)
    report(run, "--data", moved)
    assert len(fr.Classifier.load(run).calibration.references) == 44
    assert (
        "fitted on these test images and stored with the run, for predict"
        in (run / "report" / "index.html").read_text()
    )


def test_report_of_best_weights(finished_run, tmp_path, report, capsys):
    run = shutil.copytree(finished_run, tmp_path / "run")
    report(run, "--checkpoint", "best")
    assert "the run's calibration is unchanged" in capsys.readouterr().out
    assert not (run / "calibration.safetensors").exists()
    text = (run / "report-best" / "index.html").read_text()
    assert "weights of the epoch with the highest test accuracy (the metrics are optimistic)" in text
    assert (
        "and not stored with the run: the report is not about the run&#x27;s own test images and latest weights."
        in text
    )


@pytest.mark.parametrize(
    ("count", "present", "absent"),
    [
        (12, "OOD detection is off: there are too few test images", "The OOD score of a photo"),
        (30, "The false-positive rate cannot be measured with so few", "OOD detection is off"),
        (90, "Cross-fitted on two halves, it flags", "cannot be measured"),
    ],
)
def test_page_describes_ood_detection(run, tiny_charts, count, present, absent):
    data = collect_report_data(run, Splits(blobs(44, seed=1), images_of(count, seed=2), "test.h5"))
    text = write_report(run, data).read_text()
    assert present in text
    assert absent not in text
    assert np.isfinite(data.calibration_report.calibration.threshold) == (count > 18)


def test_unrenderable_names_become_numbers():
    assert replace_unrenderable(["palm", "été", "\U0010fffd", "αβ"]) == ["palm", "été", "2", "αβ"]


def test_fit_survives_unwritable_report(data_folder, tmp_path, capsys):
    """The run also writes a profiler trace."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "report").write_text("a file in the way")
    config = fr.TrainConfig(data=data_folder, workdir=run, epochs=3, profile=True, **REPORTING)
    assert fr.fit(config).history[-1]["epoch"] == 3
    printed = capsys.readouterr().out.replace("\n", "")
    expected = f"could not write the report ({run}/report cannot be written: File exists); `flaxresnet report {run}`"
    assert expected in printed
    assert len(list((run / "profile").rglob("*.xplane.pb"))) == 1


def test_report_data_matches_evaluate(html_run, finished_run, noisy_splits):
    expected = fr.evaluate(finished_run)
    splits = Splits(noisy_splits.train, images_of(19, seed=2), "test.h5")
    data = collect_report_data(html_run, splits)
    assert data.result.confusion.tolist() == expected.confusion.tolist()
    assert data.result.loss == pytest.approx(expected.loss, rel=1e-5)
    assert [row["epoch"] for row in data.rows] == [1, 2, 3]
    assert len(data.calibration_report.calibration.references) == 44


def test_most_confident_mistakes_are_sorted():
    data = blobs(6, seed=0)
    probabilities = np.full((6, 3), 0.1)
    for image, (predicted, confidence) in enumerate([(0, 0.9), (2, 0.5), (0, 0.8), (1, 0.6), (1, 0.9), (0, 0.7)]):
        probabilities[image, predicted] = confidence
    mistakes = most_confident_mistakes(data, probabilities, max_mistakes=3)
    assert [mistake[1:] for mistake in mistakes] == [(2, 0, 0.8), (2, 0, 0.7), (0, 1, 0.6)]
    np.testing.assert_array_equal(mistakes[0].image, data.images[2])


def test_changed_training_images_are_no_reference(run, tiny_charts):
    other = Splits(blobs(44, seed=99), images_of(19, seed=2), "test.h5")
    data = collect_report_data(run, other)
    assert len(data.calibration_report.calibration.references) == 0
    page = write_report(run, data).read_text()
    assert "OOD detection needs the training images, which are not available." in page


def test_page_lists_corruptions(html_run, report_data, page, monkeypatch):
    text = page.read_text()
    corruptions = report_data.robustness
    assert corruptions.clean.correct == int(np.trace(report_data.result.confusion))
    for row in corruptions.rows:
        assert f"<td>{row.corruption}</td><td>{row.correct} of 60</td><td>{row.accuracy:.3f} (" in text
    assert f"<b>{corruptions.mean:.3f}</b>" in text
    assert "The most confident mistake of each corruption" in text
    assert text.count(">background: ") == 1
    monkeypatch.setattr("flaxresnet.report.collect.robustness", lambda *given: given)
    _, images, labels, temperatures, _ = collect_report_data(
        html_run, Splits(None, images_of(130, seed=4), "many.h5")
    ).robustness
    assert len(images) == len(labels) == len(temperatures) == 100


def test_corruption_temperatures_are_cross_fitted(html_run, noisy_splits, monkeypatch):
    monkeypatch.setattr("flaxresnet.report.collect.robustness", lambda *given: given)
    data = collect_report_data(html_run, noisy_splits)
    test = noisy_splits.test
    first = split_halves(test.labels)
    logits = fr.Classifier.load(html_run, calibrated=False).logits(test.images)
    _, images, _, temperatures, without = data.robustness
    assert without == ()
    np.testing.assert_array_equal(images, test.images)
    for half in (first, ~first):
        other = fit_temperature(logits[~half], test.labels[~half])
        assert temperatures[half] == pytest.approx(other, rel=1e-3)
        assert abs(other - data.calibration_report.calibration.temperature) > 0.01


def test_page_escapes_names(page):
    text = page.read_text()
    assert "<b>&" not in text
    assert "run &lt;b&gt;&amp;" in text
    assert not re.search(r'(?:src|href|srcset)="(?!data:)', text)


def test_many_classes_become_tables(run, report_data, tiny_charts):
    names = tuple(f"c{i}" for i in range(300))
    confusion = np.zeros((300, 300), int)
    confusion[np.arange(300), np.arange(300)] = 9
    confusion[7, 8] = 1234
    many = fr.Evaluation(0.5, confusion, names, "many.h5")
    data = replace(report_data, result=many, info=replace(report_data.info, class_names=names))
    text = write_report(run, data).read_text()
    assert "<td>c7</td><td>c8</td><td>1,234</td>" in text
    assert "the 200 classes with the lowest F1, of 300." in text
    assert not (run / "calibration.safetensors").exists()


def test_report_of_imported_weights(run, report, capsys, tmp_path):
    config = json.loads((run / "config.json").read_text())
    config["data"] |= {"source": "weights of x.h5", "path": None, "train_fingerprint": None, "test_fingerprint": None}
    config["class_names"] = ["r", "g", "b"]
    (run / "config.json").write_text(json.dumps(config))
    (run / "metrics.jsonl").unlink()
    data = replace(blobs(60, seed=3), class_names=("r", "g", "b"))
    write_hdf5(tmp_path / "test.h5", "test", data)
    report(run, "--data", tmp_path / "test.h5")
    assert f"wrote {run / 'report' / 'index.html'}" in capsys.readouterr().out
    assert fr.Classifier.load(run).temperature != 1.0

    # The training split of hashed pictures serves as reference for OOD detection.
    for index, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
        path = tmp_path / "pictures" / data.class_names[label] / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    report(run, "--data", tmp_path / "pictures")
    assert len(fr.Classifier.load(run).calibration.references)
    text = (run / "report" / "index.html").read_text()
    assert "Learning curves" not in text


def test_other_data_keep_calibration(finished_run, report, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    report(run)
    stored = (run / "calibration.safetensors").read_bytes()
    write_hdf5(tmp_path / "test.h5", "test", blobs(30, seed=31))
    own = (run / "report" / "index.html").read_bytes()
    report(run, "--data", tmp_path / "test.h5")
    assert (run / "calibration.safetensors").read_bytes() == stored
    assert (run / "report" / "index.html").read_bytes() == own
    assert "30 images of" in (run / "report-test.h5" / "index.html").read_text()


def test_page_shows_finetuning_commands(html_run, page):
    text = html.unescape(page.read_text())
    assert f"flaxresnet train --data mine/ --init '{html_run}' --recipe finetune --batch-size 10 --epochs 90" in text
    assert f"flaxresnet adapt '{html_run}' '{html_run}-here' photos/" in text


def test_page_omits_mirror_without_hflip(run, noisy_splits, page, tiny_charts):
    mirrored = page.read_text()
    config = json.loads((run / "config.json").read_text())
    config["config"]["hflip"] = False
    (run / "config.json").write_text(json.dumps(config))
    data = collect_report_data(run, noisy_splits)
    assert {row.corruption for row in data.robustness.rows} == set(CORRUPTIONS) - {"mirror"}
    other = write_report(run, data).read_text()
    for text, count in ((mirrored, 19), (other, 18)):
        assert f"each with {count} corruptions" in text
        assert ("Mirror images are not among them" in text) == (count == 18)


def test_report_requires_test_split(run):
    with pytest.raises(fr.UserError, match=r"only\.h5 has no test split, which the report needs; give other --data"):
        collect_report_data(run, Splits(blobs(44, seed=1), None, "only.h5"))


def test_train_command_repeats_options():
    config = fr.TrainConfig(data="my data", recipe="fast", epochs=3, hflip=False, tensorboard=True).resolve()
    line = train_command(config)
    assert line == "flaxresnet train --recipe fast --data 'my data' --epochs 3 --no-hflip --tensorboard"
    assert train_command(fr.TrainConfig().resolve()) == "flaxresnet train"


@pytest.mark.parametrize(
    "options",
    [
        {"workdir": "runs/other"},
        {"workdir": "it's my run", "data": "a b/$HOME", "image_size": (64, 96)},
        {"workdir": "-run", "data": "--data", "init": "-w.h5", "recipe": "finetune"},
        {"batch_size": 16, "learning_rate": 3e-5, "resume": False, "report": False, "stem_relu": False, "mixup": 0.2},
        {"recipe": "imagenet", "freeze": "stem,stage2", "precision": "bfloat16", "workers": 0, "checkpoint_steps": 7},
    ],
)
def test_train_command_is_complete(options):
    config = fr.TrainConfig(**options).resolve()
    words = shlex.split(train_command(config))
    assert words[:2] == ["flaxresnet", "train"]
    assert parse(fr.TrainConfig, words[2:], "flaxresnet train").resolve() == config


class Tags(HTMLParser):
    """Parses a page: its tags with their attributes, the open tags, and end tags out of order."""

    VOID = ("meta", "link", "img", "source")

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.open = []
        self.misnested = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.misnested.append(tag)


def picture_in(address):
    kind, _, text = address.partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as picture:
        return np.asarray(picture.convert("RGB"))


def test_page_images_have_two_themes(page):
    tags = Tags(page.read_text())
    assert tags.open == tags.misnested == []
    images = [attributes for tag, attributes in tags.tags if tag == "img"]
    assert len(images) > 3
    for image in images:
        assert picture_in(image["src"]).std() > 0
    charts = [image for image in images if image.get("class") == "chart"]
    sources = [attributes for tag, attributes in tags.tags if tag == "source"]
    assert len(charts) == len(sources) == 3
    for image, source in zip(charts, sources, strict=True):
        assert source["media"] == "(prefers-color-scheme: dark)"
        light, dark = picture_in(image["src"]), picture_in(source["srcset"])
        assert light.shape[:2] == (int(image["height"]), int(image["width"]))
        assert tuple(light[0, 0]) == (255, 255, 255)
        assert tuple(dark[0, 0]) == (13, 17, 23)
        assert "max-width: min(100%, " in image["style"]
    metas = {attributes.get("name"): attributes.get("content") for tag, attributes in tags.tags if tag == "meta"}
    assert metas["viewport"] == "width=device-width, initial-scale=1"
    assert metas["color-scheme"] == "light dark"


@pytest.mark.parity
def test_page_renders_in_browser(page):
    path = page
    colors = {}
    sources = {}
    with chromium() as browser:
        for width, scheme in ((1000, "light"), (1000, "dark"), (360, "light")):
            page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            printed = listen(page)
            page.goto(path.absolute().as_uri())
            assert page.evaluate("document.images.length") > 3
            assert page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).length") == 0
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
            colors[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
            sources[scheme] = page.evaluate("document.querySelector('picture img').currentSrc.slice(-200)")
            assert printed == []
    assert colors["light"] == "rgb(255, 255, 255)" != colors["dark"]
    assert sources["light"] != sources["dark"]


def test_tensorboard_holds_metrics_and_mistakes(data_folder, tmp_path):
    pytest.importorskip("tensorboardX", reason="install tensorboardX (the `test` extra)")
    with h5py.File(data_folder / "test.h5") as file:
        images, labels = file["test_set_x"][:], file["test_set_y"][:].reshape(-1)
    folder = tmp_path / "data"
    shutil.copytree(data_folder, folder)
    wrong = fr.Dataset(images, ((labels + 1) % 3).astype(np.int32), ("red", "green", "blue"))
    (folder / "test.h5").unlink()
    write_hdf5(folder / "test.h5", "test", wrong)
    config = fr.TrainConfig(data=folder, workdir=tmp_path / "run", epochs=3, tensorboard=True, **TINY_CONFIG)
    history = fr.fit(config, quiet=True).history
    (events,) = (tmp_path / "run" / "tensorboard").iterdir()
    from tensorboardX.proto.event_pb2 import Event

    scalars = {}
    pictures = []
    data = events.read_bytes()
    while data:  # records: length, its checksum, the event, its checksum
        length = int.from_bytes(data[:8], "little")
        event, data = Event.FromString(data[12 : 12 + length]), data[16 + length :]
        for value in event.summary.value:
            if value.HasField("image"):
                pictures.append(value.tag)
            else:
                scalars[value.tag, event.step] = value.simple_value
    for row in history:
        for tag, name in (("loss/train", "train_loss"), ("accuracy/test", "test_accuracy"), ("run/seconds", "seconds")):
            assert scalars[tag, row["step"]] == pytest.approx(row[name], rel=1e-6)
    assert pictures
    assert all(tag.startswith("mistakes/") for tag in pictures)


def test_missing_tensorboardx_names_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(fr.UserError, match=r"pip install 'flaxresnet\[tensorboard\]'"):
        tensorboard.TensorBoardWriter(tmp_path, print)


def test_missing_extra_keeps_old_run(data_folder, finished_run, tmp_path, monkeypatch):
    run = shutil.copytree(finished_run, tmp_path / "run")
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    config = fr.TrainConfig(data=data_folder, workdir=run, epochs=1, tensorboard=True, resume=False, **TINY_CONFIG)
    with pytest.raises(fr.UserError, match="--tensorboard needs tensorboardX"):
        fr.fit(config, quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_unwritable_tensorboard_folder_warns_once(tmp_path, capsys):
    pytest.importorskip("tensorboardX", reason="install tensorboardX (the `test` extra)")
    (tmp_path / "file").write_text("in the way")
    printed = []
    with tensorboard.TensorBoardWriter(tmp_path / "file" / "tensorboard", printed.append) as events:
        for step in (1, 2):
            events.row({"epoch": 1, "step": step, "train_loss": 0.5})
    message = "cannot be written (Not a directory); TensorBoard receives no more events"
    assert printed == [f"warning: {tmp_path}/file/tensorboard {message}"]


@pytest.mark.parametrize(
    ("steady", "traced"),
    [
        ([True] * 12, [2, 3, 4, 5, 6]),
        ([False] * 4 + [True] * 8, [6, 7, 8, 9, 10]),
        ([True] * 4, [2, 3]),  # a short epoch
        ([False] * 12, []),
        ([True] * 2, []),  # nothing before the next epoch
    ],
)
def test_profiler_traces_steady_steps_once(tmp_path, monkeypatch, steady, traced):
    tracing = False
    seen = []
    calls = []

    def switch(to):
        nonlocal tracing
        tracing = to
        calls.append(to)

    monkeypatch.setattr("jax.profiler.start_trace", lambda folder: switch(True))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: switch(False))
    with StepProfiler(tmp_path) as profile:
        for step, alone in enumerate(steady):
            profile.before_step(None, alone)
            seen += [step] if tracing else []
        profile.end(None)
        for _ in range(20):  # the next epoch
            profile.before_step(None, True)
            profile.end(None)
    assert seen == traced
    assert not tracing
    assert calls in ([True, False], [])


def test_profiler_stops_after_error(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda folder: calls.append("start"))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: calls.append("stop"))
    with contextlib.suppress(KeyboardInterrupt), StepProfiler(tmp_path) as profile:
        for _ in range(4):
            profile.before_step(None, True)
        raise KeyboardInterrupt
    assert calls == ["start", "stop"]
