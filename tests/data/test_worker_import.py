"""Worker processes that import the main script again, which trains without a main guard or cannot be imported."""

import multiprocessing
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

import flaxresnet as fr
from flaxresnet.data import worker_import
from flaxresnet.data.worker_import import EXIT_NO_GUARD, next_or_import_error, require_script_file

# Streams images as `fit` does, without its compilation.
UNGUARDED = """
import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

import flaxresnet as fr
from flaxresnet.data.streaming import StreamSource
from flaxresnet.data.worker_import import exit_if_imported_by_worker

exit_if_imported_by_worker()
data = fr.Dataset(np.zeros((4, 32, 32, 3), np.uint8), np.arange(4) % 2, ("cat", "dog"))
source = StreamSource(data, 2, SingleDeviceSharding(jax.devices()[0]), workers=1)
try:
    next(source.train(0, 0))
except fr.UserError as error:
    print(error)
"""


def fail_with(status):
    raise RuntimeError(f"Worker process was terminated unexpectedly with exit code {status}. Search the logs above.")
    yield


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Makes `tmp_path / "mine.py"` the main script."""
    path = tmp_path / "mine.py"
    path.touch()
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__file__=str(path), __spec__=None))
    return path


@pytest.mark.parametrize("status", [EXIT_NO_GUARD, 1])
def test_missing_guard_is_named(script, status):
    with pytest.raises(fr.UserError, match=r"mine\.py .*put the lines that train below `if __name__ == ") as caught:
        next_or_import_error(fail_with(status))
    assert "\n" not in str(caught.value)
    assert "workers=0" in str(caught.value)


def test_other_errors_of_workers_pass(script, monkeypatch):
    for status in (-9, 11):
        with pytest.raises(RuntimeError, match="terminated unexpectedly"):
            next_or_import_error(fail_with(status))
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace())  # a notebook
    with pytest.raises(RuntimeError, match="terminated unexpectedly"):
        next_or_import_error(fail_with(1))
    assert next_or_import_error(iter([3])) == 3
    assert next_or_import_error(iter([])) is None


def test_fit_ends_importing_worker(monkeypatch, tmp_path):
    """Before it reads or locks anything, because the main process uses the same workdir."""
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(SystemExit) as stop:
        fr.fit(fr.TrainConfig(data="nowhere", workdir=tmp_path / "run"))
    assert stop.value.code == EXIT_NO_GUARD
    assert not (tmp_path / "run").exists()


def test_script_from_standard_input_is_refused(script, monkeypatch):
    require_script_file()
    script.unlink()
    with pytest.raises(fr.UserError, match=r"worker processes cannot import the script .*; store it as a file"):
        require_script_file()
    monkeypatch.setattr(worker_import, "_script", lambda: None)
    require_script_file()


@pytest.mark.parity
def test_unguarded_script_gets_one_sentence(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(UNGUARDED)
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, env=os.environ, check=True)
    assert done.stdout.count("\n") == 1
    assert done.stdout.startswith(f"{path} trains without a main guard, so its worker processes would train, too; put")
    assert "Traceback" not in done.stderr
