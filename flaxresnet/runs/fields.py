"""What a run's files have to hold, as data: each field, what must be true of its value, and how to say so."""

import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from flaxresnet.data.preprocess import is_number

Check = tuple[Callable[[Any], bool], str]

MAX_COUNT = 2**53  # what JSON's numbers can count to everywhere


def _is_whole(value: Any, least: int = 0) -> bool:
    return type(value) is int and least <= value <= MAX_COUNT  # by type, because True is an int as well


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value)) and len({*value}) == len(value) >= 2


def _or_null(check: Check) -> Check:
    return (lambda value: value is None or check[0](value)), f"{check[1]} or null"


TEXT: Check = _is_text, "text"
OBJECT: Check = (lambda value: isinstance(value, dict)), "an object"
WHOLE: Check = _is_whole, "a whole number"
POSITIVE: Check = (lambda value: _is_whole(value, 1)), "a whole number from 1"
TEXTS: Check = (lambda value: isinstance(value, dict) and all(map(_is_text, value.values()))), "an object of texts"
NAMES: Check = _are_names, "a list of two or more different names"
NUMBER: Check = is_number, "a number"
SWITCH: Check = (lambda value: isinstance(value, bool)), "true or false"

# `config.json`, and what in it tells of the data; options and preprocessing have checks of their own.
RUN = {"format": POSITIVE, "config": OBJECT, "class_names": NAMES, "preprocessing": OBJECT, "data": OBJECT}
RUN |= {"versions": TEXTS, "device": TEXT}
DATA = {"source": TEXT, "path": _or_null(TEXT), "train_fingerprint": _or_null(TEXT), "test_fingerprint": _or_null(TEXT)}
DATA |= {"train_images": WHOLE, "test_images": WHOLE, "streamed": SWITCH, "adapted": TEXT}
# Of runs of before, or of weights from elsewhere; the last one is of those alone.
MAY_LACK = ("device", "train_images", "test_images", "streamed", "adapted")

# A line of `metrics.jsonl`.
ROW = {"epoch": POSITIVE, "step": WHOLE}
ROW |= dict.fromkeys(("train_loss", "train_accuracy", "test_loss", "test_accuracy"), NUMBER)
ROW |= dict.fromkeys(("learning_rate", "seconds", "images_per_second"), NUMBER)


def require(values: Any, fields: Mapping[str, Check], what: str = "") -> None:
    """Raises KeyError for the first field that is missing, TypeError for the first with another value."""
    if not isinstance(values, dict):
        raise TypeError(f"{what or 'it'} is {reprlib.repr(values)}, not an object")
    for name, (holds, words) in fields.items():
        if name not in values:
            if name in MAY_LACK:
                continue
            raise KeyError(f"{what} without {name}" if what else name)
        if not holds(values[name]):
            raise TypeError(f"{what and what + '.'}{name} is {reprlib.repr(values[name])}, not {words}")


def is_row(values: Any) -> bool:
    """Whether these are the figures of an epoch."""
    try:
        require(values, ROW)
    except (KeyError, TypeError):
        return False
    return True
