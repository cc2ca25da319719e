"""What README.md and docs/ show is run as it is written: Python in order, commands as far as their words go."""

import re
import shlex
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import jax
import pytest
from conftest import TINY_CONFIG, blobs
from PIL import Image

import flaxresnet as fr
from flaxresnet.cli import parser
from flaxresnet.cli.main import COMMANDS
from flaxresnet.config.train_config import TrainConfig
from flaxresnet.exporting import export_stablehlo

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "docs/from-the-tutorials.md"]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def compiled(method):
    """A network's method as one program: layer by layer it is dozens."""

    def run(self, first, images, **options):
        return jax.jit(lambda *arguments: method(self, *arguments, **options))(first, images)

    return run


@pytest.fixture
def beginning(tmp_path, monkeypatch, data_folder, finished_run):
    """What the pages take to be there: data, a photo, an exported run; and a network that is trained in no time."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets").symlink_to(data_folder)
    Image.fromarray(blobs(1, seed=4).images[0]).save("photo.jpg")
    export_stablehlo(fr.Classifier.load(finished_run), "signs.zip")
    drawn = replace(fr.open_dataset(data_folder), path=None)
    for module in ("flaxresnet.data.hand_signs.cache", "flaxresnet.evaluation"):
        monkeypatch.setattr(f"{module}.load_default_signs", lambda: drawn)
    monkeypatch.setattr(fr, "ResNet50", partial(fr.ResNet, stage_sizes=(1,)))
    monkeypatch.setattr(fr.ResNet, "init", compiled(fr.ResNet.init))
    monkeypatch.setattr(fr.ResNet, "apply", compiled(fr.ResNet.apply))
    resolve, quick = TrainConfig.resolve, TINY_CONFIG | {"epochs": 3, "recipe": "robust"}  # those of the finished run
    monkeypatch.setattr(TrainConfig, "resolve", lambda self: resolve(self.__class__(**(self.to_json() | quick))))


@pytest.mark.parametrize("page", PAGES)
def test_python_runs_as_it_is_written(page, beginning, capsys):
    found, names = blocks(page, "python"), {}
    assert len(found) >= 2
    for block in found:
        exec(compile(block, page, "exec"), names)
    assert capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES)
def test_commands_have_words_that_there_are(page):
    text = (ROOT / page).read_text()
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    lines += re.findall(r"`((?:python|flaxresnet) [^`…]+)`", text)
    checked = 0
    for line in lines:
        for part in line.partition("#")[0].split("&&"):
            words = shlex.split(part)
            if words[:2] == ["python", "train.py"] and "--help" not in words:
                parser.parse(TrainConfig, words[2:], prog="train.py")
            elif words[:1] == ["flaxresnet"] and len(words) > 2:
                assert words[1] in COMMANDS
                module = import_module(f"flaxresnet.cli.{words[1].replace('-', '_')}")
                parser.parse(module.Arguments, words[2:], prog=words[1])
            elif words[:1] == ["python"] and words[1].endswith(".py"):
                assert (ROOT / words[1]).exists(), line
            else:
                continue
            checked += 1
    assert checked >= 5


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_lead_somewhere(page):
    text = (ROOT / page).read_text()
    local = re.findall(r"\]\((?!https?:|#)([^)]+)\)", text) + re.findall(r'(?:src|srcset)="(?!https?:)([^"]+)"', text)
    for target in local:
        assert ((ROOT / page).parent / target).exists(), target


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_commands_help_says_what_it_does_with_an_example(name, capsys):
    module = import_module(f"flaxresnet.cli.{name.replace('-', '_')}")
    with pytest.raises(SystemExit) as ended:
        parser.parse(module.Arguments, ["--help"], prog=f"flaxresnet {name}")
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert re.search(rf"Example:\s+flaxresnet\s+{name}", out)
