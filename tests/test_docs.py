"""Runs the commands and the Python blocks of the pages for users, and follows their links.

The blocks of a page run in order in one folder. A block that no test can run has a comment right before it, such as
`<!-- untested: needs a GPU -->`; its flags are still parsed.
"""

import re
import shlex
import shutil
import sys
import tomllib
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import jax
import pytest
from conftest import TINY_CONFIG, blobs, draw_blobs
from PIL import Image

import flaxresnet as fr
from flaxresnet import fitting
from flaxresnet.cli import parser
from flaxresnet.cli.main import COMMANDS, run_command
from flaxresnet.config.train_config import TrainConfig
from flaxresnet.data.read_options import ReadOptions
from flaxresnet.weights.resolve import open_weights
from flaxresnet.weights.weight_files import write_weights

ROOT = Path(__file__).parents[1]
MARKDOWN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "ARCHITECTURE.md", *(ROOT / "docs").rglob("*.md")]
PAGES = sorted(str(page.relative_to(ROOT)) for page in MARKDOWN if "_build" not in page.parts)
BLOCK = re.compile(r"(?:<!-- untested: (.+?) -->\n)?```(bash|python)\n(.*?)```", re.DOTALL)
# A small network that trains in a moment, whatever the pages ask for.
QUICK = TINY_CONFIG | {"epochs": 3, "recipe": "robust", "image_size": (32, 32)}
PARSED_ONLY = {
    "demo",
    "report",
    "diagram",
}  # the first runs until it is stopped; the others are slow and tested elsewhere


@dataclass(frozen=True)
class Block:
    """A code block of a page.

    Attributes:
      language: "bash" or "python".
      code: the lines.
      untested: the reason why no test runs it, or "".
    """

    language: str
    code: str
    untested: str


def blocks_of(page: str) -> list[Block]:
    blocks = []
    for reason, language, code in BLOCK.findall((ROOT / page).read_text()):
        blocks.append(Block(language, code, reason))
    return blocks


def commands_of(code: str) -> list[list[str]]:
    """Returns the words of each command in a shell block."""
    commands = []
    for line in code.replace("\\\n", " ").splitlines():
        for part in line.partition(" #")[0].split("&&"):
            words = shlex.split(part)
            if words and words[0] == "python" and words[1:2] == ["train.py"]:
                words = ["flaxresnet", "train", *words[2:]]
            if words and not words[0].startswith("#"):
                commands.append(words)
    return commands


def parse_command(words: list[str]):
    """Returns the arguments of a `flaxresnet` command; raises UserError if a flag is unknown or a value invalid."""
    module = import_module(f"flaxresnet.cli.{words[1].replace('-', '_')}")
    return parser.parse(module.Arguments, words[2:], prog=words[1])


def run_words(words: list[str]) -> None:
    """Runs a `flaxresnet` command; of other commands, checks that the files and extras that they name exist."""
    if words[0] == "flaxresnet" and len(words) > 1 and words[1] in COMMANDS:
        needs_onnx = any(word.endswith(".onnx") for word in words)
        if words[1] in PARSED_ONLY or (needs_onnx and not (find_spec("onnx") and find_spec("jax2onnx"))):
            parse_command(words)
            return
        try:
            status = run_command(words[1], words[2:], prog=words[1])
        except SystemExit as stop:  # --help
            status = stop.code
        assert status == 0
    elif words[0] == "pip":
        extras = set(re.findall(r"[\w-]+", " ".join(re.findall(r"\[(.+?)\]", " ".join(words)))))
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert extras <= set(project["optional-dependencies"]), words
    elif words[:3] in (["python", "-m", "pytest"], ["python", "-m", "sphinx"]):
        pass  # the first runs right now; the second needs the extra `docs`
    else:
        script = words[1] if words[0] == "python" else words[0]
        assert (ROOT / script).is_file(), f"{words} is neither a command nor a file"


def compiled(method):
    """Returns a network's method as one program; run layer by layer, it would be dozens."""

    def run(self, first, images, **options):
        return jax.jit(lambda *arguments: method(self, *arguments, **options))(first, images)

    return run


@pytest.fixture(scope="session")
def user_folder(tmp_path_factory, data_folder, calibrated_run):
    """A folder with the files that the pages take to be there."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "datasets").symlink_to(data_folder)
    for name in ("pictures", "mine"):
        draw_blobs(folder / name, train=18, test=9)
    (folder / "photos").mkdir()
    for index, image in enumerate(blobs(18, seed=4).images):
        Image.fromarray(image).save(folder / "photos" / f"{index}.jpg")
    shutil.copy(folder / "photos" / "0.jpg", folder / "photo.jpg")
    for name in ("signs", "default"):
        shutil.copytree(calibrated_run, folder / "runs" / name)
    write_weights(open_weights(str(calibrated_run)), folder / "ResNet50-1.h5")
    return folder


@pytest.fixture
def quick_pages(monkeypatch, tmp_path, user_folder):
    """Changes to a copy of the user's folder, and makes all training and all networks small."""
    folder = shutil.copytree(user_folder, tmp_path / "pages", symlinks=True)
    monkeypatch.chdir(folder)
    fit = fitting.fit

    def quick_fit(config, cache_executables=False, **options):
        started = Path(config.workdir).exists()  # by another page's options, which the run would not resume with
        values = config.to_json() | QUICK | {"resume": config.resume and not started}
        return fit(TrainConfig(**values), **options)

    monkeypatch.setattr(fitting, "fit", quick_fit)
    monkeypatch.setattr(fr, "fit", quick_fit)
    drawn = replace(fr.open_dataset("datasets"), path=None)
    monkeypatch.setattr(fr, "open_dataset", partial(fr.open_dataset, options=ReadOptions(image_size=(32, 32))))
    for module in ("flaxresnet.data.hand_signs.cache", "flaxresnet.evaluation"):
        monkeypatch.setattr(f"{module}.load_default_signs", lambda: drawn)
    monkeypatch.setattr(fr, "ResNet50", partial(fr.ResNet, stage_sizes=(1,)))
    monkeypatch.setattr(fr.ResNet, "init", compiled(fr.ResNet.init))
    monkeypatch.setattr(fr.ResNet, "apply", compiled(fr.ResNet.apply))
    monkeypatch.setattr(sys, "argv", ["flaxresnet"])


@pytest.mark.parametrize("page", [page for page in PAGES if any(not block.untested for block in blocks_of(page))])
def test_page_blocks_run(page, quick_pages):
    names = {}
    for block in blocks_of(page):
        if block.untested:
            continue
        if block.language == "python":
            exec(compile(block.code, page, "exec"), names)
        else:
            for words in commands_of(block.code):
                run_words(words)


@pytest.mark.parametrize("page", PAGES)
def test_page_flags_parse(page):
    commands = []
    for block in blocks_of(page):
        if block.language == "bash":
            commands += commands_of(block.code)
    for code in re.findall(r"`((?:python train\.py|flaxresnet) [^`…]+)`", (ROOT / page).read_text()):
        commands += commands_of(code)
    for words in commands:
        is_call = words[0] == "flaxresnet" and len(words) > 2
        if is_call and not {"--help", "--help-all"} & set(words) and words[1].islower():
            assert words[1] in COMMANDS
            parse_command(words)


@pytest.mark.parametrize("page", PAGES)
def test_page_links_exist(page):
    text = (ROOT / page).read_text()
    local = re.findall(r"\]\((?!https?:|#)([^)#]+)", text) + re.findall(r'(?:src|srcset)="(?!https?:)([^"]+)"', text)
    for target in local:
        assert ((ROOT / page).parent / target).exists(), target


def test_index_lists_all_pages():
    index = (ROOT / "docs/index.md").read_text()
    for page in PAGES:
        if page.startswith("docs/") and page != "docs/index.md":
            assert f"\n{page.removeprefix('docs/').removesuffix('.md')}\n" in index


def test_cli_reference_lists_all_commands():
    text = (ROOT / "docs/reference/cli.md").read_text()
    assert set(re.findall(r"{cli-help} (\S+)", text)) == set(COMMANDS)


def test_readme_stays_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1300


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_has_example(name, capsys):
    module = import_module(f"flaxresnet.cli.{name.replace('-', '_')}")
    with pytest.raises(SystemExit) as ended:
        parser.parse(module.Arguments, ["--help"], prog=f"flaxresnet {name}")
    assert ended.value.code == 0
    assert re.search(rf"Example:\s+flaxresnet\s+{name}", capsys.readouterr().out)
