"""Where compiled programs are kept, and that they are not where the user does not want it."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import jax, jax.numpy as jnp
from flaxresnet import compilation_cache
compilation_cache.SHORTEST = 0.0
compilation_cache.use_compilation_cache(%s)
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones(7)).block_until_ready()
"""


def programs_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_cache_can_be_turned_off_after_it_was_used(tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    other = PROGRAM.replace("jnp.sin(x) @ x", "jnp.cos(x) @ x")
    subprocess.run([sys.executable, "-c", PROGRAM % "True"], env=environment, check=True)
    once = len(programs_in(tmp_path))
    assert once
    for path in programs_in(tmp_path):
        path.unlink()
    subprocess.run([sys.executable, "-c", PROGRAM % "True" + other % "False"], env=environment, check=True)
    assert len(programs_in(tmp_path)) == once


@pytest.mark.parametrize(("argument", "kept"), [("", True), ("True", True), ("False", False)])
def test_compiled_programs_are_kept_in_the_users_cache_folder(tmp_path, argument, kept):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", PROGRAM % argument], env=environment, check=True)
    folder = tmp_path / "flaxresnet" / "compiled"
    assert (folder.is_dir() and any(folder.iterdir())) == kept


def test_a_folder_that_jax_was_told_of_stays(tmp_path):
    own = tmp_path / "own"
    environment = os.environ | {
        "XDG_CACHE_HOME": str(tmp_path),
        "JAX_COMPILATION_CACHE_DIR": str(own),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    subprocess.run([sys.executable, "-c", PROGRAM % ""], env=environment, check=True)
    assert any(own.iterdir())
    assert not (tmp_path / "flaxresnet").exists()


def test_training_passes_its_option_on(monkeypatch, data_folder, tmp_path):
    import flaxresnet as fr
    from flaxresnet.training import fit

    class StopError(Exception):
        pass

    def stop(use):
        raise StopError(use)

    monkeypatch.setattr(fit, "use_compilation_cache", stop)
    for use in (True, False):
        with pytest.raises(StopError, match=str(use)):
            fr.fit(fr.TrainConfig(data=data_folder, workdir=tmp_path / "run", compilation_cache=use), verbose=False)
