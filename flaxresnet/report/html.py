"""Builds a self-contained HTML page from sections, tables and images."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from string import Template

import numpy as np
from PIL import Image

CHART_SCALE = 0.64  # CSS pixels per pixel of a chart on a wide screen


def page(title: str, parts: Iterable[str]) -> str:
    """Returns a page with the parts, which are HTML, as its body. It follows the light or dark theme of the browser."""
    template = Template(files("flaxresnet.report").joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), body="\n".join(parts))


def section(title: str, *parts: str) -> str:
    """Returns a section with a plain-text heading and parts of HTML."""
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def paragraph(text: str, soft: bool = False) -> str:
    """Returns a paragraph of plain text, in the secondary color if `soft`."""
    return f"<p{' class=soft' if soft else ''}>{escape(text)}</p>"


def metric_boxes(metrics: Iterable[tuple[str, str, str]]) -> str:
    """Returns a box for each (name, number, note); the number is large."""
    boxes = []
    for name, number, note in metrics:
        boxes.append(f"<div>{escape(name)}<b>{escape(number)}</b><span class=soft>{escape(note)}</span></div>")
    return "<div class=figures>" + "".join(boxes) + "</div>"


def chart(light: bytes, dark: bytes, alt: str) -> str:
    """Returns a picture that follows the browser's theme, given the bytes of two PNG files and the alternative text."""
    with Image.open(io.BytesIO(light)) as picture:
        width, height = picture.size
    size = f'width={width} height={height} style="max-width: min(100%, {width * CHART_SCALE:.0f}px)"'
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{_inline(dark)}">'
        f'<img class=chart src="{_inline(light)}" {size} alt="{escape(alt)}"></picture>'
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table with a header row. The first column holds text, and the other columns hold numbers."""
    heads = "".join(f"<th scope=col>{escape(cell)}</th>" for cell in head)
    lines = []
    for row in rows:
        lines.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
    return f"<div class=wide><table><thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"


def key_value_table(pairs: Iterable[tuple[str, str]]) -> str:
    """Returns a table of (name, value) rows, without a header row."""
    lines = [f"<tr><th scope=row>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in pairs]
    return f"<table class=words><tbody>{''.join(lines)}</tbody></table>"


def details(title: str, text: str) -> str:
    """Returns preformatted text that the reader can expand under its title."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def command(lines: str) -> str:
    """Returns command lines as preformatted text."""
    return f"<pre>{escape(lines)}</pre>"


def photos(pairs: Iterable[tuple[np.ndarray, str]]) -> str:
    """Returns a grid of (image, caption): images are (height, width, 3) uint8, and captions are HTML."""
    items = []
    for image, caption in pairs:
        items.append(f'<figure><img src="{_inline(_png(image))}" alt=""><figcaption>{caption}</figcaption></figure>')
    return "<div class=photos>" + "".join(items) + "</div>"


def mistake_caption(true: str, predicted: str, confidence: float) -> str:
    """Returns HTML such as "cat, predicted as <b>dog</b> (0.987)"."""
    return f"{escape(true)}, predicted as <b class=wrong>{escape(predicted)}</b> ({confidence:.3f})"


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _inline(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
