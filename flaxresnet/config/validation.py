"""What an option's value may be: bounds, types, and the words of an error that names the option."""

import math
import numbers
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from flaxresnet.runtime.errors import UserError

Check = tuple[Callable[[Any], bool], str]  # what must hold, and how to say it after "must be"


def at_least(low: float) -> Check:
    return (lambda value: low <= value < math.inf), f"at least {low}"


def at_most(high: float) -> Check:
    """A bound that no sensible use meets: beyond it numbers overflow, or a slip of the finger fills a machine."""
    return (lambda value: value <= high), f"at most {high}"


def between(low: float, high: float) -> Check:
    return (lambda value: low <= value <= high), f"between {low} and {high}"


UNIT_OPEN_CLOSED: Check = (lambda value: 0 < value <= 1), "above 0 and at most 1"
POSITIVE: Check = (lambda value: 0 < value < math.inf), "above 0"
UNIT_CLOSED_OPEN: Check = (lambda value: 0 <= value < 1), "at least 0 and below 1"


def flag(name: str) -> str:
    """How an option is written on the command line: `batch_size` → `--batch-size`."""
    return "--" + name.replace("_", "-")


def check_value(name: str, value: Any, hint: Any, checks: Sequence[Check] = ()) -> None:
    """Raises UserError unless `value` is of the type `hint` and passes all checks."""
    kinds = _kinds(hint)
    if value is None and type(None) in kinds:
        return
    if not any(_is_of_type(value, kind) for kind in kinds):
        raise UserError(f"{flag(name)} must be {type_name(hint)}, not {value!r}")
    for holds, words in checks:
        if not holds(value):
            raise UserError(f"{flag(name)} must be {words}, not {value!r}")


def type_name(hint: Any) -> str:
    """Describes the values of a type in a user's words: `int | None` → "a whole number"."""
    return " or ".join(_kind_name(kind) for kind in _kinds(hint) if kind is not type(None))


def _kind_name(kind: Any) -> str:
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}
    words[tuple[int, int]] = "two whole numbers"
    if kind in words:
        return words[kind]
    if typing.get_origin(kind) is tuple:
        return f"one or more of: {type_name(typing.get_args(kind)[0])}"
    return " or ".join(repr(choice) for choice in typing.get_args(kind))


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    is_union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return typing.get_args(hint) if is_union else (hint,)


def _is_of_type(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is Literal:
        return value in typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        parts = typing.get_args(kind)
        fits = isinstance(value, tuple) and len(value) == len(parts)
        return fits and all(_is_of_type(one, part) for one, part in zip(value, parts, strict=True))
    if kind in (int, float):
        accepted = numbers.Integral if kind is int else numbers.Real  # NumPy's scalars among them
        return isinstance(value, accepted) and not isinstance(value, bool)
    return isinstance(value, kind)
