"""Who may import whom, and what `import flaxresnet` must not pull in."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PACKAGE

import flaxresnet as fr

# Part of the package → the parts that it may import, besides `errors`, which says what a user's mistake is.
MAY_IMPORT = {
    "errors": set(),
    "recipes": set(),
    "option_checks": set(),
    "config": {"option_checks", "recipes"},
    "compilation_cache": set(),
    "writing": set(),
    "devices": set(),
    "memory": set(),
    "quiet": set(),
    "cli": {"option_checks"},
    "models": {"models"},
    "data": {"data"},
    # A run's end looks back on it: the report is the one thing of `inspection` that training takes.
    "training": {
        *("training", "models", "data", "interop"),
        *("config", "option_checks", "recipes", "compilation_cache", "devices", "memory", "quiet"),
        *("inspection.findings", "inspection.report", "evaluation"),
    },
    "trust": {"trust", "writing"},
    "classifier": {"config", "devices", "models", "data", "trust", "training.checkpoint", "training.run_folder"},
    "interop": {
        "interop",
        "writing",
        "models",
        "data",
        "config",
        "recipes",
        "training.checkpoint",
        "training.run_folder",
        "trust.stored",
    },
    "inspection": {
        *("inspection", "models", "writing", "classifier", "config", "data", "evaluation", "option_checks", "trust"),
        *("training.run_folder", "training.metrics"),
    },
    "demo": {"classifier", "data", "demo_door", "inspection"},
    "demo_door": set(),
    "export": {"classifier", "models", "quiet", "writing"},
    "adaptation": {"classifier", "config", "data", "interop.run_folders", "models", "training.run_folder"},
    "evaluation": {"classifier", "config", "data", "training.metrics", "training.run_folder"},
}
HEAVY = ["matplotlib", "PIL", "grain", "tensorflow", "torch", "orbax", "rich", "h5py"]


def imports_of(path: Path) -> set[str]:
    """Modules of this package that a file imports, anywhere in it, without the package's name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else names
        found |= {name.removeprefix("flaxresnet.") for name in names if name and name.startswith("flaxresnet.")}
    return found


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_a_part_imports_only_what_it_may(part):
    files = [PACKAGE / f"{part}.py"] if (PACKAGE / f"{part}.py").exists() else sorted((PACKAGE / part).rglob("*.py"))
    assert files
    allowed = MAY_IMPORT[part] | {"errors"}
    for path in files:
        for name in imports_of(path):
            assert any(name == a or name.startswith(a + ".") for a in allowed), f"{path.name} imports {name}"


def test_every_part_is_accounted_for():
    parts = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p.is_dir() and any(p.glob("*.py")))}
    assert parts - {"__init__", "__main__", "__pycache__", "commands"} == set(MAY_IMPORT)


def test_importing_the_package_is_light():
    program = f"import sys, flaxresnet; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there_and_documented():
    for name in fr.__all__:
        value = getattr(fr, name)
        assert (value.func if name == "ResNet50" else value).__doc__, name
    with pytest.raises(AttributeError, match="module 'flaxresnet' has no attribute 'ResNet51'"):
        fr.ResNet51  # noqa: B018
