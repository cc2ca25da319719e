"""Errors of reading and writing checkpoints."""

import errno
import re

import pytest

from flaxresnet.runs.checkpoint_errors import CorruptCheckpointError, checkpoint_read_errors, checkpoint_write_errors
from flaxresnet.runtime.errors import UserError


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.EIO, "Input/output error"), UserError),
        (PermissionError(errno.EACCES, "Permission denied"), UserError),
        (MemoryError(), MemoryError),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), RuntimeError),
        (ValueError("not a zarr"), CorruptCheckpointError),
        (FileNotFoundError(errno.ENOENT, "No such file"), CorruptCheckpointError),
    ],
)
def test_read_errors_separate_corruption(error, raised, tmp_path):
    with pytest.raises(raised) as caught, checkpoint_read_errors(tmp_path / "7"):
        raise error
    assert caught.type is raised
    if issubclass(raised, UserError):
        assert re.match(r"checkpoint .*7 cannot be restored: ", str(caught.value))


def test_write_errors_name_reason(tmp_path):
    message = r"run cannot be written \(.*No space left.*\); the earlier checkpoints are intact"
    with pytest.raises(UserError, match=message), checkpoint_write_errors(tmp_path / "run"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(UserError, match="unchanged"), checkpoint_write_errors(tmp_path / "run"):
        raise UserError("unchanged")
