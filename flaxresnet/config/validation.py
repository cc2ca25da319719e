"""Validation of option values: types, ranges, and error messages that name the flag."""

import math
import numbers
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from flaxresnet.runtime.errors import UserError

Check = tuple[Callable[[Any], bool], str]  # a condition on the value, and its description after "must be"


def at_least(low: float) -> Check:
    """Returns a check for a finite lower bound."""
    return (lambda value: low <= value < math.inf), f"at least {low}"


def at_most(high: float) -> Check:
    """Returns a check for an upper bound. Use it for limits above which numbers overflow or memory runs out."""
    return (lambda value: value <= high), f"at most {high}"


def between(low: float, high: float) -> Check:
    """Returns a check for a closed interval."""
    return (lambda value: low <= value <= high), f"between {low} and {high}"


POSITIVE: Check = (lambda value: 0 < value < math.inf), "above 0"
UNIT_OPEN_CLOSED: Check = (lambda value: 0 < value <= 1), "above 0 and at most 1"
UNIT_CLOSED_OPEN: Check = (lambda value: 0 <= value < 1), "at least 0 and below 1"


def flag(name: str) -> str:
    """Returns the flag of an option: `batch_size` → `--batch-size`."""
    return "--" + name.replace("_", "-")


def check_value(name: str, value: Any, hint: Any, checks: Sequence[Check] = ()) -> Any:
    """Checks an option's value.

    Args:
      name: the option, for the message.
      value: the value, which may be a NumPy scalar.
      hint: the option's type annotation.
      checks: pairs of a condition on the plain Python value and its description.

    Returns:
      The value as plain Python: numbers become int or float, as `hint` requires.

    Raises:
      UserError: the value has another type or fails a check.
    """
    kinds = _kinds(hint)
    if value is None and type(None) in kinds:
        return None
    kind = next((kind for kind in kinds if _is_of_type(value, kind)), None)
    if kind is None:
        raise UserError(f"{flag(name)} must be {type_name(hint)}, not {value!r}")
    result = _as_python(value, kind)
    for holds, description in checks:
        if not holds(result):
            raise UserError(f"{flag(name)} must be {description}, not {value!r}")
    return result


def type_name(hint: Any) -> str:
    """Returns a description of a type's values for users: `int | None` → "a whole number"."""
    return " or ".join(_kind_name(kind) for kind in _kinds(hint) if kind is not type(None))


def _kind_name(kind: Any) -> str:
    names = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        Path: "a path",
        tuple[int, int]: "two whole numbers",
    }
    if kind in names:
        return names[kind]
    if typing.get_origin(kind) is tuple:
        return f"one or more of: {type_name(typing.get_args(kind)[0])}"
    return " or ".join(repr(choice) for choice in typing.get_args(kind))


def _kinds(hint: Any) -> tuple[Any, ...]:
    """Returns the members of a union, or the type itself."""
    is_union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return typing.get_args(hint) if is_union else (hint,)


def _is_of_type(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is Literal:
        return value in typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        parts = typing.get_args(kind)
        if not isinstance(value, tuple) or len(value) != len(parts):
            return False
        return all(map(_is_of_type, value, parts))
    if kind in (int, float):
        accepted = numbers.Integral if kind is int else numbers.Real  # NumPy's scalars are instances of these
        return isinstance(value, accepted) and not isinstance(value, bool)
    return isinstance(value, kind)


def _as_python(value: Any, kind: Any) -> Any:
    """Returns the value as an int or float if `kind` is one, also within a tuple."""
    if typing.get_origin(kind) is tuple:
        return tuple(map(_as_python, value, typing.get_args(kind)))
    try:
        return kind(value) if kind in (int, float) else value
    except OverflowError:  # an integer above the largest float
        return math.inf
