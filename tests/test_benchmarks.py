"""Benchmarks: documented commands, tables and error messages. Measurements themselves are run by hand."""

import json
import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import pytest

import flaxresnet as fr
from flaxresnet import fitting
from flaxresnet.cli import parser
from flaxresnet.reliability.robustness import robustness
from flaxresnet.training import trainer
from flaxresnet.training.compiled_steps import CompiledSteps

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "benchmarks").rglob("*.md"))]
SCRIPTS = sorted(
    path.stem for path in (ROOT / "benchmarks").glob("*.py") if "begin(main, Arguments)" in path.read_text()
)
PLACEHOLDER = re.compile(r"[…\[]|MODEL|SIZE|\\")


def commands(script: str) -> list[list[str]]:
    """Returns the arguments of each documented command of a script, except commands with placeholders."""
    text = "\n".join(page.read_text() for page in (*PAGES, ROOT / "benchmarks" / f"{script}.py"))
    lines = re.findall(rf"python benchmarks/{script}\.py([^`\n]*)", text)
    return [shlex.split(line) for line in lines if not PLACEHOLDER.search(line)]


@pytest.mark.parametrize("script", SCRIPTS)
def test_documented_commands_parse(script):
    module = import_module(script)
    assert module.__doc__.split("\n\n")[0].endswith("?")
    assert commands(script)
    for arguments in commands(script):
        if "--help" not in arguments:
            parser.parse(module.Arguments, [argument.rstrip(":.,;") for argument in arguments], prog=script)


def test_results_page_is_short():
    lines = (ROOT / "benchmarks" / "RESULTS.md").read_text().splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 200


def test_ablation_constants_exist():
    from ablation import ABLATIONS, patched_constants

    for changes in ABLATIONS.values():
        constants = {name: value for name, value in changes.items() if "." in name}
        fr.TrainConfig.from_json({name: value for name, value in changes.items() if "." not in name})
        with patched_constants(constants):
            pass


def test_startup_marks_all_stages(data_folder, tmp_path, monkeypatch, capsys):
    import startup_time

    for owner, name in ((fitting, "check_splits"), (trainer, "train_epoch"), (CompiledSteps, "train_step")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # restores the original after the test
    monkeypatch.setattr(os, "_exit", sys.exit)
    flags = ["--model", "resnet14", "--width", "16", "--batch-size", "8", "--recipe", "tutorial", "--data"]
    workdir = str(tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["startup_time.py", "--workdir", workdir, *flags, str(data_folder)])
    with pytest.raises(SystemExit):
        startup_time.child(0.0)
    assert tuple(re.findall('"stage": "(.+?)"', capsys.readouterr().out)) == startup_time.STAGES


@pytest.mark.parity
def test_step_time_reports_steps(tmp_path):
    import step_time

    path = tmp_path / "steps.json"
    options = step_time.Arguments(
        batch_sizes=(2,), image_sizes=(32,), model="resnet14", steps=1, plain=False, json=path
    )
    step_time.main(options)
    rows = [(row["what"], row["conv"]) for row in json.loads(path.read_text())["rows"]]
    assert rows == [("train", "ours"), ("infer", "ours")]


def test_ended_framework_reports_failure():
    from compare_frameworks import FrameworkProcess

    process = subprocess.Popen([sys.executable, "-c", ""], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.wait()
    with TemporaryFile("w+") as errors:
        framework = FrameworkProcess("ended", process, errors)
        framework.take_turn("train", 32, 1)
    assert framework.failure == "no reason given"


def test_calibration_rows_pool_corruptions():
    from robustness import accuracy_rows, calibration_rows, composed_logits, corruption_logits

    def classify_by_brightness(images):
        logit = np.where(images.mean(axis=(1, 2, 3)) > 120, 2.0, -2.0)
        return np.stack([-logit, logit], axis=1)

    labels = np.arange(8) % 2
    images = (np.where(labels[:, None, None, None] == 1, 150, 90) * np.ones((8, 16, 16, 3))).astype(np.uint8)
    results = corruption_logits(classify_by_brightness, images, ("middle",))
    composed = composed_logits(classify_by_brightness, images, ("middle",))
    rows = calibration_rows(results, composed, labels)
    assert [row["images"] for row in rows] == ["none", "middle", "3 together, middle", "5 together, middle"]
    confidence = 1 / (1 + np.exp(-4))
    assert rows[0]["as trained"] == pytest.approx(1 - confidence, abs=1e-6)
    # Each half has the temperature of the other half: four correct images give a confidence of 5 / 6.
    assert rows[0]["with the temperature"] == pytest.approx(1 - 5 / 6, abs=1e-4)
    report = robustness(classify_by_brightness, images, labels, np.ones(8))
    counts = {row["shift"]: (row["images"], row["correct"]) for row in accuracy_rows(results, labels)}
    assert counts == {"none": (8, 8)} | {row.corruption: (row.images, row.correct) for row in report.rows}
    assert rows[1]["as trained"] == pytest.approx(abs(report.mean - confidence), abs=1e-6)
    assert rows[1]["with the temperature"] == pytest.approx(abs(report.mean - 5 / 6), abs=1e-4)


@pytest.mark.parametrize(("strengths", "composed"), [(("mild",), []), (("mild", "middle"), ["0.400", "0.300"])])
def test_comparison_columns_match_headers(strengths, composed):
    from robustness import comparison

    together = []
    for strength, accuracies in (("mild", (0.9, 0.8)), ("middle", (0.4, 0.3))):
        for count, accuracy in zip((3, 5), accuracies, strict=True):
            if strength in strengths:
                together.append({"shift": f"{count} together", "strength": strength, "accuracy": accuracy})
    summary = {"clean": 1.0} | {strength: {"mean": 0.5} for strength in strengths}
    run = {"recipe": "r", "summary": summary, "together": together, "other": {"drawn": 0.2}}
    table = comparison({"run": run}, strengths, ("drawn",))
    cells = [next(iter(column.cells)) for column in table.columns]
    assert cells == ["run", "1.000", *["0.500"] * len(strengths), *composed, "0.200"]
    assert table.columns[-1].header == "training images of drawn"


@pytest.fixture
def plain_photos():
    """Four photos of a dark object in front of a plain background, of two classes."""
    images = np.full((4, 32, 32, 3), 200, np.uint8)
    for image, left in zip(images, (13, 14, 15, 16), strict=True):
        image[14:, left : left + 8] = 90, 40, 30
    return fr.Dataset(images, np.array([0, 0, 1, 1]), ("a", "b"))


def test_rooms_share_background_and_light(plain_photos, monkeypatch):
    import finetuning

    images = finetuning.apply_room(plain_photos, 1, "middle").images
    other_room = finetuning.apply_room(plain_photos, 2, "middle").images
    assert images.shape == plain_photos.images.shape
    background = np.s_[:, :8, :8]
    assert np.ptp(images[background], axis=0).max() == 0  # the same in all photos
    assert np.ptp(images[background], axis=(0, 1, 2)).max() > 0  # with clutter
    assert np.abs(images[background].astype(int) - other_room[background]).max() > 20
    for name in finetuning.ROOM:
        monkeypatch.setattr(finetuning, "ROOM", (name,))
        difference = finetuning.apply_room(plain_photos, 1, "middle").images.astype(int) - plain_photos.images
        assert np.abs(difference).max() > 20, name


def test_stratified_sample_is_disjoint(plain_photos):
    from finetuning import stratified_sample

    chosen, rest = stratified_sample(plain_photos, 2, seed=0)
    assert chosen.labels.tolist() == rest.labels.tolist() == [0, 1]
    assert not {image.tobytes() for image in chosen.images} & {image.tobytes() for image in rest.images}


# Script, arguments, and a pattern of the message.
MISTAKES = [
    ("robustness", "nowhere", "nowhere"),
    ("robustness", "--hold-out held", "--hold-out .*--data"),
    ("robustness", "", "RUN"),
    ("robustness", "run --strengths wild", "--strengths 'wild' .*'mild', 'middle'"),
    ("ablation", "a b --ways sideways", "--ways 'sideways' .*'the recipe'"),
    ("step_time", "--batch-sizes 8 0", "--batch-sizes 0 .*1 or more"),
    ("conv_lowering", "--image-sizes 8", "--image-sizes 8 .*32 or more"),
    ("finetuning", "a --options freeze", "--options 'freeze': .*NAME=VALUE"),
    ("finetuning", "a --options speed=1", "'speed'"),
    ("finetuning", "a --strength mild", "--strength mild .*--rooms"),
    ("scaling", "--processes 2", "--processes 2 .*1"),
    ("startup_time", "--json nowhere/x.json", "--json nowhere/x.json: .*no folder nowhere"),
]


@pytest.mark.parametrize(("script", "arguments", "pattern"), MISTAKES)
def test_mistake_is_one_sentence(script, arguments, pattern, tmp_path, monkeypatch, capsys):
    from bench_cli import begin

    monkeypatch.chdir(tmp_path)
    module = import_module(script)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        begin(module.main, module.Arguments)
    message = capsys.readouterr().err
    assert (ended.value.code, message.count("\n")) == (2, 1)
    assert re.match(f"error: .*{pattern}", message), message


@pytest.mark.parity
def test_mistake_ends_the_process(tmp_path):
    script = str(ROOT / "benchmarks" / "startup_time.py")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    command = [sys.executable, script, "--json", "nowhere/x.json"]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (process.returncode, process.stderr.count("\n")) == (2, 1)
