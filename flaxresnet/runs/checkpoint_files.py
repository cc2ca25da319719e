"""The finished checkpoints in a folder and their metrics, read without Orbax.

Orbax itself cannot open a folder if one of its checkpoints has no readable metrics.
"""

import json
from pathlib import Path
from typing import Any


def checkpoint_paths(folder: Path) -> list[Path]:
    """Returns the finished checkpoints in a folder, in the order of their steps."""
    paths = [path for path in folder.glob("*") if path.name.isdigit()]
    return sorted(paths, key=lambda path: int(path.name))


def unreadable_checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints after an epoch whose metrics cannot be read."""
    return [path for path in checkpoint_paths(folder) if read_metrics(path) is None]


def last_epoch(folder: Path) -> int:
    """Returns the highest epoch in the checkpoints' metrics, or 0 if there is none."""
    epochs = [0]
    for path in checkpoint_paths(folder):
        metrics = read_metrics(path)
        if metrics and type(metrics["epoch"]) is int:
            epochs.append(metrics["epoch"])
    return max(epochs)


def has_required_metrics(metrics: Any) -> bool:
    """Returns whether a checkpoint's metrics hold the values that resuming and the choice of the best need."""
    if not isinstance(metrics, dict):
        return False
    required = ("epoch", "test_accuracy", "test_loss")
    return all(isinstance(metrics.get(name), int | float) for name in required)


def read_metrics(path: Path) -> dict[str, Any] | None:
    """Returns the metrics of a checkpoint, or None if they cannot be read."""
    try:
        metrics = json.loads((path / "metrics" / "metrics").read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return metrics if has_required_metrics(metrics) else None
