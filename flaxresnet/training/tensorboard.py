"""Writes the metrics of a run as TensorBoard events, besides `metrics.jsonl`."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np

from flaxresnet.runtime.errors import UserError


class TensorBoardWriter:
    """Writes TensorBoard events. As a context manager, it closes the event file at its end.

    If the folder cannot be written, the writer warns once and then discards all events.
    """

    def __init__(self, folder: Path | None, note: Callable[[str], None]) -> None:
        """Imports tensorboardX if `folder` is given. The first event opens the file.

        Args:
          folder: receives the events; None writes none.
          note: prints a warning.

        Raises:
          UserError: tensorboardX is not installed.
        """
        self._folder = folder
        self._note = note
        self._writer: Any = None
        if folder is not None:
            self._writer_class = _import_summary_writer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._write(lambda writer: writer.close())

    def row(self, row: dict[str, Any]) -> None:
        """Writes the metrics of an epoch. Tags such as "loss/train" and "loss/test" group the charts by metric."""

        def write(writer: Any) -> None:
            for name, value in row.items():
                if name in ("epoch", "step"):
                    continue
                split, _, metric = name.partition("_")
                tag = f"{metric}/{split}" if split in ("train", "test") else f"run/{name}"
                writer.add_scalar(tag, value, row["step"])
            writer.flush()

        self._write(write)

    def images(self, tag: str, images: Iterable[tuple[np.ndarray, str]], step: int) -> None:
        """Writes (image, name) pairs under `tag`; images are (height, width, 3) uint8."""

        def write(writer: Any) -> None:
            for image, name in images:
                writer.add_image(f"{tag}/{name}", image, step, dataformats="HWC")

        self._write(write)

    def _write(self, write: Callable[[Any], None]) -> None:
        if self._folder is None:
            return
        try:
            if self._writer is None:
                self._writer = self._writer_class(str(self._folder), write_to_disk=True)
            write(self._writer)
        except OSError as error:
            reason = error.strerror or error
            self._note(f"warning: {self._folder} cannot be written ({reason}); TensorBoard receives no more events")
            self._folder = None


def _import_summary_writer() -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise UserError(
            "--tensorboard needs tensorboardX; install it with: pip install 'flaxresnet[tensorboard]'"
        ) from None
    return SummaryWriter
