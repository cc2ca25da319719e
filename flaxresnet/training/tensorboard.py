"""A run's figures for TensorBoard, beside `metrics.jsonl`, which stays the truth."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np

from flaxresnet.errors import UserError


class EventFile:
    """Writes TensorBoard's events; does nothing where there is no folder. A context manager: leaving it closes them."""

    def __init__(self, folder: Path | None) -> None:
        """Raises UserError where tensorboardX is not installed."""
        self._writer: Any = None
        if folder is None:
            return
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise UserError(
                "--tensorboard needs tensorboardX; install it with: pip install 'flaxresnet[tensorboard]'"
            ) from None
        self._writer = SummaryWriter(str(folder), write_to_disk=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer:
            self._writer.close()

    def row(self, row: dict[str, Any]) -> None:
        """An epoch's figures: losses and accuracies in one chart for both splits, the others each in its own."""
        if not self._writer:
            return
        for name, value in row.items():
            split, _, figure = name.partition("_")
            tag = f"{figure}/{split}" if split in ("train", "test") else f"run/{name}"
            if name not in ("epoch", "step"):
                self._writer.add_scalar(tag, value, row["step"])
        self._writer.flush()

    def pictures(self, tag: str, pictures: Iterable[tuple[np.ndarray, str]], step: int) -> None:
        """Images, (height, width, 3) uint8, each with its name."""
        if self._writer:
            for image, name in pictures:
                self._writer.add_image(f"{tag}/{name}", image, step, dataformats="HWC")
