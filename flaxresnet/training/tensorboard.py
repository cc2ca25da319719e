"""A run's figures for TensorBoard, beside `metrics.jsonl`, which stays the truth."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np

from flaxresnet.runtime.errors import UserError


class TensorBoardWriter:
    """Writes TensorBoard's events; does nothing where there is no folder. A context manager: leaving it closes them.

    A folder that cannot be written is said once; training goes on without it.
    """

    def __init__(self, folder: Path | None, note: Callable[[str], None]) -> None:
        """Writes nothing yet. Raises UserError where tensorboardX is not installed."""
        self._folder, self._note, self._writer = folder, note, None
        if folder is not None:
            self._make: Any = _summary_writer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._write(lambda writer: writer.close(), begin=False)

    def row(self, row: dict[str, Any]) -> None:
        """An epoch's figures: losses and accuracies in one chart for both splits, the others each in its own."""

        def write(writer: Any) -> None:
            for name, value in row.items():
                split, _, figure = name.partition("_")
                tag = f"{figure}/{split}" if split in ("train", "test") else f"run/{name}"
                if name not in ("epoch", "step"):
                    writer.add_scalar(tag, value, row["step"])
            writer.flush()

        self._write(write)

    def pictures(self, tag: str, pictures: Iterable[tuple[np.ndarray, str]], step: int) -> None:
        """Images, (height, width, 3) uint8, each with its name."""

        def write(writer: Any) -> None:
            for image, name in pictures:
                writer.add_image(f"{tag}/{name}", image, step, dataformats="HWC")

        self._write(write)

    def _write(self, write: Callable[[Any], None], begin: bool = True) -> None:
        if self._folder is None or (self._writer is None and not begin):
            return
        try:
            self._writer = self._writer or self._make(str(self._folder), write_to_disk=True)
            write(self._writer)
        except OSError as error:
            self._note(f"{self._folder} cannot be written: {error.strerror or error}; nothing more goes to TensorBoard")
            self._folder = None


def _summary_writer() -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise UserError(
            "--tensorboard needs tensorboardX; install it with: pip install 'flaxresnet[tensorboard]'"
        ) from None
    return SummaryWriter
