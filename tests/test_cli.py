"""The command line as people see it: in a terminal with colors, and in the help pages."""

import json
import os
import pty
import sys
from importlib import import_module

import pytest
from test_config import WRONG_FLAGS

from flaxresnet import cli
from flaxresnet.__main__ import COMMANDS
from flaxresnet.config import TrainConfig

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
    process, terminal = pty.fork()
    if process == 0:
        environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "80", "FORCE_COLOR": "1"}
        os.execve(command[0], command, environment)
    output = b""
    while True:
        try:
            chunk = os.read(terminal, 4096)
        except OSError:  # the terminal is closed
            chunk = b""
        if not chunk:
            break
        output += chunk
    os.waitpid(process, 0)
    os.close(terminal)
    return output.decode()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no pseudo-terminals")
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
