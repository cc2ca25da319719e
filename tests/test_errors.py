"""Source checks: no handler hides errors, a test quotes each error message, and the package imports each dependency."""

import ast
import re
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "flaxresnet").rglob("*.py"), ROOT / "train.py"])
MIN_WORDS = 4  # consecutive words of a message that a test must contain; fewer if the message has no longer piece
NOT_IMPORTED = {"flatbuffers": "jax.export"}  # dependency → the module that imports it


def hidden_errors(tree: ast.AST) -> list[int]:
    """Returns the lines of handlers that catch every exception and do nothing."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            is_broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            if is_broad and all(ast.unparse(statement) in ("pass", "...") for statement in node.body):
                lines.append(node.lineno)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            types = map(ast.unparse, node.args)
            lines += [node.lineno for name in types if name in ("Exception", "BaseException")]
    return lines


@cache
def tree_of(path: Path) -> ast.AST:
    """Returns the syntax tree of a file."""
    return ast.parse(path.read_text())


def test_handlers_hide_no_errors():
    assert len(SOURCES) > 50
    assert [f"{path}:{line}" for path in SOURCES for line in hidden_errors(tree_of(path))] == []


def split_words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z0-9][\w'-]*", text)


def fixed_pieces(node: ast.AST, known: dict[str, list[list[str]]]) -> list[list[str]]:
    """Returns the fixed pieces of a text expression, as words. `known` has the pieces of variables."""
    excluded = set()  # format specifications and subscripts
    for part in ast.walk(node):
        if isinstance(part, ast.FormattedValue) and part.format_spec:
            excluded |= {id(child) for child in ast.walk(part.format_spec)}
        elif isinstance(part, ast.Subscript):
            excluded |= {id(child) for child in ast.walk(part.slice)}
    pieces = []
    for part in ast.walk(node):
        if id(part) in excluded:
            continue
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            pieces.append(split_words(part.value))
        elif isinstance(part, ast.Name):
            pieces += known.get(part.id, [])
    return [piece for piece in pieces if piece]


def text_variables(tree: ast.AST) -> dict[str, list[list[str]]]:
    """Returns variable → the fixed pieces of the texts that a file assigns to it."""
    variables: dict[str, list[list[str]]] = {}
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.NamedExpr) else targets
        if targets and isinstance(node.value, ast.JoinedStr | ast.Constant | ast.IfExp):
            for target in targets:
                variables.setdefault(ast.unparse(target), []).extend(fixed_pieces(node.value, {}))
    return variables


def has_error_message(node: ast.AST) -> bool:
    """Returns whether a call creates an exception or prints to stderr."""
    if not isinstance(node, ast.Call) or not node.args:
        return False
    name = ast.unparse(node.func)
    to_stderr = name == "print" and any(ast.unparse(keyword.value) == "sys.stderr" for keyword in node.keywords)
    return to_stderr or re.search(r"(Error|Interrupted)$", name) is not None


def messages(tree: ast.AST) -> list[tuple[int, list[list[str]]]]:
    """Returns (line, fixed pieces as words) of each error message that has fixed pieces."""
    known = text_variables(tree)
    result = []
    for node in ast.walk(tree):
        if has_error_message(node):
            pieces = [piece for argument in node.args for piece in fixed_pieces(argument, known)]
            if pieces:
                result.append((node.lineno, pieces))
    return result


def untested(path: Path, tested: str) -> list[str]:
    """Returns the error messages of a file that no test quotes with enough consecutive words."""
    missing = []
    for line, pieces in messages(tree_of(path)):
        count = min(MIN_WORDS, max(map(len, pieces)))
        sequences = [" ".join(piece[i : i + count]) for piece in pieces for i in range(len(piece) - count + 1)]
        if not any(f" {sequence} " in tested for sequence in sequences):
            missing.append(f"{path.relative_to(ROOT)}:{line}: {' … '.join(map(' '.join, pieces))}")
    return missing


def test_tests_quote_error_messages():
    tests = (path.read_text() for path in (ROOT / "tests").rglob("*.py") if path.name != "test_errors.py")
    tested = f" {' '.join(word for text in tests for word in split_words(text))} "
    assert [error for path in SOURCES for error in untested(path, tested)] == []


def test_source_checks_find_violations(tmp_path, monkeypatch):
    code = "try:\n    pass\nexcept Exception:\n    pass\nraise UserError(f'{x} cannot be eaten; cook it')\n"
    assert hidden_errors(ast.parse(code)) == [3]
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


def test_dependencies_are_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    imported = set()
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    known = packages_distributions()
    used = {package.lower().replace("_", "-") for name in imported for package in known.get(name, [])}
    extras = []
    for name in ("tensorboard", "onnx", "demo", "hub"):
        extras += project["optional-dependencies"][name]
    for line in project["dependencies"]:
        name = re.match(r"[\w-]+", line)[0].lower()
        assert name in used or name in NOT_IMPORTED, line
    modules = {"onnxruntime"} | {name.lower() for name in imported}  # onnxruntime runs exported files
    for line in extras:
        name = re.match(r"[\w-]+", line)[0].lower().replace("-", "_")
        assert name in modules, line
