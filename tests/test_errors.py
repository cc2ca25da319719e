"""Nothing is swallowed, every message of an error is in a test, and every dependency is of use."""

import ast
import re
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "flaxresnet").rglob("*.py"), ROOT / "train.py"])
TESTED = 4  # words of a message in a row, that a test has to have; all of a run that is shorter
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


@cache
def tree_of(path: Path) -> ast.AST:
    """A file as Python reads it."""
    return ast.parse(path.read_text())


def test_nothing_is_swallowed():
    assert len(SOURCES) > 50
    assert {str(path): found for path in SOURCES if (found := broad_and_silent(tree_of(path)))} == {}


def words_of(text: str) -> list[str]:
    return re.findall(r"[A-Za-z0-9][\w'-]*", text)


def fixed(node: ast.AST, known: dict[str, list[list[str]]]) -> list[list[str]]:
    """The fixed pieces of an expression, as words; of names those that they are `known` to hold."""
    formats = {
        id(part) for of in ast.walk(node) if isinstance(of, ast.FormattedValue | ast.Subscript)
        for part in ast.walk((of.format_spec if isinstance(of, ast.FormattedValue) else of.slice) or ast.Pass())
    }  # fmt: skip
    pieces = []
    for part in ast.walk(node):
        if id(part) in formats:
            continue
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            pieces.append(words_of(part.value))
        elif isinstance(part, ast.Name):
            pieces += known.get(part.id, [])
    return [piece for piece in pieces if piece]


def assigned(tree: ast.AST) -> dict[str, list[list[str]]]:
    """Names → the fixed pieces of the texts that a file gives them."""
    found: dict[str, list[list[str]]] = {}
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.NamedExpr) else targets
        if targets and isinstance(node.value, ast.JoinedStr | ast.Constant | ast.IfExp):
            for target in targets:
                found.setdefault(ast.unparse(target), []).extend(fixed(node.value, {}))
    return found


def is_said(node: ast.AST) -> bool:
    """Whether it makes a message of an error: what is raised, what is made to be raised, what goes to stderr."""
    if not isinstance(node, ast.Call) or not node.args:
        return False
    name = ast.unparse(node.func)
    to_stderr = name == "print" and any(ast.unparse(word.value) == "sys.stderr" for word in node.keywords)
    return to_stderr or re.search(r"(Error|Interrupted)$", name) is not None


def messages(tree: ast.AST) -> list[tuple[int, list[list[str]]]]:
    """(line, its fixed pieces as words) of each error's message that has any."""
    known = assigned(tree)
    said = [node for node in ast.walk(tree) if is_said(node)]
    found = [(node.lineno, [piece for word in node.args for piece in fixed(word, known)]) for node in said]
    return [(line, pieces) for line, pieces in found if pieces]


def untested(path: Path, tested: str) -> list[str]:
    """The errors of a file of whose words no test has enough in a row: `TESTED`, or as many as stand in a row."""
    missing = []
    for line, pieces in messages(tree_of(path)):
        count = min(TESTED, max(map(len, pieces)))
        runs = [" ".join(piece[i : i + count]) for piece in pieces for i in range(len(piece) - count + 1)]
        if not any(f" {run} " in tested for run in runs):
            missing.append(f"{path.relative_to(ROOT)}:{line}: {' … '.join(map(' '.join, pieces))}")
    return missing


def test_every_message_of_an_error_is_in_a_test():
    tests = (path.read_text() for path in (ROOT / "tests").rglob("*.py") if path.name != "test_errors.py")
    tested = f" {' '.join(word for text in tests for word in words_of(text))} "
    assert [error for path in SOURCES for error in untested(path, tested)] == []


def test_a_message_without_a_test_and_a_silent_handler_are_found(tmp_path, monkeypatch):
    code = "try:\n    pass\nexcept Exception:\n    pass\nraise UserError(f'{x} cannot be eaten; cook it')\n"
    assert broad_and_silent(ast.parse(code)) == [3]
    assert messages(ast.parse(code)) == [(5, [["cannot", "be", "eaten", "cook", "it"]])]
    code = "why = f'after {n:.1f} s, as {d[\"told\"]}'\nraise Interrupted(2, f'stopped {why}')\n"
    code += "print(f'late by {n}', file=sys.stderr)\nprint('done')\nraise UserError(str(error))\n"
    assert messages(ast.parse(code)) == [(2, [["stopped"], ["after"], ["s", "as"]]), (3, [["late", "by"]])]
    (path := tmp_path / "code.py").write_text(code)
    monkeypatch.setattr("test_errors.ROOT", tmp_path)
    assert untested(path, " s as late by ") == []
    assert untested(path, " stopped after late ") == [
        "code.py:2: stopped … after … s as",
        "code.py:3: late by",
    ]


def test_every_dependency_is_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    imported = set()
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
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
