"""Pictures of explanations: a photo, and beside it the same with what the network looked at."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from flaxresnet.visualize.plot_style import families

LARGEST = 640  # pixels of a photo's longer side in the picture
COLOURS = "inferno"  # even in lightness, and so for colour-blind eyes as well
LINE = 0.2  # inches
STRENGTH = 0.65  # opacity where the map is highest


def overlay(photo: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lays a map over a photo.

    Args:
      photo: (height, width, 3), uint8.
      heat: (rows, columns), at least 0; stretched over the photo, its highest value is brightest.

    Returns:
      (height, width, 3), uint8; the photo itself where the map is 0.
    """
    height, width = photo.shape[:2]
    share = heat / max(float(heat.max()), 1e-12)
    stretched = Image.fromarray(share.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    level = np.clip(np.asarray(stretched), 0, 1)[..., None]
    colours = colormaps[COLOURS](level[..., 0])[..., :3] * 255
    return np.rint(photo * (1 - STRENGTH * level) + colours * STRENGTH * level).astype(np.uint8)


def explanation(photo: np.ndarray, heat: np.ndarray, title: str, lines: Sequence[str]) -> Figure:
    """A photo, the same with a map over it, and what the network says of it.

    Args:
      photo: (height, width, 3), uint8, as `display_size` gives it.
      heat: (rows, columns), at least 0.
      title: over the picture.
      lines: under it.
    """
    wide, share = 8, 0.47  # inches of the page, and how much of it each picture takes
    above, below = 0.4, 0.15 + LINE * len(lines)  # inches for words
    height = wide * share * photo.shape[0] / photo.shape[1] + above + below
    figure = Figure(figsize=(wide, height), facecolor="white")
    for left, picture in ((0.02, photo), (0.51, overlay(photo, heat))):
        axes: Any = figure.add_axes((left, below / height, share, 1 - (above + below) / height))
        axes.imshow(picture)
        axes.axis("off")
    usual: Any = {"va": "center", "parse_math": False, "family": families()}
    figure.text(0.02, 1 - above / 2 / height, title, fontsize=11, weight="bold", **usual)
    for number, line in enumerate(lines):
        figure.text(0.02, (below - LINE * (number + 0.8)) / height, line, fontsize=10, **usual)
    return figure


def display_size(photo: np.ndarray) -> np.ndarray:
    """The photo as the picture has it: with its longer side of 640 pixels."""
    scale = LARGEST / max(photo.shape[:2])
    height, width = (max(1, round(side * scale)) for side in photo.shape[:2])
    return np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BICUBIC))


def ellipsize(text: str, most: int) -> str:
    """The text in at most so many letters, the middle left out: "a long na…me.jpg"."""
    return text if len(text) <= most else text[: most // 2] + "…" + text[len(text) - (most - most // 2 - 1) :]
