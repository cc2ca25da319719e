"""What all of Matplotlib's figures share: writing them, and letters of every script."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from matplotlib import font_manager, rc_context
from matplotlib.figure import Figure

from flaxresnet.runtime.atomic_io import atomic_write

DPI = 110  # dots to an inch, at which words are read with ease at full size


def save(figure: Figure, path: Path, dpi: int = DPI) -> None:
    """Writes a figure as its name's ending says, .png or .svg; the same figure gives the same file.

    Raises UserError where it cannot be written.
    """
    kind = path.suffix.removeprefix(".")
    with atomic_write(path) as temporary, rc_context({"svg.fonttype": "none", "svg.hashsalt": "flaxresnet"}):
        figure.savefig(temporary, format=kind, dpi=dpi, metadata={"Date": None} if kind == "svg" else None)


# Fonts with letters that Matplotlib's own has not: Chinese, Japanese, Korean, and signs of other scripts.
OTHER_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei", "PingFang SC"),
    *("Hiragino Sans", "Apple SD Gothic Neo", "Microsoft YaHei", "Malgun Gothic", "Noto Sans", "Arial Unicode MS"),
)


@cache
def families() -> list[str]:
    """Matplotlib's own font, and those that are installed here for the letters that it has not."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in OTHER_FONTS if name in installed)]


def replace_unrenderable(names: Sequence[str]) -> list[str]:
    """The names, with a number from 0 in place of those whose letters no font here has."""
    fonts = [font_manager.get_font(font_manager.findfont(family)) for family in families()]

    def is_known(letter: str) -> bool:
        return any(font.get_char_index(ord(letter)) for font in fonts)

    return [name if all(map(is_known, name)) else str(number) for number, name in enumerate(names)]
