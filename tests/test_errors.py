"""Nothing is swallowed, every message of an error is in a test, and every dependency is of use."""

import ast
import re
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "flaxresnet").rglob("*.py"), ROOT / "train.py"])
TESTED = 3  # words of a message in a row, that a test has to have
NOT_IMPORTED = {"flatbuffers": "jax.export"}  # dependency → what uses it where it is installed


def broad_and_silent(tree: ast.AST) -> list[int]:
    """Lines of handlers that catch everything and do nothing."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            if broad and all(isinstance(line, ast.Pass) or ast.unparse(line) == "..." for line in node.body):
                found.append(node.lineno)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            found += [node.lineno for word in node.args if ast.unparse(word) in ("Exception", "BaseException")]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_swallowed(path):
    assert broad_and_silent(ast.parse(path.read_text())) == []


def words_of(text: str) -> list[str]:
    return re.findall(r"[A-Za-z0-9][\w'-]*", text)


def messages(tree: ast.AST) -> list[tuple[int, list[list[str]]]]:
    """(line, its fixed pieces as words) of each UserError that is raised or made."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("UserError") and node.args:
            pieces = [
                words_of(part.value)
                for part in ast.walk(node.args[0])
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
            ]
            found.append((node.lineno, pieces))
    return found


def untested(path: Path, tested: str) -> list[str]:
    """The errors of a file of whose words no test has enough in a row."""
    missing = []
    for line, pieces in messages(ast.parse(path.read_text())):
        long = [piece for piece in pieces if len(piece) >= TESTED]
        runs = [" ".join(piece[i : i + TESTED]) for piece in long for i in range(len(piece) - TESTED + 1)]
        if runs and not any(f" {run} " in tested for run in runs):
            missing.append(f"{path.relative_to(ROOT)}:{line}: {' … '.join(map(' '.join, long))}")
    return missing


def test_every_message_of_an_error_is_in_a_test():
    tests = (path.read_text() for path in (ROOT / "tests").rglob("*.py") if path.name != "test_errors.py")
    tested = f" {' '.join(word for text in tests for word in words_of(text))} "
    assert [error for path in SOURCES for error in untested(path, tested)] == []


def test_a_message_without_a_test_and_a_silent_handler_are_found(tmp_path):
    code = "try:\n    pass\nexcept Exception:\n    pass\nraise UserError(f'{x} cannot be eaten; cook it')\n"
    assert broad_and_silent(ast.parse(code)) == [3]
    assert messages(ast.parse(code)) == [(5, [["cannot", "be", "eaten", "cook", "it"]])]


def test_every_dependency_is_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    imported = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else names
            imported |= {name.partition(".")[0] for name in names}
    known = packages_distributions()
    used = {found.lower().replace("_", "-") for name in imported for found in known.get(name, [])}
    extras = [
        word for name in ("tensorboard", "onnx", "demo", "hub") for word in project["optional-dependencies"][name]
    ]
    for line in project["dependencies"]:
        name = re.match(r"[\w-]+", line)[0].lower()
        assert name in used or name in NOT_IMPORTED, line
    modules = {"onnxruntime"}  # which the exported file is for
    for line in extras:
        name = re.match(r"[\w-]+", line)[0].lower().replace("-", "_")
        assert name in {word.lower() for word in imported} | modules, line
