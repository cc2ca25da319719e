"""Output and exit statuses of the commands."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import h5py
import jax
import numpy as np
import pytest
from conftest import TINY_CONFIG, blobs, small_in_a_corner
from PIL import Image
from random_weights import random_weights
from rich.cells import cell_len
from rich.console import Console

import flaxresnet as fr
import train
from flaxresnet.cli import exit_status
from flaxresnet.cli import main as commands
from flaxresnet.cli.evaluate import show
from flaxresnet.cli.image_args import ImageReader
from flaxresnet.cli.predict import PhotoPrediction, TableWriter, common_folder
from flaxresnet.config.validation import flag
from flaxresnet.data.hand_signs.render import hand_signs
from flaxresnet.data.hdf5 import write_hdf5
from flaxresnet.data.open import open_dataset
from flaxresnet.runs.run_dir import RunDir
from flaxresnet.weights.run_weights import read_run
from flaxresnet.weights.weight_files import write_weights


@pytest.fixture
def run_cli(monkeypatch, capsys, tmp_path):
    """Runs `flaxresnet …` or `python train.py …` in an empty folder: (exit status, output, errors without progress)."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*words):
        argv = [str(word) for word in words]
        main = commands.main
        if argv[0] == "train.py":
            main = train.main
        else:
            argv.insert(0, "flaxresnet")
        monkeypatch.setattr(sys, "argv", argv)
        try:
            status = exit_status.run(main)
        except SystemExit as stop:
            status = stop.code or 0
        captured = capsys.readouterr()
        errors = [line for line in captured.err.splitlines(keepends=True) if not line.endswith("…\n")]
        return status, captured.out, "".join(errors)

    return run


@pytest.fixture
def photo(tmp_path, monkeypatch):
    """Writes blob `index` as an image in the current folder, which is empty."""
    monkeypatch.chdir(tmp_path)

    def write(index, name, count=3, seed=8):
        Image.fromarray(blobs(count, seed=seed).images[index]).save(name)

    return write


def test_train_prints_tutorial_lines(run_cli, data_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("flaxresnet.fitting.use_compilation_cache", lambda use: None)
    numbers = {name: value for name, value in TINY_CONFIG.items() if not isinstance(value, bool)}
    flags = [f"{flag(name)}={value}" for name, value in numbers.items()]
    flags += ["--epochs=3", "--no-zero-init-residual", "--no-compilation-cache", "--no-report"]
    status, out, _ = run_cli("train.py", "--data", data_folder, "--workdir", tmp_path / "run", *flags)
    loss, accuracy = out.splitlines()[-2:]
    assert status == 0
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert loss == f"Loss = {last['test_loss']:.4f}"
    assert accuracy == f"Test Accuracy = {last['test_accuracy']:.4f}"


def test_make_data_reports_memory_error(run_cli, monkeypatch, tmp_path):
    def too_many(*_):
        raise MemoryError

    monkeypatch.setattr("flaxresnet.cli.make_data.hand_signs", too_many)
    status, _, err = run_cli("make-data", tmp_path / "out", "--train", 1_000_000, "--image-size", 4096)
    assert status == 2
    assert "1,000,120 images of 4096×4096 take 46,880.6 GiB of memory, more than is available; reduce --train" in err


def test_summary_lists_largest_network(run_cli):
    words = ("--width", 4096, "--image-size", 65536, 65536, "--num-classes", 1_000_000, "--depth", "parts")
    assert run_cli("summary", "resnet14", *words)[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train.py", "--epoch", "3"), "--epoch"),
        (("train.py", "--recipe", "fancy"), "'fancy'"),
        (("train.py", "--epochs", "many"), "'many'"),
        (("train.py", "--batch-size", "0"), "--batch-size must be at least 1, not 0"),
        (("train.py", "--data", "nowhere.h5"), "nowhere.h5 does not exist"),
        (("evaluate", "nowhere"), "nowhere holds no run"),
        (("evaluate",), "RUN is missing"),
        (("predict", "nowhere"), "no photo given; name one or more images after the run folder"),
        (("predict", "nowhere", "a.jpg", "--top-k", "0"), "--top-k must be at least 1, not 0"),
        (("predict", "nowhere", "a.jpg", "--json", "--csv"), "--json and --csv exclude each other"),
        (("predict", "nowhere", "photo.jpg"), "nowhere holds no run"),
        (("check-data", "nowhere.h5"), "nowhere.h5 does not exist"),
        (("make-data", "out", "--train", "0"), "--train must be at least 1, not 0"),
        (("make-data", "out", "--image-size", "31"), "--image-size must be at least 32, not 31"),
        (("make-data", "out", "--seed", "-1"), "--seed must be at least 0, not -1"),
        (("make-data", "out", "--variety", "1.5"), "--variety must be between 0 and 1, not 1.5"),
        (("make-data", "out", "--train", "9" * 30), f"--train must be at most 1000000, not {'9' * 30}"),
        (("make-data", "out", "--test", "9" * 30), f"--test must be at most 1000000, not {'9' * 30}"),
        (("make-data", "out", "--image-size", "5000"), "--image-size must be at most 4096, not 5000"),
        (("make-data", "out", "--seed", "9" * 30), f"--seed must be at most {2**64}, not {'9' * 30}"),
        (("make-data", "out", "--shards", "100000"), "--shards must be at most 99999, not 100000"),
        (("convert", "nowhere", "o" * 5000 + ".h5"), "ooo.h5 cannot be written: File name too long"),
        (("summary", "resnet14", "--width", "9" * 30), f"--width must be at most 4096, not {'9' * 30}"),
        (("summary", "resnet14", "--image-size", "9" * 30, "64"), "--image-size must be at most 65536, not 999"),
        (("diagram", "resnet14", "--num-classes", "9" * 30), "--num-classes must be at most 1000000, not 999"),
        (("train.py", "--width", "9" * 30), f"--width must be at most 4096, not {'9' * 30}"),
        (("make-data", "/dev/null/out", "--train", "1", "--test", "1"), "/dev/null/out cannot be written"),
        (("explode",), "there is no command 'explode'; the commands are train, evaluate, predict"),
    ],
)
def test_user_error_is_one_sentence(words, message, run_cli):
    status, out, err = run_cli(*words)
    assert status == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize("command", [*commands.COMMANDS, "train.py"])
def test_help_shows_usage(command, run_cli):
    status, out, _ = run_cli(command, "--help")
    assert status == 0
    assert f"usage: {'python train.py' if command == 'train.py' else 'flaxresnet ' + command}" in out


def test_overview_names_every_command(run_cli):
    status, out, _ = run_cli("--help")
    assert status == 0
    assert all(name in out for name in commands.COMMANDS)


def test_evaluate_prints_metrics_and_tables(run_cli, finished_run, data_folder):
    status, out, _ = run_cli("evaluate", finished_run, "--data", data_folder / "test.h5")
    assert status == 0
    assert out.startswith(f"data: {data_folder / 'test.h5'}\nLoss = ")
    assert "\nTest Accuracy = " in out
    assert "95% interval" in out
    assert "confusion matrix" in out
    status, out, _ = run_cli("evaluate", finished_run, "--data", data_folder / "test.h5", "--json")
    metrics = json.loads(out)
    assert status == 0
    assert {"loss", "accuracy", "accuracy_interval", "per_class", "confusion"} <= set(metrics)
    assert metrics["images"] == 19


def test_predict_prints_table_and_summary(run_cli, finished_run, photo):
    photo(0, "red.png")
    photo(1, "green.png")
    status, out, _ = run_cli("predict", finished_run, "red.png", "green.png")
    assert status == 0
    classifier = fr.Classifier.load(finished_run)
    header, *rows, blank, summary = out.splitlines()
    assert header.split("  ")[0] == "file"
    for row, name in zip(rows, ("red.png", "green.png"), strict=True):
        expected = classifier.predict(name)
        ranked = sorted(expected.probabilities.items(), key=lambda pair: -pair[1])
        assert row.split() == [name, expected.label, f"{expected.probability:.4f}", ranked[1][0], f"{ranked[1][1]:.4f}"]
    assert blank == ""
    assert summary == "2 photos: 1 red, 1 green"
    row = json.loads(run_cli("predict", finished_run, "red.png", "--json")[1])
    assert (row["file"], row["label"]) == ("red.png", "red")
    assert row["probability"] == max(row["probabilities"].values())


def test_predict_names_missing_calibration(run_cli, finished_run, calibrated_run, photo, tmp_path):
    photo(0, "red.png")
    run = shutil.copytree(finished_run, tmp_path / "my run")
    for command in ("predict", "explain"):
        err = run_cli(command, run, "red.png")[2]
        assert f"note: {run} is not calibrated for these weights" in err
        assert f"`flaxresnet report '{run}'` calibrates it" in err
        assert "not calibrated" not in run_cli(command, calibrated_run, "red.png")[2]
    assert run_cli("convert", run, tmp_path / "converted")[0] == 0
    assert "converted --data PATH` calibrates it" in run_cli("predict", tmp_path / "converted", "red.png")[2]


def test_table_fits_terminal():
    table = TableWriter(("手" * 30, "b"), 2)
    files = [f"photos/{'long-' * 20}{index}.jpg" for index in (1, 2)]
    for file in files:
        table.write(PhotoPrediction(file, np.array([0.75, 0.25]), 0.5, True))
    assert common_folder(files) == "photos/"
    for width in (40, 100):
        lines = table.lines("photos/", width)
        assert max(map(cell_len, lines)) <= width
    assert lines[2].split()[0].startswith("…")
    assert "2.jpg  手" in lines[2]
    assert lines[2].endswith("out of distribution")
    assert table.lines("photos/", None)[1].startswith(files[0].removeprefix("photos/"))
    assert table.summary("photos/", 1) == f"2 photos in photos/: 2 {'手' * 30}; 2 out of distribution; 1 unreadable"


@pytest.mark.parametrize(
    ("files", "folder"),
    [(["a.jpg"], ""), (["x/y/a.jpg", "x/b.jpg"], "x/"), (["/x/a.jpg", "x/a.jpg"], ""), (["/a.jpg", "/b.jpg"], "/")],
)
def test_common_folder_is_shared_by_all_files(files, folder):
    assert common_folder(files) == folder


def test_predict_skips_unreadable_photos(run_cli, finished_run, photo, tmp_path):
    photo(0, "red.png")
    (tmp_path / "junk.jpg").write_text("no picture")
    status, out, err = run_cli("predict", finished_run, "junk.jpg", "red.png")
    assert status == 1
    assert out.splitlines()[1].startswith("red.png  ")
    assert out.endswith("1 photo: 1 red; 1 unreadable\n")
    assert "junk.jpg cannot be read" in err
    assert run_cli("predict", finished_run, "junk.jpg")[:2] == (2, "")


def test_predict_takes_folders_and_patterns(run_cli, finished_run, photo, tmp_path):
    (tmp_path / "photos").mkdir()
    for index in range(3):
        photo(index, f"photos/{index}.png")
    status, out, _ = run_cli("predict", finished_run, "photos", "--top-k", 3)
    assert status == 0
    predictions = [fr.Classifier.load(finished_run).predict(f"photos/{index}.png") for index in range(3)]
    ranked = [sorted(prediction.probabilities.items(), key=lambda pair: -pair[1]) for prediction in predictions]
    for index, line in enumerate(out.splitlines()[1:4]):
        cells = [cell for name, probability in ranked[index] for cell in (name, f"{probability:.4f}")]
        assert line.split() == [f"{index}.png", *cells]
    assert "3 photos in photos/:" in out
    _, out, _ = run_cli("predict", finished_run, "photos/[01].png", "--json", "--top-k", 3)
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["file"] for row in rows] == ["photos/0.png", "photos/1.png"]
    for top, (name, probability) in zip(rows[0]["top"], ranked[0], strict=True):
        assert top["label"] == name
        assert top["probability"] == pytest.approx(probability, abs=1e-6)  # rounding depends on the batch size
    _, out, _ = run_cli("predict", finished_run, "photos", "--csv", "--top-k", 2)
    table = list(csv.DictReader(io.StringIO(out)))
    columns = "file,label,probability,label 2,probability 2,ood_score,is_ood,p(red),p(green),p(blue)"
    assert out.splitlines()[0] == columns
    for row, prediction in zip(table, predictions, strict=True):
        assert row["label"] == prediction.label
        assert float(row["p(green)"]) == pytest.approx(prediction.probabilities["green"], abs=1e-6)
        assert row["ood_score"] == row["is_ood"] == ""


def test_predict_flags_ood_photos(run_cli, finished_run, photo, tmp_path, monkeypatch):
    photo(0, "like.png")
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save("unlike.png")
    run = shutil.copytree(finished_run, tmp_path / "run")
    monkeypatch.setattr("flaxresnet.report.text.write_report", lambda run, data: run)  # the page is not needed
    status, out, _ = run_cli("report", run)
    assert status == 0
    assert f"next: flaxresnet predict {run} PHOTO" in out
    classifier = fr.Classifier.load(run)
    unlike = classifier.predict("unlike.png")
    assert unlike.is_ood
    assert not classifier.predict("like.png").is_ood
    out = run_cli("predict", run, "like.png", "unlike.png")[1]
    assert [line.endswith("out of distribution") for line in out.splitlines()[1:3]] == [False, True]
    assert out.endswith("; 1 out of distribution\n")
    row = json.loads(run_cli("predict", run, "unlike.png", "--json")[1])
    assert row["is_ood"] is True
    assert row["ood_score"] == pytest.approx(unlike.ood_score, rel=1e-4)
    (table,) = csv.DictReader(io.StringIO(run_cli("predict", run, "unlike.png", "--csv")[1]))
    assert table["is_ood"] == "true"
    assert float(table["ood_score"]) == pytest.approx(unlike.ood_score, abs=1e-5)


def test_predict_without_ood_threshold(run_cli, calibrated_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(calibrated_run, tmp_path / "run")
    replace(fr.Classifier.load(run).calibration, threshold=float("inf")).write(run)
    Image.fromarray(small_in_a_corner(1)).save("far.png")
    assert json.loads(run_cli("predict", "run", "far.png", "--json")[1])["is_ood"] is None
    (table,) = csv.DictReader(io.StringIO(run_cli("predict", "run", "far.png", "--csv")[1]))
    assert table["is_ood"] == ""


def test_explain_flags_ood_photos(run_cli, calibrated_run, photo):
    photo(0, "like.png", count=40, seed=7)
    Image.fromarray(small_in_a_corner(1)).save("unlike.png")
    *lines, last = run_cli("explain", calibrated_run, "like.png", "unlike.png")[1].splitlines()
    assert [line.endswith("out of distribution") for line in lines] == [False, True]
    assert last == "wrote 2 images to explanations/"


def test_predict_averages_views(run_cli, finished_run, photo):
    names = ("0.png", "1.png")
    for index, name in enumerate(names):
        photo(index, name, count=2)
    plain = run_cli("predict", finished_run, *names, "--json")[1].splitlines()
    averaged = run_cli("predict", finished_run, *names, "--json", "--tta")[1].splitlines()
    images = blobs(2, seed=8).images
    expected = fr.Classifier.load(finished_run).predict_batch(images, tta=True).probabilities
    for before, after, row in zip(plain, averaged, expected, strict=True):
        assert json.loads(after)["probability"] == pytest.approx(float(row.max()), rel=1e-4)
        assert json.loads(after)["probability"] != json.loads(before)["probability"]


def test_image_reader_is_lazy(tmp_path):
    for index in range(10):
        (tmp_path / f"{index}.png").write_bytes(b"")
    loaded = []

    def load(file):
        loaded.append(file)
        return file

    reader = ImageReader([str(tmp_path)], load, batch_size=4)
    assert len(next(reader.batches)) == len(loaded) == 4
    assert [len(batch) for batch in reader.batches] == [4, 2]
    assert reader.exit_status() == 0


def test_predict_reports_empty_folder(run_cli, finished_run, photo, tmp_path):
    photo(0, "red.png")
    (tmp_path / "empty").mkdir()
    status, out, err = run_cli("predict", finished_run, "empty", "no/*.png", "red.png")
    assert status == 1
    assert out.splitlines()[1].startswith("red.png  ")
    assert "error: empty contains no images (.apng, .avif, .bmp" in err
    assert "error: no/*.png matches no file" in err
    assert run_cli("predict", finished_run, "empty")[::2] == (2, err.splitlines()[0] + "\n")


def test_predict_reports_invalid_path(run_cli, finished_run, photo, tmp_path):
    (tmp_path / "photos" / "sub.jpg").mkdir(parents=True)
    photo(0, "photos/sub.jpg/red.png")
    long = "x" * 5000
    status, out, err = run_cli("predict", finished_run, long, "photos/*", "photos")
    assert status == 1
    assert [line.split()[0] for line in out.splitlines()[1:3]] == ["red.png"] * 2
    assert out.endswith("2 photos in photos/sub.jpg/: 2 red; 1 unreadable\n")
    assert err.splitlines()[0] == f"error: {long} cannot be read: File name too long"


def test_check_data_lists_classes(run_cli, data_folder):
    status, out, _ = run_cli("check-data", data_folder)
    assert status == 0
    lines = out.splitlines()
    assert "44 training images of 32×32, 19 test images of 32×32, 3 classes" in lines
    assert [line.split() for line in lines if line.startswith("  ")] == [
        ["class", "training", "test"],
        ["red", "15", "7"],
        ["green", "15", "6"],
        ["blue", "14", "6"],
    ]
    assert lines[-2:] == [
        "result: no problems found; ready for training",
        f"next: flaxresnet train --data {data_folder}",
    ]
    assert "X_train shape: (44, 32, 32, 3)" in run_cli("check-data", data_folder, "--verbose")[1]


def test_check_data_reports_untrainable_data(run_cli, data_folder, tmp_path):
    for name, missing in (("test", "training"), ("train", "test")):
        status, out, _ = run_cli("check-data", data_folder / f"{name}.h5")
        assert status == 0
        assert f"training needs a {missing} split" in out.splitlines()[-1]
    for name in ("train", "test"):
        write_hdf5(tmp_path / f"{name}.h5", name, blobs(6, 1, size=16))
    status, _, err = run_cli("check-data", tmp_path)
    assert status == 2
    assert "16×16" in err


def test_check_data_lists_duplicates(run_cli, tmp_path):
    write_hdf5(tmp_path / "train.h5", "train", blobs(9, 1))
    write_hdf5(tmp_path / "test.h5", "test", blobs(9, 1))
    status, out, _ = run_cli("check-data", tmp_path)
    assert status == 0
    lines = out.splitlines()
    (first,) = (index for index, line in enumerate(lines) if line.startswith("warning: 9 of 9 test images"))
    assert lines[first + 1 : -2] == [f"  test image {i}: training image {i}" for i in range(9)]
    assert lines[-2] == "result: 1 warning; ready for training"


def test_check_data_names_files(run_cli, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for split, seed in (("train", 1), ("test", 2)):
        for i, image in enumerate(blobs(30, seed).images):
            folder = tmp_path / "data" / split / "ab"[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{i}.png")
    data = tmp_path / "data"
    copies = {f"test/a/{i}.png": f"train/b/{i + 1}.png" for i in range(0, 24, 2)}
    for copy, original in copies.items():
        (data / copy).write_bytes((data / original).read_bytes())
    status, out, _ = run_cli("check-data", data)
    assert status == 0
    pairs = [line for line in out.splitlines() if ".png: " in line]
    assert sorted(pairs) == sorted(f"  {copy}: {original}" for copy, original in copies.items())
    damaged = data / "train" / "a" / "0.png"
    before = damaged.stat()
    damaged.write_bytes(bytes(before.st_size))
    os.utime(damaged, ns=(before.st_atime_ns, before.st_mtime_ns))  # only the contents show the change
    status, _, err = run_cli("check-data", data)
    assert status == 2
    assert "1 of 60 images in " in err


def test_missing_device_is_one_sentence(monkeypatch, capsys):
    def devices():
        raise RuntimeError("Unable to initialize backend 'cuda'\nand more of it")

    def main():
        raise AssertionError("an error of JAX")

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert exit_status.run(main) == 2
    message = (
        "error: JAX_PLATFORMS=cuda asks for a device that JAX cannot use here (Unable to initialize backend 'cuda')"
    )
    assert capsys.readouterr().err.startswith(message)
    monkeypatch.delenv("JAX_PLATFORMS")
    with pytest.raises(AssertionError):
        exit_status.run(main)


@pytest.mark.parity
def test_command_reports_missing_device(finished_run):
    environment = os.environ | {"JAX_PLATFORMS": "cuda"}
    command = [sys.executable, "-m", "flaxresnet", "evaluate", str(finished_run)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "error: JAX_PLATFORMS=cuda asks for a device that JAX cannot use here (" in done.stderr
    assert "Traceback" not in done.stderr


def test_device_fallback_warns_once(tmp_path):
    if any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("there is a GPU")
    program = """
import sys
import flaxresnet as fr
from flaxresnet.runtime.devices import warn_of_fallback

for use in (lambda: fr.Classifier.load("nowhere"), lambda: fr.fit(fr.TrainConfig(data="nowhere"))):
    warn_of_fallback.cache_clear()
    for _ in range(2):
        try:
            use()
        except fr.UserError as error:
            print(error, file=sys.stderr)
"""
    environment = os.environ | {"JAX_PLATFORMS": "cuda,cpu"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    message = "warning: JAX_PLATFORMS=cuda,cpu asks for cuda first, which JAX cannot use here; this computes on cpu"
    lines = [line for line in done.stderr.splitlines() if line == message or "nowhere" in line]
    assert [line == message for line in lines] == [True, False, False] * 2, lines


def test_evaluate_names_train_accuracy(run_cli, finished_run):
    _, out, _ = run_cli("evaluate", finished_run, "--split", "train")
    assert "Train Accuracy = " in out
    assert "Test" not in out


def test_evaluate_escapes_class_names(capsys):
    names = ("[/]", "[red]x", *(f"a rather long name {i}" for i in range(12)))
    show(fr.Evaluation(0.1, np.eye(14, dtype=int) * 1234, names), Console(width=400))
    out = capsys.readouterr().out
    assert "[/]" in out
    assert "[red]x" in out
    assert out.count("1234") == 28  # as a number of images and in the matrix, each fourteen times


def test_closed_pipe_is_no_error():
    command = [sys.executable, "-m", "flaxresnet", "--help"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    )
    process.stdout.close()
    _, err = process.communicate()
    assert process.returncode == 141
    assert err == b""


def test_make_data_writes_trainable_files(run_cli, tmp_path):
    folder = tmp_path / "made"
    status, _, _ = run_cli("make-data", folder, "--train", 12, "--test", 6, "--seed", 4, "--variety", 1)
    assert status == 0
    before = (folder / "train_signs.h5").read_bytes()
    drawn = hand_signs(seed=4, train=12, test=6, variety=1.0).test
    np.testing.assert_array_equal(open_dataset(folder).test.images, drawn.images)
    status, out, _ = run_cli("check-data", folder)
    assert status == 0
    assert "12 training images of 64×64, 6 test images of 64×64, 6 classes" in out
    status, _, err = run_cli("make-data", folder)
    assert status == 2
    assert "train_signs.h5 exists and is not overwritten" in err
    assert (folder / "train_signs.h5").read_bytes() == before


def test_ctrl_c_exits_with_130(capsys):
    def interrupted():
        raise KeyboardInterrupt

    assert exit_status.run(interrupted) == 130
    assert capsys.readouterr().err == "interrupted; files that were already written remain\n"


def test_convert_round_trips_keras(run_cli, finished_run, data_folder, tmp_path):
    file, back = tmp_path / "small.keras", tmp_path / "back"
    status, out, _ = run_cli("convert", finished_run, file)
    assert status == 0
    assert "resnet14 as in the tutorials, 3 classes" in out
    assert "images of 32×32" in out
    assert run_cli("convert", file, back)[0] == 0
    before = json.loads(run_cli("evaluate", finished_run, "--data", data_folder, "--json")[1])
    after = json.loads(run_cli("evaluate", back, "--data", data_folder, "--json")[1])
    for name in ("accuracy", "loss", "confusion"):
        assert before[name] == after[name]
    status, _, err = run_cli("evaluate", back)
    assert (status, err) == (
        2,
        f"error: {back} holds weights of {file} and no data; give labeled images with --data PATH\n",
    )
    assert run_cli("evaluate", back, "--data", data_folder, "--checkpoint", "best")[0] == 0

    assert run_cli("convert", file, tmp_path / "named", "--class-names", "a, b,c")[0] == 0
    assert fr.Classifier.load(tmp_path / "named").class_names == ("a", "b", "c")
    for words, message in (
        (("convert", file, file), f"{file} exists; give --overwrite to replace it"),
        (("convert", file, tmp_path / "x.txt"), "x.txt has no suffix of a weight file; end the name with .weights.h5"),
        (
            ("convert", file, tmp_path / "x", "--key-format", "huggingface"),
            "--key-format huggingface applies to .safetensors and .pth",
        ),
        (("convert", file, tmp_path / "x", "--class-names", "a,b"), f"--class-names has 2 names; {file} has 3 classes"),
        (("convert", file, back), f"{back} exists and is not overwritten; name another folder"),
        (("convert", file, tmp_path / "x.pth"), "a resnet14 of the variant tutorial cannot be written as .pth"),
    ):
        status, _, err = run_cli(*words)
        assert status == 2
        assert message in err
    assert not (tmp_path / "x").exists()
    status, out, _ = run_cli("convert", file, file, "--overwrite")
    assert status == 0


@pytest.fixture
def bare_file(finished_run, tmp_path):
    """Returns a file of the tutorials' weights without metadata, as Keras's `save_weights` writes it."""
    path = tmp_path / "bare.weights.h5"
    write_weights(read_run(finished_run), path)
    with h5py.File(path, "a") as file:
        del file.attrs["flaxresnet"]
    return path


def test_convert_applies_overrides(run_cli, bare_file, tmp_path):
    words = ("--no-stem-relu", "--image-size", 32, 32, "--scaling", "torchvision", "--class-names", "a,b,c")
    status, out, _ = run_cli("convert", bare_file, tmp_path / "given", *words)
    assert status == 0
    assert "images of 32×32, pixels divided by 255, then normalized with the ImageNet means" in out
    classifier = fr.Classifier.load(tmp_path / "given")
    assert classifier.preprocessing.std == (0.229, 0.224, 0.225)
    assert classifier.class_names == ("a", "b", "c")
    assert RunDir(tmp_path / "given").read_metadata().config.stem_relu is False

    write_weights(random_weights("resnet14", "torchvision"), tmp_path / "any.safetensors")
    status, out, _ = run_cli("convert", tmp_path / "any.safetensors", tmp_path / "sized", "--image-size", 96, 80)
    assert status == 0
    assert "images of 96×80" in out

    source = random_weights("resnet14", "tutorial")
    other = replace(
        source, preprocessing=replace(source.preprocessing, resize="bilinear", crop_pct=0.5, resize_mode="pad")
    )
    write_weights(other, tmp_path / "other.keras")
    assert run_cli("convert", tmp_path / "other.keras", tmp_path / "scaled", "--scaling", "keras")[0] == 0
    scaled = fr.Classifier.load(tmp_path / "scaled").preprocessing
    assert (scaled.resize, scaled.crop_pct, scaled.resize_mode) == ("bilinear", 0.5, "pad")


def test_convert_rejects_wrong_overrides(run_cli, bare_file, finished_run, tmp_path):
    any_size = tmp_path / "any.safetensors"
    write_weights(random_weights("resnet14", "torchvision"), any_size)
    for words, message in (
        ((bare_file, tmp_path / "x", "--image-size", 64, 32), "--image-size 64 32 does not fit"),
        (
            (bare_file, tmp_path / "x", "--image-size", 3, 3),
            "and the last layer of the tutorials' network fits one size",
        ),
        ((any_size, tmp_path / "x", "--image-size", 60_000, 60_000), "an image has at most 16,777,216, and the"),
        ((finished_run, tmp_path / "x", "--no-stem-relu"), "--stem-relu applies to weights that do not store"),
        ((bare_file, tmp_path / "x", "--class-names", "a,,c"), "class name '' is empty"),
        ((bare_file, tmp_path / "x", "--class-names", "a,b,a"), "class name 'a' is empty, unprintable or repeated"),
    ):
        status, _, err = run_cli("convert", *words)
        assert status == 2
        assert message in err
    assert not (tmp_path / "x").exists()


def test_commands_print_progress_lines(finished_run, data_folder, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["flaxresnet", "evaluate", str(finished_run), "--data", str(data_folder), "--json"]
    )
    assert commands.main() == 0
    captured = capsys.readouterr()
    assert captured.err == "Evaluating…\n"
    assert json.loads(captured.out)["images"] == 19


def test_error_prints_list_in_lines(capsys):
    def fail():
        raise fr.UserError("2 images are unreadable:\n  a\nb.png\n  c.png")

    assert exit_status.run(fail) == 2
    assert capsys.readouterr().err == "error: 2 images are unreadable:\n  a b.png\n  c.png\n"
