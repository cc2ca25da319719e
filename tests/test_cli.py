"""The command line as people see it: in a terminal with colors, and in the help pages."""

import json
import os
import pty
import subprocess
import sys
from importlib import import_module

import pytest
from test_config import WRONG_FLAGS

from flaxresnet import cli
from flaxresnet.__main__ import COMMANDS
from flaxresnet.config import TrainConfig
from flaxresnet.runtime.errors import UserError

# Parses each command line that it reads, and ends each answer with a line of its own.
PROGRAM = """
import json, sys
from flaxresnet import cli
from flaxresnet.config import TrainConfig
for argv in json.loads(sys.argv[1]):
    print("status", cli.run(lambda: cli.parse(TrainConfig, argv, prog="python train.py")))
"""


def in_terminal(*command):
    """Returns what a command prints in a terminal of 80 columns that shows colors."""
    terminal, child_side = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "80", "FORCE_COLOR": "1"}
    process = subprocess.Popen(command, env=environment, stdin=child_side, stdout=child_side, stderr=child_side)
    os.close(child_side)
    output = b""
    while True:
        try:
            chunk = os.read(terminal, 4096)
        except OSError:  # the terminal is closed
            chunk = b""
        if not chunk:
            break
        output += chunk
    process.wait()
    os.close(terminal)
    return output.decode()


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="the system has no pseudo-terminals")
def test_mistakes_in_a_color_terminal():
    """A parser that draws boxes or colors words would lose the sentence there, which a pipe does not show."""
    lines = [argv for argv, _ in WRONG_FLAGS.values()]
    output = in_terminal(sys.executable, "-c", PROGRAM, json.dumps(lines))
    answers = output.replace("\r\n", "\n").split("status 2\n")
    assert answers.pop() == ""
    for answer, (argv, parts) in zip(answers, WRONG_FLAGS.values(), strict=True):
        assert answer.startswith("error: "), (argv, answer)
        assert answer.endswith("; see `python train.py --help`\n"), (argv, answer)
        assert answer.count("\n") == 1, (argv, answer)
        for part in parts:
            assert part in answer, (argv, answer)


@pytest.mark.parametrize("name", ["train", *COMMANDS])
def test_help_texts_flow(name, capsys, monkeypatch):
    """A line break in a docstring is none in the help, whatever the width of the terminal."""
    arguments = TrainConfig
    if name != "train":
        arguments = import_module(f"flaxresnet.commands.{name.replace('-', '_')}").Arguments
    monkeypatch.setenv("COLUMNS", "2000")
    with pytest.raises(SystemExit):
        cli.parse(arguments, ["--help"], prog="flaxresnet")
    lines = capsys.readouterr().out.splitlines()
    for field, text in cli.field_docstrings(arguments).items():
        assert any(" ".join(text.split()) in line for line in lines), field


def test_words_after_two_hyphens_are_positional():
    arguments = import_module("flaxresnet.commands.predict").Arguments
    parsed = cli.parse(arguments, ["run", "a.png", "--json", "b.png", "--", "--odd.png"], prog="predict")
    assert parsed == arguments("run", ("a.png", "b.png", "--odd.png"), json=True)


def test_missing_positional_argument_is_named():
    with pytest.raises(UserError, match=r"OUT is missing: .*; see `convert --help`"):
        cli.parse(import_module("flaxresnet.commands.convert").Arguments, ["in.h5"], prog="convert")
