"""Parses flags into a dataclass.

Each field is a flag: its type, default and docstring are the flag's type, default and help text. Fields made by
`positional` are positional arguments. argparse splits the command line. This module converts and checks the values, so
that it controls every error message.
"""

import argparse
import ast
import dataclasses
import functools
import inspect
import itertools
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar

from flaxresnet.config.validation import flag, type_name
from flaxresnet.runtime.errors import UserError

T = TypeVar("T")

METAVARS: dict[Any, str] = {str: "TEXT", int: "INT", float: "FLOAT", Path: "PATH"}
MAX_HELP_INDENT = 28  # columns before the help texts


@dataclasses.dataclass(frozen=True)
class HelpLayout:
    """Layout of the help of a command with many flags.

    Attributes:
      groups: fields by the title of their group; each field belongs to one group.
      common: fields that `--help` shows; `--help-all` shows all.
      defaults: text to show as the default of fields whose default is None.
    """

    groups: Mapping[str, Sequence[str]]
    common: Sequence[str]
    defaults: Mapping[str, str]


def positional(metavar: str, default: Any = dataclasses.MISSING) -> Any:
    """Declares a positional argument, which takes one word, or all remaining words if its type is `tuple[str, ...]`.

    Args:
      metavar: its name in the usage line, such as "RUN".
      default: its value if it is omitted. Without a default, it is required.
    """
    return dataclasses.field(default=default, metadata={"positional": metavar})


def parse(arguments: type[T], argv: Sequence[str], prog: str, layout: HelpLayout | None = None) -> T:
    """Parses the words of a command line into an instance of the dataclass `arguments`.

    Args:
      arguments: the dataclass.
      argv: the words after the command's name.
      prog: the command, for the usage line and errors, such as "flaxresnet train".
      layout: layout of the help of a command with many flags.

    Raises:
      UserError: a flag is unknown, its value is invalid, or there are too few or too many arguments.
      SystemExit: `--help` or, with a layout, `--help-all` was given, and the help has been printed.
    """
    options, words = _split_positional(argv)
    if layout and "--help-all" in options:
        print(format_help(arguments, prog, layout), end="")
        raise SystemExit(0)
    if "--help" in options or "-h" in options:
        print(format_help(arguments, prog, layout, layout.common if layout else None), end="")
        raise SystemExit(0)
    try:
        given, unknown = _read_flags(arguments, options)
        if any(word.startswith("-") for word in unknown):
            raise UserError(_unknown(unknown, arguments))
        given |= _read_positional(arguments, [*unknown, *words])
        return arguments(**given)
    except UserError as error:
        page = "--help-all" if layout else "--help"
        raise UserError(f"{error}; see `{prog} {page}`") from error


def format_help(
    arguments: type, prog: str, layout: HelpLayout | None = None, shown: Sequence[str] | None = None
) -> str:
    """Returns the help page, as wide as the terminal. It lists all flags, or only those of the fields in `shown`."""
    parser = _new_parser(arguments, prog)
    metavars = []
    for field in _positional_fields(arguments):
        metavar = field.metadata["positional"]
        metavars.append(metavar)
        parser.add_argument(field.name, metavar=metavar, help=_help_text(arguments, field))
    parser.usage = " ".join([prog.replace("%", "%%"), *metavars, "[OPTIONS]"])
    groups = layout.groups if layout else {"options": [field.name for field in _flag_fields(arguments)]}
    fields = {field.name: field for field in _flag_fields(arguments)}
    for title, names in groups.items():
        group = parser.add_argument_group(title)
        for name in names:
            if shown is None or name in shown:
                default = layout.defaults.get(name) if layout else None
                _add_flag(group, arguments, fields[name], _help_text(arguments, fields[name], default))
    group = parser.add_argument_group("help")
    group.add_argument("-h", "--help", action="store_true", help="Show this help and exit.")
    if layout:
        group.add_argument("--help-all", action="store_true", help="Show all options and exit.")
    return parser.format_help()


class _HelpFormatter(argparse.HelpFormatter):
    """Separates paragraphs, and breaks lines between words but not at the hyphens of a flag."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=MAX_HELP_INDENT)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        return "\n\n".join("\n".join(self._split_lines(paragraph, width)) for paragraph in paragraphs)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_long_words=False, break_on_hyphens=False)


def _split_positional(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the words before the first `--`, and the words after it, which are all positional."""
    words = list(argv)
    if "--" not in words:
        return words, []
    index = words.index("--")
    return words[:index], words[index + 1 :]


def _new_parser(arguments: type, prog: str) -> argparse.ArgumentParser:
    description = (inspect.getdoc(arguments) or "").partition("\n\nRaises")[0]
    return argparse.ArgumentParser(
        prog=prog,
        description=description.replace("%", "%%"),
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
        add_help=False,
        exit_on_error=False,
    )


def _add_flag(group: Any, arguments: type, field: dataclasses.Field[Any], text: str | None = None) -> None:
    """Adds a field's flag, with a help text, to a parser or one of its groups. argparse stores the value as text."""
    if _is_switch(arguments, field):
        group.add_argument(*_switch_names(field), dest=field.name, help=text, action=_Switch, nargs=0, default=None)
    else:
        nargs, metavar = _shape(_hint(arguments, field.name))
        group.add_argument(flag(field.name), dest=field.name, help=text, nargs=nargs, metavar=metavar, default=None)


def _switch_names(field: dataclasses.Field[Any]) -> list[str]:
    """Returns `--name` and `--no-name`; the first one changes the default."""
    names = [flag(field.name), flag(f"no-{field.name}")]
    return names[::-1] if field.default is True else names


class _Switch(argparse.Action):
    """Stores whether `--name` or `--no-name` was given."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, not (option_string or "").startswith("--no-"))


def _read_flags(arguments: type, words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Returns the values of the given flags, by field, and the words that belong to no flag."""
    switches = set()
    for field in _flag_fields(arguments):
        if _is_switch(arguments, field):
            switches.update(_switch_names(field))
    spelled = []
    for word in words:
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            name = name.replace("_", "-")
        if name in switches and equals:
            raise UserError(f"{name} is a switch and takes no value, not {value!r}")
        spelled.append(name + equals + value)
    parser = _new_parser(arguments, "")
    for field in _flag_fields(arguments):
        _add_flag(parser, arguments, field)
    try:
        namespace, unknown = parser.parse_known_args(spelled)
    except argparse.ArgumentError as error:
        raise UserError(f"{error.argument_name} needs {_expected(arguments, error)}") from error
    given = {}
    for field in _flag_fields(arguments):
        text = getattr(namespace, field.name)
        if text is not None:
            hint = _hint(arguments, field.name)
            given[field.name] = text if isinstance(text, bool) else _convert(flag(field.name), text, hint)
    return given, unknown


def _expected(arguments: type, error: argparse.ArgumentError) -> str:
    name = str(error.argument_name).removeprefix("--").replace("-", "_")
    return type_name(_hint(arguments, name))


def _read_positional(arguments: type, words: Sequence[str]) -> dict[str, Any]:
    """Returns the values of the positional arguments, in the order of their fields."""
    remaining = list(words)
    given: dict[str, Any] = {}
    for field in _positional_fields(arguments):
        metavar = field.metadata["positional"]
        hint = _hint(arguments, field.name)
        if _takes_all(arguments, field):
            given[field.name] = _convert(metavar, remaining, hint)
            remaining = []
        elif remaining:
            given[field.name] = _convert(metavar, remaining.pop(0), hint)
        elif field.default is dataclasses.MISSING:
            raise UserError(f"{metavar} is missing: {_help_text(arguments, field)}".rstrip("."))
    if remaining:
        raise UserError(_unknown(remaining, arguments))
    return given


def _convert(name: str, text: Any, hint: Any) -> Any:
    """Converts a word, or a list of words, to a type.

    Args:
      name: the flag or positional argument, for the error.
      text: the word or words.
      hint: the type to convert to.

    Raises:
      UserError: the text is not a value of that type.
    """
    kind = _kind(hint)
    if typing.get_origin(kind) is tuple:
        part = typing.get_args(kind)[0]
        return tuple(_convert(name, word, part) for word in text)
    try:
        if typing.get_origin(kind) is Literal:
            return next(choice for choice in typing.get_args(kind) if str(choice) == text)
        return kind(text)
    except (ValueError, StopIteration):
        raise UserError(f"{name} must be {type_name(kind)}, not {text!r}") from None


def _unknown(words: Sequence[str], arguments: type) -> str:
    """Returns a sentence that names the unknown options, without their values."""
    named = [word.partition("=")[0] for word in words if word.startswith("-")] or list(words)
    flags = []
    for field in _flag_fields(arguments):
        flags += _switch_names(field) if _is_switch(arguments, field) else [flag(field.name)]
    matches = []
    for word in named:
        matches += get_close_matches(word, flags, n=1, cutoff=0.75)
    hint = f"; did you mean {' and '.join(matches)}?" if matches else ""
    return f"{', '.join(named)} {'is not an option' if len(named) == 1 else 'are not options'}{hint}"


def _flag_fields(arguments: type) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(arguments) if "positional" not in field.metadata]


def _positional_fields(arguments: type) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(arguments) if "positional" in field.metadata]


@functools.cache
def _hints(arguments: type) -> Mapping[str, Any]:
    return typing.get_type_hints(arguments)


def _hint(arguments: type, name: str) -> Any:
    return _hints(arguments)[name]


def _kind(hint: Any) -> Any:
    """Returns the type without None: `int | None` → `int`."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        (kind,) = (part for part in typing.get_args(hint) if part is not type(None))
        return kind
    return hint


def _is_switch(arguments: type, field: dataclasses.Field[Any]) -> bool:
    return _kind(_hint(arguments, field.name)) is bool


def _takes_all(arguments: type, field: dataclasses.Field[Any]) -> bool:
    return typing.get_origin(_hint(arguments, field.name)) is tuple


def _shape(hint: Any) -> tuple[Any, str]:
    """Returns argparse's `nargs` of a flag, and its metavar."""
    kind = _kind(hint)
    if typing.get_origin(kind) is tuple:
        parts = typing.get_args(kind)
        _, metavar = _shape(parts[0])
        return "+" if parts[-1] is Ellipsis else len(parts), metavar
    if typing.get_origin(kind) is Literal:
        return None, "{" + ",".join(str(choice) for choice in typing.get_args(kind)) + "}"
    return None, METAVARS[kind]


def _help_text(arguments: type, field: dataclasses.Field[Any], default: str | None = None) -> str:
    """Returns the field's docstring with its default, in one line, for argparse."""
    text = " ".join(field_docstrings(arguments).get(field.name, "").split())
    if field.default not in (None, dataclasses.MISSING, (), ""):
        default = format_value(field.default)
    if default is not None:
        text = f"{text} (default: {default})"
    return text.replace("%", "%%")


def format_value(value: Any) -> str:
    """Returns the text of a value in the help."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


@functools.cache
def field_docstrings(arguments: type) -> Mapping[str, str]:
    """Returns the string under each field of a dataclass and its bases, from their source."""
    docstrings: dict[str, str] = {}
    for cls in reversed(arguments.__mro__[:-1]):
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        docstrings |= dict(_documented(typing.cast(ast.ClassDef, node).body))
    return docstrings


def _documented(body: Sequence[ast.stmt]) -> Iterable[tuple[str, str]]:
    """Yields the name of each field and the string under it."""
    for statement, below in itertools.pairwise(body):
        match statement, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, text
