"""Tests `flaxresnet summary`: its table, its totals and its depths."""

import sys
from functools import cache

import pytest

import flaxresnet as fr
from flaxresnet.cli import main as commands
from flaxresnet.models.resnet import SIZES
from flaxresnet.visualize import layer_table

FAST = ("resnet18", "resnext50_32x4d")


@pytest.fixture(scope="module")
def inspect():
    """Returns a cached `inspect`, which traces each network once."""
    return cache(layer_table.inspect)


@pytest.fixture
def summary(monkeypatch, capsys, inspect):
    monkeypatch.setattr("flaxresnet.cli.summary.inspect", inspect)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["flaxresnet", "summary", *map(str, arguments)])
        assert commands.main() == 0
        return capsys.readouterr().out

    return run


def test_summary_defaults_to_tutorial_network(summary):
    out = summary()
    assert "resnet50, tutorial, images of 64×64" in out
    assert "Total params: 23,600,006 (90.0 MiB as float32)\nTrainable params: 23,546,886\n" in out
    assert "Non-trainable params: 53,120 (batch norm's averages)\n" in out
    (line,) = (line for line in out.splitlines() if "res2a_branch2b" in line)
    assert line.split() == ["res2a_branch2b", "Conv2D", "3×3", "(None,", "15,", "15,", "64)", "36,928", "16.60", "yes"]


OTHERS = sorted(set(SIZES) - {"resnet14", *FAST})


@pytest.mark.parametrize("size", [*FAST, *(pytest.param(size, marks=pytest.mark.campaign) for size in OTHERS)])
@pytest.mark.parametrize("variant", ["tutorial", "torchvision"])
def test_summary_fits_100_columns(summary, size, variant):
    for depth in ("layers", "blocks", "parts"):
        out = summary(size, "--variant", variant, "--num-classes", 1000, "--depth", depth)
        assert max(map(len, out.splitlines())) <= 100
        assert "…" not in out


def test_summary_depth_preserves_totals(summary):
    totals = set()
    for depth, lines in (("layers", 177), ("blocks", 18), ("parts", 6)):
        out = summary("--depth", depth)
        table = [line for line in out.partition("Total")[0].splitlines() if "(None" in line]
        assert len(table) == lines
        totals.add(out.partition("Total")[2])
    assert len(totals) == 1
    assert "convolutional block" in summary("--depth", "blocks")
    assert "3 blocks" in summary("--depth", "parts")


def test_summary_of_small_stem(summary):
    out = summary("resnet20", "--num-classes", 10, "--depth", "blocks")
    assert "resnet20, tutorial, images of 32×32" in out
    assert "Trainable params: 269,722\n" in out
    types = {line.split()[0]: line.split("(None")[0].split()[1:] for line in out.splitlines() if "(None" in line}
    assert types["stem"] == ["convolution"]
    assert types["res3a"] == ["padded", "block"]
    assert types["res3b"] == ["identity", "block"]
    assert "(None, 64, 64, 64)" in summary("resnet18", "--stem", "small", "--depth", "parts")
    assert "(None, 7, 7, 16)" in summary("resnet20", "--stem", "imagenet", "--depth", "parts")


def test_summary_of_run_uses_its_classes(summary, finished_run):
    out = summary(finished_run)
    assert f"resnet14 of {finished_run}, images of 32×32" in out
    assert "fc3" in out


def test_model_spec_rejects_wrong_arguments(finished_run):
    module = commands.import_module("flaxresnet.cli.model_args")
    messages = {
        "--width applies to a named network": module.ModelArguments(str(finished_run), width=8),
        "--stem applies to a named network": module.ModelArguments(str(finished_run), stem="small"),
        "--num-classes must be at least 2, not 1": module.ModelArguments("resnet18", num_classes=1),
        "--width 10 cannot be divided into the 32 groups": module.ModelArguments("resnext50_32x4d", width=10),
        "--image-size must be at least 32, not 8": module.ModelArguments("resnet18", image_size=(64, 8)),
    }
    for message, arguments in messages.items():
        with pytest.raises(fr.UserError, match=message):
            module.model_spec(arguments)


def test_summary_marks_frozen_parts(summary, finished_run, monkeypatch):
    frozen = fr.TrainConfig(model="resnet14", width=4, freeze="stem").resolve()
    info = commands.import_module("flaxresnet.runs.run_dir").RunDir(finished_run).read_metadata()
    monkeypatch.setattr(
        "flaxresnet.runs.run_dir.RunDir.read_metadata",
        lambda _: type(info)(frozen, info.class_names, info.preprocessing, info.data, info.versions),
    )
    out = summary(finished_run, "--depth", "parts")
    rows = {line.split()[0]: line.split()[-1] for line in out.splitlines() if line.strip()}
    assert (rows["stem"], rows["stage2"]) == ("no", "yes")
    assert "(batch norm's averages, frozen parts)" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet51"], "resnet51 is neither a run folder nor a network; the networks are resnet14, resnet18"),
        (["--num-classes", "1"], "--num-classes must be at least 2, not 1"),
        (["--image-size", "64", "31"], "--image-size must be at least 32, not 31"),
        (["--width", "0"], "--width must be at least 1, not 0"),
        (["resnext50_32x4d", "--width", "8"], "--width 8 cannot be divided into the 32 groups of resnext50_32x4d"),
    ],
)
def test_summary_rejects_wrong_arguments(summary, arguments, message):
    with pytest.raises(fr.UserError) as caught:
        summary(*arguments)
    assert message in str(caught.value)
