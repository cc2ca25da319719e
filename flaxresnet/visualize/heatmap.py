"""Images of Grad-CAM explanations: a photo, and beside it the photo with its heat map."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from flaxresnet.visualize.plot_style import families

MAX_SIDE = 640  # pixels of a photo's longer side
COLORMAP = "inferno"  # perceptually uniform, so also readable with color vision deficiency
LINE_HEIGHT = 0.2  # inches
OPACITY = 0.65  # at the map's maximum


def overlay(photo: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Blends a heat map over a photo.

    Args:
      photo: (height, width, 3), uint8.
      heat: (rows, columns) float, at least 0. It is divided by its maximum and resized to the photo.

    Returns:
      (height, width, 3), uint8. Pixels of zero heat equal the photo's.
    """
    height, width = photo.shape[:2]
    relative = heat / max(float(heat.max()), 1e-12)
    resized = Image.fromarray(relative.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    level = np.clip(np.asarray(resized), 0, 1)[..., None]
    colors = colormaps[COLORMAP](level[..., 0])[..., :3] * 255
    return np.rint(photo * (1 - OPACITY * level) + colors * OPACITY * level).astype(np.uint8)


def explanation(photo: np.ndarray, heat: np.ndarray, title: str, lines: Sequence[str]) -> Figure:
    """Returns a figure with a photo, the photo with its heat map beside it, and text.

    Args:
      photo: (height, width, 3), uint8, as `display_size` returns it.
      heat: (rows, columns), at least 0.
      title: text above the images.
      lines: lines of text below the images, such as predictions.
    """
    page_width = 8  # inches
    picture_width = 0.47  # fraction of the page
    above = 0.4  # inches for the title
    below = 0.15 + LINE_HEIGHT * len(lines)  # inches for the lines
    height = page_width * picture_width * photo.shape[0] / photo.shape[1] + above + below
    figure = Figure(figsize=(page_width, height), facecolor="white")
    for left, picture in ((0.02, photo), (0.51, overlay(photo, heat))):
        axes: Any = figure.add_axes((left, below / height, picture_width, 1 - (above + below) / height))
        axes.imshow(picture)
        axes.axis("off")
    style: Any = {"va": "center", "parse_math": False, "family": families()}
    figure.text(0.02, 1 - above / 2 / height, title, fontsize=11, weight="bold", **style)
    for index, line in enumerate(lines):
        figure.text(0.02, (below - LINE_HEIGHT * (index + 0.8)) / height, line, fontsize=10, **style)
    return figure


def display_size(photo: np.ndarray) -> np.ndarray:
    """Resizes a photo (height, width, 3) uint8 so that its longer side has `MAX_SIDE` pixels."""
    scale = MAX_SIDE / max(photo.shape[:2])
    height, width = (max(1, round(side * scale)) for side in photo.shape[:2])
    return np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BICUBIC))


def ellipsize(text: str, max_length: int) -> str:
    """Shortens a text to `max_length` characters, with an ellipsis in the middle: "a long na…me.jpg"."""
    if len(text) <= max_length:
        return text
    head = max_length // 2
    tail = max_length - head - 1
    return text[:head] + "…" + text[len(text) - tail :]
