"""The help of `flaxresnet train` and `--version`."""

import dataclasses
import re
import sys

import pytest

import flaxresnet as fr
from flaxresnet.cli import main, train
from flaxresnet.config.recipes import RECIPES


def help_page(word, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["flaxresnet", "train", word])
    with pytest.raises(SystemExit) as stop:
        main.main()
    assert stop.value.code == 0
    return capsys.readouterr().out


def flags_of(page):
    return {flag for flag in re.findall(r"(?m)^  (?:-h, )?--(?:no-)?([a-z-]+)", page) if not flag.startswith("help")}


def test_help_groups_cover_options():
    names = [name for group in train.GROUPS.values() for name in group]
    assert sorted(names) == sorted(field.name for field in dataclasses.fields(fr.TrainConfig))


def test_help_shows_a_dozen_options(capsys, monkeypatch):
    page = help_page("--help", capsys, monkeypatch)
    assert flags_of(page) == {name.replace("_", "-") for name in train.COMMON}
    assert len(train.COMMON) <= 13


def test_help_all_shows_every_option(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    page = help_page("--help-all", capsys, monkeypatch)
    assert flags_of(page) == {field.name.replace("_", "-") for field in dataclasses.fields(fr.TrainConfig)}
    rates = {name: recipe.learning_rate for name, recipe in RECIPES.items()}
    (line,) = (line for line in page.splitlines() if line.startswith("  --learning-rate "))
    assert f"(default: {rates['robust']}; tutorial: {rates['tutorial']}; finetune: {rates['finetune']}" in line


def test_version_is_printed(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["flaxresnet", "--version"])
    assert main.main() == 0
    assert capsys.readouterr().out == f"flaxresnet {fr.__version__}\n"
