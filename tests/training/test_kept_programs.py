"""Programs that are kept whole: what a second start takes from the first, and what makes it compile again."""

import os
import shutil

import jax
import numpy as np
import pytest
from conftest import SMALL
from jax.experimental.compilation_cache import compilation_cache
from jax.stages import Compiled

import flaxresnet as fr
from flaxresnet.training import kept_programs, programs
from flaxresnet.training.run_folder import RunFolder

NAMES = {"shapes", "create", "train_step", "evaluate", "measure"}

pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="programs are kept on CPUs")


@pytest.fixture
def cache(tmp_path):
    """A compilation cache of its own, empty: what JAX takes from one is not kept."""
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "cache"))
    compilation_cache.reset_cache()
    jax.clear_caches()
    yield tmp_path / "cache"
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


@pytest.fixture
def compiled(monkeypatch):
    """Names of the programs that were compiled and not taken from an earlier start."""
    names, real = [], programs.Programs._compiled

    def spy(self, name, program, once=False):
        if not isinstance(program, Compiled):
            names.append(name)
        return real(self, name, program, once)

    monkeypatch.setattr(programs.Programs, "_compiled", spy)
    return names


def train(data_folder, workdir, keep=True, **options):
    config = fr.TrainConfig(data=data_folder, workdir=workdir, **{"epochs": 1, **SMALL, **options})
    return fr.fit(config, verbose=False, keep_programs=keep)


def weights(run):
    return jax.tree.leaves(fr.Classifier.load(run.workdir).variables)


def kept(cache):
    return [{path.name for path in folder.iterdir()} for folder in (cache / "runs").iterdir()]


def test_a_second_start_compiles_nothing_and_trains_the_same(data_folder, tmp_path, cache, compiled):
    first = train(data_folder, tmp_path / "first")
    assert set(compiled) == NAMES - {"shapes"}
    assert kept(cache) == [NAMES]
    compiled.clear()
    shutil.copytree(data_folder, tmp_path / "moved")
    second = train(tmp_path / "moved", tmp_path / "second")
    assert compiled == []
    assert kept(cache) == [NAMES]
    for mine, theirs in zip(weights(first), weights(second), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert first.history[0]["test_loss"] == second.history[0]["test_loss"]


def test_other_options_other_programs(data_folder, tmp_path, cache, compiled):
    train(data_folder, tmp_path / "first")
    compiled.clear()
    train(data_folder, tmp_path / "second", seed=1)
    assert "create" in compiled
    assert len(kept(cache)) == 2


def test_a_run_goes_on_with_what_was_kept(data_folder, tmp_path, cache, compiled):
    whole = train(data_folder, tmp_path / "whole", epochs=2)
    run = train(data_folder, tmp_path / "run", epochs=2)
    shutil.rmtree(run.workdir / "checkpoints" / str(run.history[-1]["step"]))
    compiled.clear()
    again = train(data_folder, tmp_path / "run", epochs=2)
    assert compiled == []
    for mine, theirs in zip(weights(again), weights(whole), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    "damage",
    [lambda content: b"", lambda content: content[:100], lambda content: content[:-1] + bytes([content[-1] ^ 1])],
    ids=["empty", "cut", "one bit"],
)
def test_what_is_damaged_is_compiled_again(data_folder, tmp_path, cache, compiled, damage):
    first = train(data_folder, tmp_path / "first")
    for path in cache.glob("runs/*/*"):
        path.write_bytes(damage(path.read_bytes()))
    compiled.clear()
    second = train(data_folder, tmp_path / "second")
    assert set(compiled) == NAMES - {"shapes"}
    assert first.history[0]["test_loss"] == second.history[0]["test_loss"]


def test_what_jax_took_from_its_own_cache_is_not_kept(data_folder, tmp_path, cache, compiled):
    train(data_folder, tmp_path / "first")
    shutil.rmtree(cache / "runs")
    train(data_folder, tmp_path / "second")
    assert kept(cache) == [{"shapes"}]


@pytest.mark.parametrize("more", [{"keep": False}, {"compilation_cache": False}])
def test_nothing_is_kept_unless_that_was_asked_for(data_folder, tmp_path, cache, more):
    try:
        train(data_folder, tmp_path / "run", **more)
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert not (cache / "runs").exists()


def test_a_disk_that_takes_nothing_does_not_stop_training(data_folder, tmp_path, cache, monkeypatch):
    def full(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept_programs.Path, "write_bytes", full)
    train(data_folder, tmp_path / "run")
    assert [*cache.glob("runs/*/*")] == []


def test_the_oldest_are_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_programs, "MOST_RUNS", 3)
    for age in range(5):
        (tmp_path / str(age) / "x").mkdir(parents=True)
        os.utime(tmp_path / str(age), (1000 - age, 1000 - age))
    kept_programs._forget_oldest(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1"}  # and the one that is to come


@pytest.fixture
def info(finished_run):
    return RunFolder(finished_run).read_info()


def test_the_key_follows_all_that_programs_are_made_from(info, tmp_path, monkeypatch):
    batch = jax.ShapeDtypeStruct((8, 32, 32, 3), np.uint8)
    keys = [kept_programs.key_of(info, batch)]
    assert kept_programs.key_of(info, batch) == keys[0]
    keys.append(kept_programs.key_of(info, jax.ShapeDtypeStruct((8, 32, 32, 3), np.float32)))
    keys.append(kept_programs.key_of(info, jax.ShapeDtypeStruct((9, 32, 32, 3), np.uint8)))
    with jax.default_matmul_precision("highest"):
        keys.append(kept_programs.key_of(info, batch))
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    keys.append(kept_programs.key_of(info, batch))
    monkeypatch.setattr(kept_programs, "_instructions", lambda: "of another processor")
    keys.append(kept_programs.key_of(info, batch))
    shutil.copytree(kept_programs.PACKAGE, tmp_path / "flaxresnet")
    (tmp_path / "flaxresnet" / "models" / "resnet.py").write_text("")
    monkeypatch.setattr(kept_programs, "PACKAGE", tmp_path / "flaxresnet")
    keys.append(kept_programs.key_of(info, batch))
    assert len(set(keys)) == len(keys)
