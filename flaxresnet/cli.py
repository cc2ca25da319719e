"""Command lines: flags from a dataclass, and a user's mistake as one sentence with exit status 2."""

import contextlib
import dataclasses
import inspect
import io
import logging
import os
import re
import shutil
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Annotated, Any, TypeVar

from flaxresnet.errors import Interrupted, UserError
from flaxresnet.option_checks import flag, words_for

T = TypeVar("T")

MISTAKE = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells count
CLOSED_PIPE = 141  # 128 + SIGPIPE
# What `--help` shows in place of an option's value; a switch has none.
METAVARS: dict[Any, str] = {str: "STR", int: "INT", float: "FLOAT", tuple[int, int]: "INT INT", bool: ""}


def parse(arguments: type[T], argv: Sequence[str], prog: str) -> T:
    """An instance of the dataclass `arguments` from flags; its docstrings are the help texts.

    Raises:
      UserError: a flag is unknown or its value does not fit.
      SystemExit: `--help` was asked for and printed.
    """
    import tyro

    argv = _spelt_out(arguments, argv)
    # What a docstring says to callers of Python is no help on a command line.
    description = (inspect.getdoc(arguments) or "").partition("\n\nRaises")[0]
    cli = partial(tyro.cli, _as_shown(arguments), args=list(argv), prog=prog, description=description)
    try:
        with contextlib.redirect_stderr(io.StringIO()), _between_words():
            given = cli()
            return arguments(**{f.name: getattr(given, f.name) for f in dataclasses.fields(given)})
    except SystemExit as stop:
        if stop.code != MISTAKE:
            raise
    said = io.StringIO()
    # Again, for the words: tyro wraps them into a box as wide as the terminal, which would break a long path.
    with contextlib.redirect_stderr(said), contextlib.suppress(SystemExit), _columns(100_000):
        cli()
    raise UserError(f"{_sentence(said.getvalue(), arguments, argv)}; see `{prog} --help`")


def run(main: Callable[[], int]) -> int:
    """The exit status of `main`, with the user's mistakes and Ctrl-C turned into a sentence on standard error."""
    for stream in (sys.stdout, sys.stderr):  # a terminal without Unicode shows "?" rather than a traceback
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    # Orbax tells every save's stages as warnings; a run prints one line an epoch.
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        return main()
    except UserError as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)  # a name in a file may break lines
        return MISTAKE
    except BrokenPipeError:  # `predict … | head`: nobody reads on, which is no mistake
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return stop.status
    except KeyboardInterrupt:
        print("interrupted; what had been written is kept", file=sys.stderr)
        return INTERRUPTED
    except Exception:
        if sentence := _why_no_device():
            print(f"error: {sentence}", file=sys.stderr)
            return MISTAKE
        raise


def _why_no_device() -> str | None:
    """A sentence where JAX_PLATFORMS asks for what JAX cannot use here, which JAX tells in many ways; else None."""
    asked = os.environ.get("JAX_PLATFORMS")
    if not asked or "jax" not in sys.modules:
        return None
    try:
        sys.modules["jax"].devices()
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return (
            f"JAX_PLATFORMS={asked} asks for a device that JAX cannot use here ({reason}); install the extra that it "
            "needs, such as 'flaxresnet[cuda12]', or unset it to compute on what there is"
        )
    return None


@contextlib.contextmanager
def _between_words() -> Iterator[None]:
    """What is printed within has lines that fit the terminal: those above its boxes tyro leaves as long as they are."""
    printed: Any = io.TextIOWrapper(io.BytesIO(), encoding=sys.stdout.encoding, errors="replace")
    printed.isatty = sys.stdout.isatty  # by which, and by the encoding, tyro chooses colours and boxes
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        printed.seek(0)
        width = shutil.get_terminal_size().columns
        for line in printed.read().splitlines():
            plain = re.sub(r"\x1b\[[\d;]*m", "", line)
            fits = len(plain) <= width
            print(line if fits else textwrap.fill(plain, width, break_long_words=False, break_on_hyphens=False))


@contextlib.contextmanager
def _columns(count: int) -> Iterator[None]:
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(count)
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _optional(arguments: type) -> dict[str, Any]:
    """Options that are None when left out, and their type when not."""
    hints = typing.get_type_hints(arguments)
    kinds = {f.name: typing.get_args(hints[f.name]) for f in dataclasses.fields(arguments) if f.default is None}
    return {name: kind for name, (kind, *_) in kinds.items()}


def _as_shown(arguments: type) -> type:
    """The dataclass with what `--help` says of options that may be left out: their values alone, no default None."""
    import tyro

    checks = {f.name: f.metadata for f in dataclasses.fields(arguments)}
    shown: dict[str, Any] = {}
    for name, kind in _optional(arguments).items():
        values = METAVARS[kind] if kind in METAVARS else "{" + ",".join(map(str, typing.get_args(kind))) + "}"
        word = name.replace("_", "-")
        switch: dict[str, Any] = {"name": f"no-{word}", "aliases": [f"--{word}"]} if kind is bool else {}
        shown[name] = Annotated[kind | None, tyro.conf.arg(metavar=values, help_behavior_hint="", **switch)]
    members: dict[str, Any] = {name: dataclasses.field(default=None, metadata=checks[name]) for name in shown}
    members |= {"__annotations__": shown, "__module__": arguments.__module__}
    return dataclasses.dataclass(frozen=True)(type(arguments.__name__, (arguments,), members))


def _spelt_out(arguments: type, argv: Sequence[str]) -> list[str]:
    """The command line with a value behind every switch that may be left out, which tyro does not know as a switch."""
    names = [name.replace("_", "-") for name, kind in _optional(arguments).items() if kind is bool]
    spelt = {f"--{name}": f"--{name}=True" for name in names} | {f"--no-{name}": f"--{name}=False" for name in names}
    words = []
    for word in argv:
        name, equals, value = word.partition("=")
        if (name := name.replace("_", "-")) in spelt and equals:
            raise UserError(f"{name} is a switch and takes no value, not {value!r}")
        words.append(spelt.get(name, word))
    return words


def _sentence(box: str, arguments: type, argv: Sequence[str]) -> str:
    """The first paragraph of the box that tyro draws around an error, on one line and in the user's words."""
    lines = [line.strip("│| ") for line in box.splitlines()]
    # The first rule is the box's upper edge, or without Unicode the line under its title.
    rules = [i for i, line in enumerate(lines) if line.startswith("╭") or (line and set(line) <= set("─-╰╯"))]
    start, end = (*rules, len(lines), len(lines))[:2]
    text = re.sub(r"\s+", " ", " ".join(lines[start + 1 : end])).strip().rstrip(".")
    if wrong := re.match(r"Error parsing (--[\w-]+)|invalid choice .* for argument '(--[\w-]+)'", text):
        named = wrong[1] or wrong[2]
        hint = typing.get_type_hints(arguments)[named.removeprefix("--").removeprefix("no-").replace("-", "_")]
        return f"{named} must be {words_for(hint)}, not {_value_of(named, argv)!r}"
    if missing := re.match(r"Missing from .*?: (\S+) (.*?)\.? \(required\)", text):
        return f"{missing[1]} is missing: {missing[2]}"
    if unknown := re.match(r"Unrecognized options: (.*)", text):
        return _unknown(unknown[1].split(", "), arguments)
    return re.sub(r"^Error parsing \w+: ", "", text)


def _unknown(words: Sequence[str], arguments: type) -> str:
    """What is said of words that are no options, behind which their values may stand."""
    named = [word.partition("=")[0] for word in words if word.startswith("-")] or list(words)
    flags = [*_flags(arguments)]
    near = [close for word in named for close in get_close_matches(word, flags, n=1, cutoff=0.75)]
    meant = f"; did you mean {' and '.join(near)}?" if near else ""
    return f"{', '.join(named)} {'is no option' if len(named) == 1 else 'are no options'}{meant}"


def _flags(arguments: type) -> Iterator[str]:
    """The options as the command line has them, switches both ways."""
    import tyro

    for name, hint in typing.get_type_hints(arguments, include_extras=True).items():
        if tyro.conf.Positional not in getattr(hint, "__metadata__", ()):
            yield flag(name)
            if hint in (bool, bool | None):
                yield flag(f"no-{name}")


def _value_of(named: str, argv: Sequence[str]) -> str:
    """What the command line gives after a flag, as `--flag value` or `--flag=value`."""
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == named:
            return value if equals else following
    return ""
