"""Shared style of the Matplotlib figures: writing files, and fonts for all scripts."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from matplotlib import font_manager, rc_context
from matplotlib.figure import Figure

from flaxresnet.runtime.atomic_io import atomic_write

DPI = 110  # makes text readable at full size


def save(figure: Figure, path: Path, dpi: int = DPI) -> None:
    """Writes a figure in the format of the suffix, .png or .svg. Equal figures give equal files.

    Raises:
      UserError: the file cannot be written.
    """
    kind = path.suffix.removeprefix(".")
    metadata = {"Date": None} if kind == "svg" else None
    with atomic_write(path) as temporary, rc_context({"svg.fonttype": "none", "svg.hashsalt": "flaxresnet"}):
        figure.savefig(temporary, format=kind, dpi=dpi, metadata=metadata)


# Fonts with characters that Matplotlib's default font lacks: Chinese, Japanese, Korean and other scripts.
OTHER_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei", "PingFang SC"),
    *("Hiragino Sans", "Apple SD Gothic Neo", "Microsoft YaHei", "Malgun Gothic", "Noto Sans", "Arial Unicode MS"),
)


@cache
def families() -> list[str]:
    """Returns Matplotlib's default font and the installed fonts of `OTHER_FONTS`."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in OTHER_FONTS if name in installed)]


def replace_unrenderable(names: Sequence[str]) -> list[str]:
    """Replaces each name that contains a character without a glyph in `families` with the name's index, from 0."""
    fonts = [font_manager.get_font(font_manager.findfont(family)) for family in families()]

    def has_glyph(character: str) -> bool:
        return any(font.get_char_index(ord(character)) for font in fonts)

    return [name if all(map(has_glyph, name)) else str(index) for index, name in enumerate(names)]
