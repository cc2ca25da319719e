"""The commands that the pages give for the benchmarks have flags that there are; the scripts are run by hand."""

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
from flaxresnet.cli import parser
from flaxresnet.reliability.robustness import robustness

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "benchmarks").rglob("*.md"))]
SCRIPTS = sorted(
    path.stem for path in (ROOT / "benchmarks").glob("*.py") if "begin(main, Arguments)" in path.read_text()
)


def commands(script: str) -> list[list[str]]:
    """The words after the script's name wherever it is told how to run it, its own help included."""
    text = "\n".join(page.read_text() for page in (*PAGES, ROOT / "benchmarks" / f"{script}.py"))
    found = re.findall(rf"python benchmarks/{script}\.py([^`\n]*)", text)
    return [shlex.split(words) for words in found if not re.search(r"[…\[]|MODEL|SIZE|\\", words)]


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_commands_that_are_shown_are_understood(script):
    module = import_module(script)
    assert commands(script)
    for words in commands(script):
        if "--help" not in words:
            parser.parse(module.Arguments, [word.rstrip(":.,;") for word in words], prog=script)


def test_a_framework_that_ends_between_its_turns_is_named_and_the_others_go_on():
    from compare_frameworks import FrameworkProcess

    process = subprocess.Popen([sys.executable, "-c", ""], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.wait()
    with TemporaryFile("w+") as complaints:
        peer = FrameworkProcess("gone", process, complaints)
        peer.take_turn("train", 32, 1)
    assert peer.failure == "no reason given"


def test_calibration_is_told_of_all_changed_images_of_a_strength_together():
    from robustness import answered, answered_together, calibrated, measured

    def by_brightness(images):
        sign = np.where(images.mean(axis=(1, 2, 3)) > 120, 2.0, -2.0)
        return np.stack([-sign, sign], axis=1)

    labels = np.arange(8) % 2
    images = (np.where(labels[:, None, None, None] == 1, 150, 90) * np.ones((8, 16, 16, 3))).astype(np.uint8)
    alone, several = (each(by_brightness, images, ("middle",)) for each in (answered, answered_together))
    rows = calibrated(alone, several, labels)
    assert [row["images"] for row in rows] == ["none", "middle", "3 together, middle", "5 together, middle"]
    sure, clean = 1 / (1 + np.exp(-4)), rows[0]
    assert clean["as trained"] == pytest.approx(1 - sure, abs=1e-6)
    # Of each half the temperature is that of the other: four images, all right, aim at 5 / 6.
    assert clean["with the temperature"] == pytest.approx(1 - 5 / 6, abs=1e-4)
    found = robustness(by_brightness, images, labels, np.ones(8))
    right = {row["shift"]: (row["images"], row["correct"]) for row in measured(alone, labels)}
    assert right == {"none": (8, 8)} | {row.change: (row.images, row.correct) for row in found.rows}
    assert rows[1]["as trained"] == pytest.approx(abs(found.mean - sure), abs=1e-6)
    assert rows[1]["with the temperature"] == pytest.approx(abs(found.mean - 5 / 6), abs=1e-4)


@pytest.mark.parametrize(("strengths", "several"), [(("mild",), []), (("mild", "middle"), ["0.400", "0.300"])])
def test_each_figure_of_the_comparison_stands_below_its_head(strengths, several):
    from robustness import comparison

    compose_corruptions = [
        {"shift": f"{count} together", "strength": strength, "accuracy": accuracy}
        for strength, accuracies in (("mild", (0.9, 0.8)), ("middle", (0.4, 0.3)))
        for count, accuracy in zip((3, 5), accuracies, strict=True)
        if strength in strengths
    ]
    summary = {"clean": 1.0} | {strength: {"mean": 0.5} for strength in strengths}
    found = {"run": {"recipe": "r", "summary": summary, "together": compose_corruptions, "other": {"mine": 0.2}}}
    table = comparison(found, strengths, ("mine",))
    cells = [next(iter(column.cells)) for column in table.columns]
    assert cells == ["run", "1.000", *["0.500"] * len(strengths), *several, "0.200"]
    assert [column.header for column in table.columns][-1] == "training images of mine"


def test_all_pictures_of_a_room_have_its_wall_its_light_and_its_distance(monkeypatch):
    import finetuning
    from finetuning import apply_room, stratified_sample

    images = np.full((4, 32, 32, 3), 200, np.uint8)
    for image, left in zip(images, (13, 14, 15, 16), strict=True):
        image[14:, left : left + 8] = 90, 40, 30  # a thing before a plain wall
    data = fr.Dataset(images, np.array([0, 0, 1, 1]), ("a", "b"))
    one, other = apply_room(data, 1, "middle"), apply_room(data, 2, "middle")
    assert one.images.shape == images.shape
    corner = np.s_[:, :8, :8]
    assert np.ptp(one.images[corner], axis=0).max() == 0, "the wall is the same behind all of them"
    assert np.ptp(one.images[corner], axis=(0, 1, 2)).max() > 0, "and has something on it"
    assert np.abs(one.images[corner].astype(int) - other.images[corner]).max() > 20, "each room has its own"
    for name in finetuning.ROOM:
        monkeypatch.setattr(finetuning, "ROOM", (name,))
        difference = apply_room(data, 1, "middle").images.astype(int) - images
        assert np.abs(difference).max() > 20, name
    few, rest = stratified_sample(one, 2, seed=0)
    assert few.labels.tolist() == rest.labels.tolist() == [0, 1]
    assert not {image.tobytes() for image in few.images} & {image.tobytes() for image in rest.images}


MISTAKES = [
    ("robustness", ["nowhere"], "error: nowhere holds no run"),
    ("robustness", ["--hold-out", "held"], "error: --hold-out needs --data"),
    ("robustness", [], "error: no RUN given to measure; name the folder of one, or of several"),
    ("robustness", ["run", "--strengths", "wild"], "error: --strengths 'wild' is not one of 'mild', 'middle', "),
    ("ablation", ["a", "b", "--ways", "sideways"], "error: --ways 'sideways' is not one of 'the recipe', "),
    ("step_time", ["--batch-sizes", "8", "0"], "error: --batch-sizes 0 is too small; give 1 or more"),
    ("conv_lowering", ["--image-sizes", "8"], "error: --image-sizes 8 is too small; give 32 or more"),
    ("finetuning", ["a", "--options", "freeze"], "error: --options 'freeze': give NAME=VALUE, "),
    ("finetuning", ["a", "--options", "speed=1"], "error: unknown options ['speed']; the options are those of "),
    ("finetuning", ["a", "--strength", "mild"], "error: --strength mild is of rooms; give --rooms"),
    ("startup_time", ["--json", "nowhere/x.json"], "error: --json nowhere/x.json: there is no folder nowhere; make it"),
]


def test_a_mistake_is_one_sentence(tmp_path, monkeypatch, capsys):
    from bench_cli import begin

    monkeypatch.chdir(tmp_path)
    for script, words, said in MISTAKES:
        module = import_module(script)
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *words])
        with pytest.raises(SystemExit) as ended:
            begin(module.main, module.Arguments)
        told = capsys.readouterr().err
        assert (ended.value.code, told.count("\n")) == (2, 1), (script, words, told)
        assert told.startswith(said), (script, words)


@pytest.mark.parity
def test_mistake_ends_the_process(tmp_path):
    script, words, said = MISTAKES[-1]
    command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), *words]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(said)
