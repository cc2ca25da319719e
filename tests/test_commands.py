"""The commands as a user types them: what they print, and how they end."""

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
from rich.console import Console

import flaxresnet as fr
import train
from flaxresnet.cli import exit_status
from flaxresnet.cli import main as commands
from flaxresnet.cli.evaluate import show
from flaxresnet.cli.image_args import ImageReader
from flaxresnet.config.validation import flag
from flaxresnet.data.hand_signs.render import hand_signs
from flaxresnet.data.hdf5 import write_hdf5
from flaxresnet.data.open import open_dataset
from flaxresnet.runs.run_dir import RunDir
from flaxresnet.weights.run_weights import read_run
from flaxresnet.weights.weight_files import write_weights


@pytest.fixture
def shell(monkeypatch, capsys, tmp_path):
    """Runs `flaxresnet …` or `python train.py …` in an empty folder: (exit status, output, errors)."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*words):
        program, *arguments = map(str, words)
        main = train.main if program == "train.py" else commands.main
        monkeypatch.setattr(sys, "argv", [program, *(arguments if program == "train.py" else words_of(words))])
        try:
            status = exit_status.run(main)
        except SystemExit as stop:
            status = stop.code or 0
        said = capsys.readouterr()
        return status, said.out, said.err

    def words_of(words):
        return [str(word) for word in words]

    return run


def test_training_ends_with_the_tutorials_two_lines(shell, data_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("flaxresnet.fitting.use_compilation_cache", lambda use: None)
    numbers = {name: value for name, value in TINY_CONFIG.items() if not isinstance(value, bool)}
    flags = [f"{flag(name)}={value}" for name, value in numbers.items()]
    flags += ["--epochs=3", "--no-zero-init-residual", "--no-compilation-cache", "--no-report"]
    status, out, _ = shell("train.py", "--data", data_folder, "--workdir", tmp_path / "run", *flags)
    loss, accuracy = out.splitlines()[-2:]
    assert status == 0
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert loss == f"Loss = {last['test_loss']:.4f}"
    assert accuracy == f"Test Accuracy = {last['test_accuracy']:.4f}"


def test_more_pictures_than_memory_holds_are_a_sentence(shell, monkeypatch, tmp_path):
    def too_many(*_):
        raise MemoryError

    monkeypatch.setattr("flaxresnet.cli.make_data.hand_signs", too_many)
    status, _, err = shell("make-data", tmp_path / "out", "--train", 1_000_000, "--image-size", 4096)
    assert status == 2
    assert "1,000,120 images of 4096×4096 take 46,880.6 GiB of memory, more than there is; give fewer by --train" in err


def test_the_largest_networks_that_are_not_refused_can_be_listed(shell):
    words = ("--width", 4096, "--image-size", 65536, 65536, "--num-classes", 1_000_000, "--depth", "parts")
    assert shell("summary", "resnet14", *words)[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train.py", "--epoch", "3"), "--epoch"),
        (("train.py", "--recipe", "fancy"), "'fancy'"),
        (("train.py", "--epochs", "many"), "'many'"),
        (("train.py", "--batch-size", "0"), "--batch-size must be at least 1, not 0"),
        (("train.py", "--data", "nowhere.h5"), "nowhere.h5 does not exist"),
        (("evaluate", "nowhere"), "nowhere holds no run"),
        (("evaluate",), "run"),
        (("predict", "nowhere"), "no photo given"),
        (("predict", "nowhere", "a.jpg", "--top-k", "0"), "--top-k must be at least 1, not 0"),
        (("predict", "nowhere", "a.jpg", "--json", "--csv"), "--json and --csv are two ways to print"),
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
def test_a_users_mistake_is_one_sentence_and_exit_status_2(words, message, shell):
    status, out, err = shell(*words)
    assert status == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize("command", [*commands.COMMANDS, "train.py"])
def test_help_says_what_a_command_does(command, shell):
    status, out, _ = shell(command, "--help")
    assert status == 0
    assert f"usage: {'python train.py' if command == 'train.py' else 'flaxresnet ' + command}" in out


def test_the_overview_names_every_command(shell):
    status, out, _ = shell("--help")
    assert status == 0
    assert all(name in out for name in commands.COMMANDS)


def test_evaluate_prints_loss_accuracy_interval_and_tables(shell, finished_run, data_folder):
    status, out, _ = shell("evaluate", finished_run, "--data", data_folder / "test.h5")
    assert status == 0
    assert out.startswith(f"data: {data_folder / 'test.h5'}\nLoss = ")
    assert "\nTest Accuracy = " in out
    assert "95% interval" in out
    assert "confusion matrix" in out
    status, out, _ = shell("evaluate", finished_run, "--data", data_folder / "test.h5", "--json")
    figures = json.loads(out)
    assert status == 0
    assert {"loss", "accuracy", "accuracy_interval", "per_class", "confusion"} <= set(figures)
    assert figures["images"] == 19


def test_predict_prints_a_line_a_photo(shell, finished_run, tmp_path, monkeypatch):
    for index, name in enumerate(("red", "green")):
        Image.fromarray(blobs(3, seed=8).images[index]).save(tmp_path / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    status, out, _ = shell("predict", finished_run, "red.png", "green.png")
    assert status == 0
    classifier = fr.Classifier.load(finished_run)
    answers = {name: classifier.predict(name) for name in ("red.png", "green.png")}
    assert out.splitlines() == [f"{name}  {a.label}  {a.probability:.4f}" for name, a in answers.items()]
    status, out, _ = shell("predict", finished_run, "red.png", "--json")
    row = json.loads(out)
    assert (row["file"], row["label"]) == ("red.png", answers["red.png"].label)
    assert row["probability"] == max(row["probabilities"].values())


def test_photos_that_cannot_be_read_are_named_and_the_rest_answered(shell, finished_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(blobs(3, seed=8).images[0]).save("red.png")
    (tmp_path / "junk.jpg").write_text("no picture")
    status, out, err = shell("predict", finished_run, "junk.jpg", "red.png")
    assert status == 1
    assert out.startswith("red.png  ")
    assert out.count("\n") == 1
    assert "junk.jpg cannot be read" in err
    assert shell("predict", finished_run, "junk.jpg")[0] == 2


def test_predict_takes_folders_and_patterns_and_names_more_classes(shell, finished_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for index in range(3):
        Image.fromarray(blobs(3, seed=8).images[index]).save(f"photos/{index}.png")
    status, out, _ = shell("predict", finished_run, "photos", "--top-k", 2)
    assert status == 0
    answers = [fr.Classifier.load(finished_run).predict(f"photos/{index}.png") for index in range(3)]
    ranked = [sorted(answer.probabilities.items(), key=lambda pair: -pair[1])[:2] for answer in answers]
    assert out.splitlines() == [
        f"photos/{index}.png  " + "  ".join(f"{name}  {share:.4f}" for name, share in pairs)
        for index, pairs in enumerate(ranked)
    ]
    _, out, _ = shell("predict", finished_run, "photos/[01].png", "--json", "--top-k", 3)
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["file"] for row in rows] == ["photos/0.png", "photos/1.png"]
    for top, (name, share) in zip(
        rows[0]["top"][:2], ranked[0], strict=True
    ):  # batches of another size round otherwise
        assert (top["label"], top["probability"]) == (name, pytest.approx(share, abs=1e-6))
    _, out, _ = shell("predict", finished_run, "photos", "--csv", "--top-k", 2)
    table = list(csv.DictReader(io.StringIO(out)))
    assert list(table[0]) == [
        "file",
        "label",
        "probability",
        "label 2",
        "probability 2",
        "ood_score",
        "is_ood",
        "p(red)",
        "p(green)",
        "p(blue)",
    ]
    for row, answer in zip(table, answers, strict=True):
        assert row["label"] == answer.label
        assert float(row["p(green)"]) == pytest.approx(answer.probabilities["green"], abs=1e-6)
        assert row["ood_score"] == row["is_ood"] == ""


def test_predict_says_of_a_photo_that_it_is_unlike_the_training_images(shell, finished_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(finished_run, tmp_path / "run")
    monkeypatch.setattr("flaxresnet.report.text.write_report", lambda run, found: run)  # the page is not read
    assert shell("report", run)[0] == 0
    Image.fromarray(blobs(3, seed=8).images[0]).save("like.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save("unlike.png")
    classifier = fr.Classifier.load(run)
    odd = classifier.predict("unlike.png")
    assert odd.is_ood
    assert not classifier.predict("like.png").is_ood
    like, unlike = shell("predict", run, "like.png", "unlike.png")[1].splitlines()
    assert not like.endswith("unlike the training images")
    assert unlike == f"unlike.png  {odd.label}  {odd.probability:.4f}  unlike the training images"
    row = json.loads(shell("predict", run, "unlike.png", "--json")[1])
    assert row["is_ood"] is True
    assert row["ood_score"] == pytest.approx(odd.ood_score, rel=1e-4)
    (table,) = csv.DictReader(io.StringIO(shell("predict", run, "unlike.png", "--csv")[1]))
    assert (table["is_ood"], float(table["ood_score"])) == ("true", pytest.approx(odd.ood_score, abs=1e-5))


def test_a_run_with_too_few_test_images_to_tell_says_so(shell, calibrated_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(calibrated_run, tmp_path / "run")
    replace(fr.Classifier.load(run).calibration, threshold=float("inf")).write(run)
    Image.fromarray(small_in_a_corner(1)).save("far.png")
    assert json.loads(shell("predict", "run", "far.png", "--json")[1])["is_ood"] is None
    (table,) = csv.DictReader(io.StringIO(shell("predict", "run", "far.png", "--csv")[1]))
    assert table["is_ood"] == ""


def test_explain_says_which_photos_are_unlike_the_training_images(shell, calibrated_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(blobs(40, seed=7).images[0]).save("like.png")
    Image.fromarray(small_in_a_corner(1)).save("unlike.png")
    lines = shell("explain", calibrated_run, "like.png", "unlike.png")[1].splitlines()
    assert ["unlike the training images" in line.split("  ") for line in lines] == [False, True]


def test_views_are_averaged_where_asked_for(shell, finished_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = blobs(2, seed=8).images
    for name, image in zip(("0.png", "1.png"), images, strict=True):
        Image.fromarray(image).save(name)
    alone, viewed = (
        shell("predict", finished_run, "0.png", "1.png", "--json", *words)[1].splitlines() for words in ([], ["--tta"])
    )
    expected = fr.Classifier.load(finished_run).predict_batch(images, tta=True).probabilities
    assert len(alone) == len(viewed) == len(expected) == 2
    for before, after, row in zip(alone, viewed, expected, strict=True):
        assert json.loads(after)["probability"] == pytest.approx(float(row.max()), rel=1e-4)
        assert json.loads(after)["probability"] != json.loads(before)["probability"]


def test_photos_are_read_a_batch_at_a_time(tmp_path):
    for index in range(10):
        (tmp_path / f"{index}.png").write_bytes(b"")
    loaded = []

    def load(file):
        loaded.append(file)
        return file

    reader = ImageReader([str(tmp_path)], load, batch=4)
    assert len(next(reader.batches)) == len(loaded) == 4
    assert [len(batch) for batch in reader.batches] == [4, 2]
    assert reader.status() == 0


def test_a_folder_without_pictures_is_named_and_the_others_read(shell, finished_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    Image.fromarray(blobs(3, seed=8).images[0]).save("red.png")
    status, out, err = shell("predict", finished_run, "empty", "no/*.png", "red.png")
    assert status == 1
    assert out.startswith("red.png  ")
    assert out.count("\n") == 1
    assert "error: empty holds no picture (.avif, .bmp" in err
    assert "error: no/*.png stands for no file" in err
    assert shell("predict", finished_run, "empty")[::2] == (2, err.splitlines()[0] + "\n")


def test_a_path_that_may_not_be_looked_at_is_named_and_the_others_read(shell, finished_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "sub.jpg").mkdir(parents=True)
    Image.fromarray(blobs(3, seed=8).images[0]).save("photos/sub.jpg/red.png")
    long = "x" * 5000
    status, out, err = shell("predict", finished_run, long, "photos/*", "photos")
    assert status == 1
    assert [line.split()[0] for line in out.splitlines()] == ["photos/sub.jpg/red.png"] * 2
    assert err == f"error: {long} cannot be read: File name too long\n"


def test_check_data_says_what_a_data_set_holds(shell, data_folder):
    status, out, _ = shell("check-data", data_folder)
    assert status == 0
    assert "number of training examples = 44" in out
    assert "3 classes: red, green, blue" in out
    assert "test images a class: 7, 6, 6" in out


def test_check_data_says_what_training_would_miss_or_refuse(shell, data_folder, tmp_path):
    status, out, _ = shell("check-data", data_folder / "test.h5")
    assert status == 0
    assert "only a test split: a run can be evaluated on it, but training needs a training split" in out
    for name in ("train", "test"):
        write_hdf5(tmp_path / f"{name}.h5", name, blobs(6, 1, size=16))
    status, _, err = shell("check-data", tmp_path)
    assert status == 2
    assert "images of 16×16 pixels; the network needs 32×32 or more" in err


def test_check_data_lists_test_images_that_are_training_images(shell, tmp_path):
    write_hdf5(tmp_path / "train.h5", "train", blobs(9, 1))
    write_hdf5(tmp_path / "test.h5", "test", blobs(9, 1))
    status, out, _ = shell("check-data", tmp_path)
    assert status == 0
    first = out.splitlines().index(
        "warning: 9 of 9 test images are training images too; test accuracy would reward memorization; "
        "remove them from one split:"
    )
    assert out.splitlines()[first + 1 :] == [f"  test image {i}: training image {i}" for i in range(9)]


def test_check_data_calls_pictures_by_their_files_and_looks_at_them_each_time(shell, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for split, seed in (("train", 1), ("test", 2)):
        for i, image in enumerate(blobs(30, seed).images):
            (folder := tmp_path / "data" / split / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{i}.png")
    data, copies = tmp_path / "data", {f"test/a/{i}.png": f"train/b/{i + 1}.png" for i in range(0, 24, 2)}
    for mine, theirs in copies.items():
        (data / mine).write_bytes((data / theirs).read_bytes())
    status, out, _ = shell("check-data", data)
    assert status == 0
    assert sorted(line for line in out.splitlines() if line.startswith("  ")) == sorted(
        f"  {mine}: {theirs}" for mine, theirs in copies.items()
    )
    about = (bad := data / "train" / "a" / "0.png").stat()
    bad.write_bytes(bytes(about.st_size))
    os.utime(bad, ns=(about.st_atime_ns, about.st_mtime_ns))
    status, _, err = shell("check-data", data)
    assert status == 2
    assert "1 of 60 images in " in err


def test_missing_device_is_a_sentence(monkeypatch, capsys):
    def devices():
        raise RuntimeError("Unable to initialize backend 'cuda'\nand more of it")

    def main():
        raise AssertionError("whatever JAX says in that case")

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert exit_status.run(main) == 2
    said = "error: JAX_PLATFORMS=cuda asks for a device that JAX cannot use here (Unable to initialize backend 'cuda');"
    assert capsys.readouterr().err.startswith(said)
    monkeypatch.delenv("JAX_PLATFORMS")
    with pytest.raises(AssertionError):
        exit_status.run(main)


@pytest.mark.parity
def test_a_device_that_is_asked_for_and_not_there_is_a_sentence(finished_run):
    environment = os.environ | {"JAX_PLATFORMS": "cuda"}
    command = [sys.executable, "-m", "flaxresnet", "evaluate", str(finished_run)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "error: JAX_PLATFORMS=cuda asks for a device that JAX cannot use here (" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_device_that_is_passed_over_is_said_once(tmp_path):
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
    said = "warning: JAX_PLATFORMS=cuda,cpu asks for cuda first, which JAX cannot use here; this computes on cpu"
    lines = [line for line in done.stderr.splitlines() if line == said or "nowhere" in line]
    assert [line == said for line in lines] == [True, False, False] * 2, lines


def test_the_accuracy_on_training_images_is_called_that(shell, finished_run):
    _, out, _ = shell("evaluate", finished_run, "--split", "train")
    assert "Train Accuracy = " in out
    assert "Test" not in out


def test_class_names_are_shown_as_they_are(capsys):
    names = ("[/]", "[red]x", *(f"a rather long name {i}" for i in range(12)))
    show(fr.Evaluation(0.1, np.eye(14, dtype=int) * 1234, names), Console(width=400))
    out = capsys.readouterr().out
    assert "[/]" in out
    assert "[red]x" in out
    assert out.count("1234") == 28  # as a number of images and in the matrix, each fourteen times


def test_a_reader_that_stops_reading_is_no_mistake():
    command = [sys.executable, "-m", "flaxresnet", "--help"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    )
    process.stdout.close()
    _, err = process.communicate()
    assert process.returncode == 141
    assert err == b""


def test_make_data_writes_files_that_training_reads_and_overwrites_none(shell, tmp_path):
    folder = tmp_path / "made"
    status, _, _ = shell("make-data", folder, "--train", 12, "--test", 6, "--seed", 4, "--variety", 1)
    assert status == 0
    before = (folder / "train_signs.h5").read_bytes()
    drawn = hand_signs(seed=4, train=12, test=6, variety=1.0).test
    np.testing.assert_array_equal(open_dataset(folder).test.images, drawn.images)
    status, out, _ = shell("check-data", folder)
    assert status == 0
    assert "X_train shape: (12, 64, 64, 3)  Y_train shape: (12,)" in out
    status, _, err = shell("make-data", folder)
    assert status == 2
    assert "train_signs.h5 exists and is not overwritten" in err
    assert (folder / "train_signs.h5").read_bytes() == before


def test_ctrl_c_ends_with_a_sentence():
    def interrupted():
        raise KeyboardInterrupt

    assert exit_status.run(interrupted) == 130


def test_weights_are_carried_from_a_run_to_keras_and_back(shell, finished_run, data_folder, tmp_path):
    file, back = tmp_path / "small.keras", tmp_path / "back"
    status, out, _ = shell("convert", finished_run, file)
    assert status == 0
    assert "resnet14 as in the tutorials, 3 classes" in out
    assert "images of 32×32" in out
    assert shell("convert", file, back)[0] == 0
    answers = [json.loads(shell("evaluate", run, "--data", data_folder, "--json")[1]) for run in (finished_run, back)]
    assert answers[0]["accuracy"] == answers[1]["accuracy"]
    assert answers[0]["loss"] == answers[1]["loss"]
    assert answers[0]["confusion"] == answers[1]["confusion"]
    status, _, err = shell("evaluate", back)
    assert (status, err) == (
        2,
        f"error: {back} was made from weights of {file} and has no training data; give --data\n",
    )
    assert shell("evaluate", back, "--data", data_folder, "--checkpoint", "best")[0] == 0

    assert shell("convert", file, tmp_path / "named", "--class-names", "a, b,c")[0] == 0
    assert fr.Classifier.load(tmp_path / "named").class_names == ("a", "b", "c")
    for words, message in (
        (("convert", file, file), f"{file} exists; give --overwrite to replace it"),
        (("convert", file, tmp_path / "x.txt"), "x.txt does not say what to write; let its name end in .weights.h5"),
        (
            ("convert", file, tmp_path / "x", "--key-format", "huggingface"),
            "--key-format huggingface is for .safetensors and .pth",
        ),
        (("convert", file, tmp_path / "x", "--class-names", "a,b"), f"--class-names has 2 names; {file} has 3 classes"),
        (("convert", file, back), f"{back} exists and is not overwritten; name another folder"),
        (("convert", file, tmp_path / "x.pth"), "a resnet14 of the variant tutorial cannot be written as .pth"),
    ):
        status, _, err = shell(*words)
        assert status == 2
        assert message in err
    assert not (tmp_path / "x").exists()
    status, out, _ = shell("convert", file, file, "--overwrite")
    assert status == 0


@pytest.fixture
def silent_file(finished_run, tmp_path):
    """Weights of the tutorials by Keras's names alone, as `save_weights` writes them."""
    path = tmp_path / "silent.weights.h5"
    write_weights(read_run(finished_run), path)
    with h5py.File(path, "a") as file:
        del file.attrs["flaxresnet"]
    return path


def test_what_a_file_does_not_tell_can_be_said(shell, silent_file, tmp_path):
    words = ("--no-stem-relu", "--image-size", 32, 32, "--scaling", "torchvision", "--class-names", "a,b,c")
    status, out, _ = shell("convert", silent_file, tmp_path / "said", *words)
    assert status == 0
    assert "images of 32×32, pixels 0–255 · 0.003922 - (0.485, 0.456, 0.406) / (0.229, 0.224, 0.225), rgb" in out
    classifier = fr.Classifier.load(tmp_path / "said")
    assert classifier.preprocessing.std == (0.229, 0.224, 0.225)
    assert classifier.class_names == ("a", "b", "c")
    assert RunDir(tmp_path / "said").read_metadata().config.stem_relu is False

    write_weights(random_weights("resnet14", "torchvision"), tmp_path / "any.safetensors")
    status, out, _ = shell("convert", tmp_path / "any.safetensors", tmp_path / "sized", "--image-size", 96, 80)
    assert status == 0
    assert "images of 96×80" in out

    source = random_weights("resnet14", "tutorial")
    other = replace(source, preprocessing=replace(source.preprocessing, resize="bilinear"))
    write_weights(other, tmp_path / "other.keras")
    assert shell("convert", tmp_path / "other.keras", tmp_path / "scaled", "--scaling", "keras")[0] == 0
    assert fr.Classifier.load(tmp_path / "scaled").preprocessing.resize == "bilinear"


def test_what_is_said_of_a_file_has_to_fit_it(shell, silent_file, finished_run, tmp_path):
    any_size = tmp_path / "any.safetensors"
    write_weights(random_weights("resnet14", "torchvision"), any_size)
    for words, message in (
        ((silent_file, tmp_path / "x", "--image-size", 64, 32), "--image-size 64 32 does not fit"),
        ((silent_file, tmp_path / "x", "--image-size", 3, 3), "and the tutorials' last layer is tied to its own"),
        ((any_size, tmp_path / "x", "--image-size", 60_000, 60_000), "an image 16,777,216 at most, and the"),
        ((finished_run, tmp_path / "x", "--no-stem-relu"), "--stem-relu is for weights that do not tell"),
        ((silent_file, tmp_path / "x", "--class-names", "a,,c"), "class name '' is empty"),
        ((silent_file, tmp_path / "x", "--class-names", "a,b,a"), "class name 'a' is empty, unprintable or repeated"),
    ):
        status, _, err = shell("convert", *words)
        assert status == 2
        assert message in err
    assert not (tmp_path / "x").exists()
