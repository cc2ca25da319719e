"""Atomic replacement of files."""

import os

import pytest

from flaxresnet.runtime.atomic_io import atomic_write
from flaxresnet.runtime.errors import UserError


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    return path


def names_in(folder):
    return [path.name for path in folder.iterdir()]


def fail_halfway(target):
    with atomic_write(target) as temporary:
        temporary.write_text("half")
        raise KeyError


def test_atomic_write_replaces_at_end(target):
    with atomic_write(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert names_in(target.parent) == ["file.txt"]
    umask = os.umask(0)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask


def test_atomic_write_failure_keeps_old(target):
    with pytest.raises(KeyError):
        fail_halfway(target)
    assert target.read_text() == "old"
    assert names_in(target.parent) == ["file.txt"]


def test_atomic_write_names_unwritable_path(tmp_path):
    path = tmp_path / "nowhere" / "file.txt"
    message = r"nowhere/file.txt cannot be written: No such file or directory"
    with pytest.raises(UserError, match=message), atomic_write(path):
        pass
