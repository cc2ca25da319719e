"""Pictures of explanations: a photo, and beside it the same with what the network looked at."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

LARGEST = 640  # pixels of a photo's longer side in the picture
COLOURS = "inferno"  # even in lightness, and so for colour-blind eyes as well
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


def explanation(photo: np.ndarray, heat: np.ndarray, title: str, lines: list[str]) -> Figure:
    """A photo, the same with a map over it, and what the network says of it.

    Args:
      photo: (height, width, 3), uint8.
      heat: (rows, columns), at least 0.
      title: over the picture.
      lines: under it.
    """
    shown = _at_most(photo, LARGEST)
    figure = Figure(
        figsize=(8, 8 * 0.47 * shown.shape[0] / shown.shape[1] + 0.55 + 0.22 * len(lines)), facecolor="white"
    )
    height = figure.get_figheight()
    bottom, top = (0.12 + 0.22 * len(lines)) / height, 1 - 0.4 / height
    for left, picture in ((0.02, shown), (0.51, overlay(shown, heat))):
        axes: Any = figure.add_axes((left, bottom, 0.47, top - bottom))
        axes.imshow(picture)
        axes.axis("off")
    figure.text(0.02, 1 - 0.22 / height, title, fontsize=11, weight="bold", va="center", parse_math=False)
    for index, line in enumerate(lines):
        y = (0.1 + 0.22 * (len(lines) - 1 - index)) / height
        figure.text(0.02, y, line, fontsize=10, va="center", parse_math=False)
    return figure


def _at_most(photo: np.ndarray, side: int) -> np.ndarray:
    """The photo with its longer side brought down, or small ones brought up, to `side` pixels."""
    scale = side / max(photo.shape[:2])
    size = [max(1, round(length * scale)) for length in photo.shape[1::-1]]
    return np.asarray(Image.fromarray(photo).resize((size[0], size[1]), Image.Resampling.BICUBIC))


def save(figure: Figure, path: Path) -> None:
    """Writes it as PNG. Raises OSError."""
    figure.savefig(path, dpi=110)
