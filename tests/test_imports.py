"""Imports: the layers of the package, and the modules that `import flaxresnet` does not import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PACKAGE

import flaxresnet as fr

# From top to bottom. A module imports only from the layers below its own, also in a function.
LAYERS = (
    *("cli", "fitting", "demo", "report", "visualize"),
    *("exporting", "adabn", "evaluation", "classifier", "tta"),
    *("training", "weights", "runs", "reliability", "augment", "data", "models", "config", "runtime"),
)
HEAVY = ["matplotlib", "PIL", "grain", "tensorflow", "torch", "orbax", "rich", "h5py"]


def layer_of(module: str) -> str:
    """Returns the package or module right below `flaxresnet` that a dotted name is in."""
    return module.split(".")[1]


def imports_of(path: Path) -> set[str]:
    """Returns the layers that a file imports from."""
    layers = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "flaxresnet":
            layers |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flaxresnet."):
            layers.add(layer_of(node.module))
        elif isinstance(node, ast.Import):
            layers |= {layer_of(alias.name) for alias in node.names if alias.name.startswith("flaxresnet.")}
    return layers


def test_imports_follow_layers():
    violations = []
    for path in sorted(PACKAGE.rglob("*.py")):
        layer = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if layer not in LAYERS:
            continue
        above = LAYERS[: LAYERS.index(layer)]
        violations += [f"{path.relative_to(PACKAGE)} imports {name}" for name in imports_of(path) if name in above]
    assert violations == []


def test_import_skips_heavy_modules():
    program = f"import sys, flaxresnet; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_documented():
    for name in fr.__all__:
        value = getattr(fr, name)
        assert value.__doc__, name
    with pytest.raises(AttributeError, match="module 'flaxresnet' has no attribute 'ResNet51'"):
        fr.ResNet51  # noqa: B018
