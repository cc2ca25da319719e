"""Pieces of a page of HTML that needs nothing but itself."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from string import Template

import numpy as np
from PIL import Image

SHOWN = 0.64  # of a chart's pixels, on a wide screen


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page of parts, each HTML, in the report's style, light or dark as the reader's system is."""
    template = Template(files("flaxresnet.report").joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), body="\n".join(parts))


def section(title: str, *parts: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def paragraph(text: str, soft: bool = False) -> str:
    return f"<p{' class=soft' if soft else ''}>{escape(text)}</p>"


def figures(pairs: Iterable[tuple[str, str, str]]) -> str:
    """Large figures in boxes: what it is, the figure, what to add."""
    boxes = (
        f"<div>{escape(what)}<b>{escape(figure)}</b><span class=soft>{escape(more)}</span></div>"
        for what, figure, more in pairs
    )
    return "<div class=figures>" + "".join(boxes) + "</div>"


def chart(light: bytes, dark: bytes, alt: str) -> str:
    """A picture in two themes, both PNGs; `alt` says in words what it shows."""
    with Image.open(io.BytesIO(light)) as picture:
        width, height = picture.size
    size = f'width={width} height={height} style="max-width: min(100%, {width * SHOWN:.0f}px)"'
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{_inline(dark)}">'
        f'<img class=chart src="{_inline(light)}" {size} alt="{escape(alt)}"></picture>'
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Figures; the first column is words."""
    heads = "".join(f"<th scope=col>{escape(cell)}</th>" for cell in head)
    lines = ("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class=wide><table><thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"


def key_value_table(pairs: Iterable[tuple[str, str]]) -> str:
    """What is known, a line each."""
    lines = (f"<tr><th scope=row>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in pairs)
    return f"<table class=words><tbody>{''.join(lines)}</tbody></table>"


def details(title: str, text: str) -> str:
    """Text as it stands, shown when asked for."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def photos(pairs: Iterable[tuple[np.ndarray, str]]) -> str:
    """Pictures, (height, width, 3) uint8, each with a caption of HTML."""
    items = (
        f'<figure><img src="{_inline(_png(image))}" alt=""><figcaption>{caption}</figcaption></figure>'
        for image, caption in pairs
    )
    return "<div class=photos>" + "".join(items) + "</div>"


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _inline(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
