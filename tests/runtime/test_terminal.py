"""The spinner and the tables of the terminal."""

import io
import sys

import pytest
from rich.cells import cell_len

from flaxresnet.runtime.terminal import MAX_CLASSES, align, class_counts, ellipsize, status


class FakeTerminal(io.StringIO):
    def isatty(self):
        return True


def test_status_prints_line_to_pipe(capsys):
    with status("Loading the run…"):
        print("result")
    assert capsys.readouterr() == ("result\n", "Loading the run…\n")


def test_status_spins_in_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stderr", FakeTerminal())
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with status("Loading the run…"):
        print("piped result")
        with pytest.raises(ZeroDivisionError), status("Reading pictures…"):
            raise ZeroDivisionError
    assert sys.stdout.getvalue() == "piped result\n"
    assert "Loading the run…" in sys.stderr.getvalue()
    assert "piped" not in sys.stderr.getvalue()
    assert sys.stderr.getvalue().rstrip().endswith("\x1b[2K")  # the spinner's line is erased
    with status("Again…"):
        pass


def test_align_measures_terminal_columns():
    lines = align([["手", "1"], ["cat", "1,000"], ["dog"]], right=[1])
    assert lines == ["手       1", "cat  1,000", "dog"]
    assert cell_len(lines[0]) == cell_len(lines[1])
    assert align([]) == []


def test_ellipsize_cuts_wide_text():
    assert ellipsize("short", 5) == "short"
    assert ellipsize("longer", 5) == "long…"


def test_class_counts_lists_each_class():
    text = class_counts(["red", "green"], {"train": [15, 1200], "test": [7, 6]})
    assert text.splitlines() == ["  class  train  test", "  red       15     7", "  green  1,200     6"]
    names = [str(index) for index in range(MAX_CLASSES + 3)]
    assert class_counts(names, {"train": [1] * len(names)}).endswith("… and 3 more classes")
