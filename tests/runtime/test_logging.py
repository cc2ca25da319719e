"""Log messages of other packages that the package suppresses."""

import logging

import pytest

from flaxresnet.runs.checkpoint_io import EpochCheckpoints


@pytest.mark.parametrize(
    ("path", "level", "is_shown"),
    [
        ("/site-packages/orbax/checkpoint/_src/futures/future.py", logging.ERROR, False),
        ("/site-packages/orbax/checkpoint/checkpoint_manager.py", logging.WARNING, True),
        ("/site-packages/grain/python/data_loader.py", logging.ERROR, True),
    ],
)
def test_failed_save_logs_no_traceback(tmp_path, path, level, is_shown):
    """Orbax logs hundreds of lines for a full disk, and raises the same error."""
    with EpochCheckpoints(tmp_path / "checkpoints"):
        pass
    record = logging.LogRecord("absl", level, path, 1, "_SignalingThread.run() raised an exception", (), None)
    assert bool(logging.getLogger("absl").filter(record)) == is_shown
