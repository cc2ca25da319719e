"""The commands that the pages give for the benchmarks have flags that there are; the scripts are run by hand."""

import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile

import pytest
import tyro

import flaxresnet as fr

ROOT = Path(fr.__file__).parent.parent
PAGES = ("README.md", "benchmarks/RESULTS.md", "benchmarks/SCALING.md")
SCRIPTS = sorted(
    path.stem for path in (ROOT / "benchmarks").glob("*.py") if "begin(main, Arguments)" in path.read_text()
)
pytestmark = pytest.mark.skipif(not SCRIPTS, reason="the benchmarks are in the repository, not in the package")


def commands(script: str) -> list[list[str]]:
    """The words after the script's name wherever it is told how to run it, its own help included."""
    text = "\n".join((ROOT / page).read_text() for page in (*PAGES, f"benchmarks/{script}.py"))
    found = re.findall(rf"python benchmarks/{script}\.py([^`\n]*)", text)
    return [shlex.split(words) for words in found if not re.search(r"[…\[]|MODEL|SIZE|\\", words)]


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_commands_that_are_shown_are_understood(script):
    module = import_module(script)
    assert commands(script)
    for words in commands(script):
        tyro.cli(module.Arguments, args=[word.rstrip(":.,;") for word in words])


def test_a_framework_that_ends_between_its_turns_is_named_and_the_others_go_on():
    from peers import Contestant

    process = subprocess.Popen([sys.executable, "-c", ""], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.wait()
    with TemporaryFile("w+") as complaints:
        peer = Contestant("gone", process, complaints)
        peer.take_turn("train", 32, 1)
    assert peer.failure == "no reason given"


@pytest.mark.parametrize(
    ("script", "words", "said"),
    [
        ("robustness", ["nowhere"], "error: nowhere holds no run"),
        ("robustness", ["--hold-out", "held"], "error: --hold-out needs --data"),
        ("ablation", ["a", "b", "--ways", "sideways"], "error: --ways 'sideways' is not one of 'the recipe', "),
        ("step_time", ["--batch-sizes", "8", "0"], "error: --batch-sizes 0 is too small; give 1 or more"),
        ("conv_lowering", ["--image-sizes", "8"], "error: --image-sizes 8 is too small; give 32 or more"),
        ("start_up", ["--json", "nowhere/x.json"], "error: --json nowhere/x.json: there is no folder nowhere; make it"),
    ],
)
def test_a_mistake_is_one_sentence(script, words, said, tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(said)
