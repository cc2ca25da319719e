"""Schema of a run's files: for each field of `config.json` and `metrics.jsonl`, a check and its description."""

import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from flaxresnet.data.preprocess import is_number

Check = tuple[Callable[[Any], bool], str]

MAX_COUNT = 2**53  # the largest integer up to which every JSON reader counts exactly


def _is_integer(value: Any, low: int = 0) -> bool:
    return type(value) is int and low <= value <= MAX_COUNT  # not isinstance, because True is an int as well


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_text_object(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _is_name_list(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value)) and len({*value}) == len(value) >= 2


def _or_null(check: Check) -> Check:
    holds, description = check
    return (lambda value: value is None or holds(value)), f"{description} or null"


TEXT: Check = _is_text, "text"
OBJECT: Check = (lambda value: isinstance(value, dict)), "an object"
NATURAL: Check = _is_integer, "a whole number"
POSITIVE: Check = (lambda value: _is_integer(value, 1)), "a whole number from 1"
TEXTS: Check = _is_text_object, "an object of texts"
NAMES: Check = _is_name_list, "a list of two or more different names"
NUMBER: Check = is_number, "a number"
SWITCH: Check = (lambda value: isinstance(value, bool)), "true or false"

# The fields of `config.json`. `config` and `preprocessing` have checks in their own classes.
RUN = {
    "format": POSITIVE,
    "config": OBJECT,
    "class_names": NAMES,
    "preprocessing": OBJECT,
    "data": OBJECT,
    "versions": TEXTS,
    "device": TEXT,
}
# The fields of its `data`.
DATA = {
    "source": TEXT,
    "path": _or_null(TEXT),
    "train_fingerprint": _or_null(TEXT),
    "test_fingerprint": _or_null(TEXT),
    "train_images": NATURAL,
    "test_images": NATURAL,
    "streamed": SWITCH,
    "adapted": TEXT,
}
# Fields that converted weights lack; only adapted runs have `adapted`.
OPTIONAL = ("device", "train_images", "test_images", "streamed", "adapted")

# The fields of a line of `metrics.jsonl`.
ROW = {
    "epoch": POSITIVE,
    "step": NATURAL,
    "train_loss": NUMBER,
    "train_accuracy": NUMBER,
    "test_loss": NUMBER,
    "test_accuracy": NUMBER,
    "learning_rate": NUMBER,
    "seconds": NUMBER,
    "images_per_second": NUMBER,
}


def require(values: Any, fields: Mapping[str, Check], name: str = "") -> None:
    """Checks the fields of an object from JSON. Ignores other fields.

    Args:
      values: the object.
      fields: field → check.
      name: the field that holds the object, for the messages; "" for the top level.

    Raises:
      KeyError: a field is missing.
      TypeError: `values` is not an object, or a field's value fails its check.
    """
    if not isinstance(values, dict):
        raise TypeError(f"{name or 'it'} is {reprlib.repr(values)}, not an object")
    for field, (holds, description) in fields.items():
        if field not in values:
            if field in OPTIONAL:
                continue
            raise KeyError(f"{name} without {field}" if name else field)
        if not holds(values[field]):
            path = f"{name}.{field}" if name else field
            raise TypeError(f"{path} is {reprlib.repr(values[field])}, not {description}")


def is_metrics_row(values: Any) -> bool:
    """Returns whether a value from JSON is a valid row of `metrics.jsonl`."""
    try:
        require(values, ROW)
    except (KeyError, TypeError):
        return False
    return True
