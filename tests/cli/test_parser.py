"""The parser of command lines: errors, help pages, and both in a color terminal."""

import io
import json
import os
import pty
import subprocess
import sys
from importlib import import_module

import pytest

from flaxresnet.cli import parser
from flaxresnet.cli.main import COMMANDS
from flaxresnet.cli.report import Arguments
from flaxresnet.config.train_config import TrainConfig
from flaxresnet.config.validation import flag
from flaxresnet.runtime.errors import UserError


def parse(*argv):
    return parser.parse(TrainConfig, argv, prog="python train.py")


# Parses each command line of the JSON list, and prints the exit status on a line after its output.
PROGRAM = """
import json, sys
from flaxresnet.cli import exit_status, parser
from flaxresnet.config.train_config import TrainConfig
for argv in json.loads(sys.argv[1]):
    print("status", exit_status.run(lambda: parser.parse(TrainConfig, argv, prog="python train.py")))
"""


def in_terminal(*command):
    """Returns the output of a command in a color terminal of 80 columns."""
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


# Invalid flags → parts of the error message.
INVALID_FLAGS = {
    "unknown flag": (["--bogus", "3"], ["--bogus is not an option; see"]),
    "misspelt flag": (["--bach-size", "3"], ["--bach-size is not an option; did you mean --batch-size?; see"]),
    "two at once": (["--epoch=3", "--sed", "1"], ["--epoch, --sed are not options; did you mean --epochs and --seed?"]),
    "misspelt switch": (["--no-reprot"], ["--no-reprot is not an option; did you mean --no-report?; see"]),
    "stray word": (["stray"], ["stray is not an option"]),
    "text for a number": (["--batch-size", "many"], ["--batch-size", "'many'"]),
    "fraction for a whole number": (["--epochs", "2.5"], ["--epochs", "'2.5'"]),
    "text for a real number": (["--learning-rate", "slow"], ["--learning-rate", "'slow'"]),
    "bad recipe": (["--recipe", "fancy"], ["--recipe", "'fancy'", "'robust'", "'tutorial'"]),
    "bad model": (["--model", "vgg"], ["--model must be 'resnet14' or 'resnet18' or", "resnet110', not 'vgg'"]),
    "no value": (["--epochs"], ["--epochs needs a whole number; see"]),
    "one value of two": (["--image-size", "64"], ["--image-size needs two whole numbers; see"]),
    "too small": (["--batch-size", "0"], ["--batch-size must be at least 1, not 0"]),
    "too large": (["--seed", "4294967296"], ["--seed must be between 0 and 4294967295, not 4294967296"]),
    "negative": (["--learning-rate", "-1"], ["--learning-rate must be above 0, not -1"]),
    "NaN": (["--bn-momentum", "nan"], ["--bn-momentum must be at least 0 and below 1, not nan"]),
    "value for a switch": (["--hflip", "maybe"], ["maybe"]),
}


def error_message(*argv):
    with pytest.raises(UserError) as caught:
        parse(*argv)
    message = str(caught.value)
    assert not set(message) & set("\n\r\t\x1b│─╭╮╰╯")
    assert message.endswith("; see `python train.py --help`")
    assert len(message) > len("; see `python train.py --help`")
    return message


@pytest.mark.parametrize(("argv", "parts"), INVALID_FLAGS.values(), ids=INVALID_FLAGS.keys())
def test_parse_names_invalid_flag(argv, parts):
    message = error_message(*argv)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("encoding", "columns"), [("utf-8", "200"), ("UTF-8", "40"), ("ascii", "40"), ("ascii", "200"), ("cp1252", "40")]
)
def test_error_is_independent_of_terminal(monkeypatch, encoding, columns):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    message = error_message("--recipe", "fancy")
    assert "--recipe" in message
    assert "'fancy'" in message
    assert not set(message) & set("|+")  # ASCII characters of boxes


@pytest.mark.parametrize(
    "argv", [("--batch-size", "many"), ("--epochs", "2.5"), ("--learning-rate", "slow"), ("--aug-strength", "1,5")]
)
def test_parse_rejects_wrong_type(argv):
    message = error_message(*argv)
    assert f"not '{argv[1]}'" in message
    for jargon in ("literal", "int()", "base 10", "FLOAT", "{None}", "instantiated", "Error parsing"):
        assert jargon not in message


def test_error_contains_long_value():
    value = "somewhere/" + "photographs/" * 10 + "train_signs.h5"
    assert value in error_message("--data", "a.h5", value)


def test_parse_error_prints_nothing(capsys):
    with pytest.raises(UserError):
        parse("--bogus")
    assert capsys.readouterr() == ("", "")


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    assert stop.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "python train.py" in out
    for name in parser.field_docstrings(TrainConfig):
        assert flag(name) in out


def test_help_wraps_between_words(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit):
        parser.parse(Arguments, ["--help"], prog="flaxresnet report")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    about = " ".join(" ".join(lines[: lines.index("Example: flaxresnet report runs/default")]).split())
    assert " ".join((Arguments.__doc__ or "").partition("Example")[0].split()) in about


def test_help_omits_none(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    assert "None" not in capsys.readouterr().out


def test_optional_switch_has_both_forms():
    assert parse().stem_relu is None
    assert parse("--stem-relu").stem_relu is True
    assert parse("--no-stem_relu").stem_relu is False
    with pytest.raises(UserError, match="--no-stem-relu is a switch and takes no value, not 'False'"):
        parse("--no-stem-relu=False")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="the system has no pseudo-terminals")
def test_errors_are_plain_in_color_terminal():
    """Parsers that draw boxes or colors do so in a terminal only, so a pipe does not show the fault."""
    lines = [argv for argv, _ in INVALID_FLAGS.values()]
    output = in_terminal(sys.executable, "-c", PROGRAM, json.dumps(lines))
    outputs = output.replace("\r\n", "\n").split("status 2\n")
    assert outputs.pop() == ""
    for output_text, (argv, parts) in zip(outputs, INVALID_FLAGS.values(), strict=True):
        assert output_text.startswith("error: "), (argv, output_text)
        assert output_text.endswith("; see `python train.py --help`\n"), (argv, output_text)
        assert output_text.count("\n") == 1, (argv, output_text)
        for part in parts:
            assert part in output_text, (argv, output_text)


@pytest.mark.parametrize("name", ["train", *COMMANDS])
def test_help_joins_docstring_lines(name, capsys, monkeypatch):
    """The help joins the lines of a docstring at any width of the terminal."""
    arguments = TrainConfig
    if name != "train":
        arguments = import_module(f"flaxresnet.cli.{name.replace('-', '_')}").Arguments
    monkeypatch.setenv("COLUMNS", "2000")
    with pytest.raises(SystemExit):
        parser.parse(arguments, ["--help"], prog="flaxresnet")
    lines = capsys.readouterr().out.splitlines()
    for field, text in parser.field_docstrings(arguments).items():
        assert any(" ".join(text.split()) in line for line in lines), field


def test_words_after_hyphens_are_positional():
    arguments = import_module("flaxresnet.cli.predict").Arguments
    parsed = parser.parse(arguments, ["run", "a.png", "--json", "b.png", "--", "--odd.png"], prog="predict")
    assert parsed == arguments("run", ("a.png", "b.png", "--odd.png"), json=True)


def test_missing_positional_argument_is_named():
    with pytest.raises(UserError, match=r"OUT is missing: .*; see `convert --help`"):
        parser.parse(import_module("flaxresnet.cli.convert").Arguments, ["in.h5"], prog="convert")
