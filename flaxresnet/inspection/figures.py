"""Writing Matplotlib's figures."""

from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from flaxresnet.writing import replacing

DPI = 110  # dots to an inch, at which words are read with ease at full size


def save(figure: Figure, path: Path, dpi: int = DPI) -> None:
    """Writes a figure as its name's ending says, .png or .svg; the same figure gives the same file.

    Raises UserError where it cannot be written.
    """
    kind = path.suffix.removeprefix(".")
    with replacing(path) as temporary, rc_context({"svg.fonttype": "none", "svg.hashsalt": "flaxresnet"}):
        figure.savefig(temporary, format=kind, dpi=dpi, metadata={"Date": None} if kind == "svg" else None)
