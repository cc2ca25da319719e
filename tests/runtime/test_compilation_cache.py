"""Where compiled programs are kept, and that they are not where the user does not want it."""

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
for number, uses in enumerate(%s):
    compilation_cache.use_compilation_cache(*uses)
    jax.jit(lambda x: jnp.sin(x) @ x + number)(jnp.ones(7)).block_until_ready()
    print(sum(path.is_file() for path in folder.rglob("*")), *(path.name for path in folder.iterdir()))
"""


def files_after(uses, folder, **variables):
    """How many files the user's cache folder holds after each of some uses in one process, and the folder's names."""
    environment = os.environ | {"XDG_CACHE_HOME": str(folder), "JAX_PLATFORMS": "cpu"} | variables
    command = [sys.executable, "-c", PROGRAM % uses]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    rows = [line.split() for line in done.stdout.splitlines()]
    return [int(count) for count, *_ in rows], [names for _, *names in rows]


def test_programs_are_kept_unless_not_wanted(tmp_path):
    """In the user's cache folder; it can be turned off, on, and off again after it was used."""
    counts, names = files_after([(False,), (), (False,), (True,)], tmp_path)
    assert counts[0] == 0
    assert names == [[], *[["flaxresnet"]] * 3]
    assert 0 < counts[1] == counts[2] < counts[3]
    assert any((tmp_path / "flaxresnet" / "compiled").iterdir())


def test_a_folder_that_jax_was_told_of_stays(tmp_path):
    own, users = tmp_path / "own", tmp_path / "users"
    users.mkdir()
    told = {"JAX_COMPILATION_CACHE_DIR": str(own), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    assert files_after([()], users, **told) == ([0], [[]])
    assert any(own.iterdir())


def test_training_passes_its_option_on(monkeypatch, data_folder, tmp_path):
    import flaxresnet as fr
    from flaxresnet import fitting

    class StopError(Exception):
        pass

    def stop(use):
        raise StopError(use)

    monkeypatch.setattr(fitting, "use_compilation_cache", stop)
    for use in (True, False):
        with pytest.raises(StopError, match=str(use)):
            fr.fit(fr.TrainConfig(data=data_folder, workdir=tmp_path / "run", compilation_cache=use), quiet=True)
