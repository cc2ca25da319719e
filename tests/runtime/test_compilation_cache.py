"""JAX's compilation cache: its folder, and turning it on and off."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os
from pathlib import Path

import jax, jax.numpy as jnp
from flaxresnet.runtime import compilation_cache

compilation_cache.MIN_COMPILE_SECS = 0.0
folder = Path(os.environ["XDG_CACHE_HOME"])
for number, arguments in enumerate(%s):
    compilation_cache.use_compilation_cache(*arguments)
    jax.jit(lambda x: jnp.sin(x) @ x + number)(jnp.ones(7)).block_until_ready()
    print(sum(path.is_file() for path in folder.rglob("*")), *(path.name for path in folder.iterdir()))
"""


def cache_content(settings, folder, **variables):
    """Returns the number of files and the names in the user's cache folder after each setting in one process."""
    environment = os.environ | {"XDG_CACHE_HOME": str(folder), "JAX_PLATFORMS": "cpu"} | variables
    command = [sys.executable, "-c", PROGRAM % settings]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    rows = [line.split() for line in done.stdout.splitlines()]
    return [int(count) for count, *_ in rows], [names for _, *names in rows]


def test_cache_turns_on_and_off(tmp_path):
    counts, names = cache_content([(False,), (), (False,), (True,)], tmp_path)
    assert counts[0] == 0
    assert names == [[], *[["flaxresnet"]] * 3]
    assert 0 < counts[1] == counts[2] < counts[3]
    assert any((tmp_path / "flaxresnet" / "compiled").iterdir())


def test_configured_folder_stays(tmp_path):
    configured = tmp_path / "configured"
    users = tmp_path / "users"
    users.mkdir()
    variables = {"JAX_COMPILATION_CACHE_DIR": str(configured), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    assert cache_content([()], users, **variables) == ([0], [[]])
    assert any(configured.iterdir())


def test_fit_passes_cache_option(monkeypatch, data_folder, tmp_path):
    import flaxresnet as fr
    from flaxresnet import fitting

    class StopError(Exception):
        pass

    def stop(enabled):
        raise StopError(enabled)

    monkeypatch.setattr(fitting, "use_compilation_cache", stop)
    for enabled in (True, False):
        with pytest.raises(StopError, match=str(enabled)):
            fr.fit(fr.TrainConfig(data=data_folder, workdir=tmp_path / "run", compilation_cache=enabled), quiet=True)
