"""URLs in place of paths are refused, before `Path` makes a folder such as `gs:` of them."""

from pathlib import Path

import pytest
from conftest import TINY_CONFIG

import flaxresnet as fr
from flaxresnet.cli import main as commands
from flaxresnet.cli.parser import parse
from flaxresnet.cli.train import Arguments
from flaxresnet.runtime.local_path import is_url

URLS = ["gs://bucket/run", "s3://bucket/run", "hdfs://host:9000/run", "abfss://x@y/run", "dbfs:/run", "host:/run"]


@pytest.mark.parametrize("url", [*URLS, "file:///tmp/run", "https://example.org/run", Path("gs://bucket/run")])
def test_url_is_recognized(url):
    assert is_url(url)


@pytest.mark.parametrize("path", ["runs/a", "/runs/a", "C:/runs", "a:b", "gs:", "runs/gs://a", ".", "~/a", "a b:/c"])
def test_path_is_no_url(path):
    assert not is_url(path)


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("option", ["workdir", "data", "init"])
def test_training_refuses_url(option, url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(fr.UserError, match=f"--{option} must be on a local disk, such as .*, not '{url}'"):
        fr.TrainConfig(**TINY_CONFIG | {option: url})
    with pytest.raises(fr.UserError, match=f"--{option} must be on a local disk"):
        parse(Arguments, [f"--{option}", url], "train.py")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "gs://bucket/run"),
        ("evaluate", "RUN", "--data", "gs://bucket/run"),
        ("predict", "s3://bucket/run", "a.png"),
        ("report", "s3://bucket/run"),
        ("check-data", "gs://bucket/run"),
        ("convert", "gs://bucket/run", "out"),
        ("convert", "RUN", "gs://bucket/run"),
        ("convert", "RUN", "gs://bucket/run.h5"),
        ("make-data", "gs://bucket/run"),
        ("explain", "RUN", "a.png", "--to-folder", "gs://bucket/run"),
    ],
)
def test_command_refuses_url(words, finished_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = [str(finished_run) if word == "RUN" else word for word in words]
    with pytest.raises(fr.UserError, match=r"(gs|s3)://bucket/run(.h5)? is not on a local disk; mount the storage"):
        commands.run_command(argv[0], argv[1:], "flaxresnet")
    assert [*tmp_path.iterdir()] == []


def test_predict_refuses_url_of_photo(finished_run, capsys):
    assert commands.run_command("predict", [str(finished_run), "https://example.org/a.jpg?size=3"], "flaxresnet") == 2
    assert "https://example.org/a.jpg?size=3 is not on a local disk" in capsys.readouterr().err
    with pytest.raises(fr.UserError, match=r"https://example.org/a.jpg is not on a local disk"):
        fr.Classifier.load(finished_run).predict("https://example.org/a.jpg")
