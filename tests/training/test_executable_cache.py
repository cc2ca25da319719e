"""Tests of the cache of compiled programs."""

import copy
import dataclasses
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import TINY_CONFIG
from jax.experimental.compilation_cache import compilation_cache
from jax.stages import Compiled

import flaxresnet as fr
from flaxresnet.runs.run_dir import RunDir
from flaxresnet.training import compiled_steps, executable_cache

BATCH = jax.ShapeDtypeStruct((8, 32, 32, 3), np.uint8)
NAMES = {"create", "train_step", "evaluate", "measure"}

pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="programs are kept on CPUs")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Returns an empty compilation cache of JAX, because programs that JAX takes from its cache are not stored."""
    folder = tmp_path_factory.mktemp("kept") / "cache"
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(folder))
    compilation_cache.reset_cache()
    jax.clear_caches()
    yield folder
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def all_compiled():
    """Returns the names of the programs that were compiled, not loaded from the cache."""
    names, real = [], compiled_steps.CompiledSteps._compiled

    def spy(self, name, program, runs_once=False):
        if not isinstance(program, Compiled):
            names.append(name)
        return real(self, name, program, runs_once)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled_steps.CompiledSteps, "_compiled", spy)
        yield names


@pytest.fixture(scope="module")
def first(data_folder, tmp_path_factory, cache, all_compiled):
    """Returns the first run with the cache. Do not train in its folder."""
    run = train(data_folder, tmp_path_factory.mktemp("first") / "run")
    assert set(all_compiled) == NAMES
    assert stored_names(cache) == [NAMES]
    return run


@pytest.fixture
def compiled(all_compiled):
    all_compiled.clear()
    return all_compiled


@pytest.fixture
def info(finished_run):
    return RunDir(finished_run).read_metadata()


def train(data_folder, workdir, enabled=True, **options):
    config = fr.TrainConfig(data=data_folder, workdir=workdir, **{"epochs": 2, **TINY_CONFIG, **options})
    return fr.fit(config, quiet=True, cache_executables=enabled)


def weights(run):
    return jax.tree.leaves(fr.Classifier.load(run.workdir).variables)


def stored_names(cache):
    return [{path.name for path in folder.iterdir()} for folder in (cache / executable_cache.FOLDER).iterdir()]


def test_second_run_compiles_nothing(data_folder, tmp_path, cache, first, compiled):
    shutil.copytree(data_folder, tmp_path / "moved")
    second = train(tmp_path / "moved", tmp_path / "second")
    assert compiled == []
    assert stored_names(cache) == [NAMES]
    for a, b in zip(weights(first), weights(second), strict=True):
        np.testing.assert_array_equal(a, b)
    assert first.history[0]["test_loss"] == second.history[0]["test_loss"]


def test_resumed_run_uses_cache(data_folder, tmp_path, first, compiled):
    run = shutil.copytree(first.workdir, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / str(first.history[-1]["step"]))
    again = train(data_folder, run)
    assert compiled == []
    for a, b in zip(weights(again), weights(first), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "damage",
    [lambda content: b"", lambda content: content[:100], lambda content: content[:-1] + bytes([content[-1] ^ 1])],
    ids=["empty", "cut", "one bit"],
)
def test_damaged_program_is_not_loaded(tmp_path, damage):
    store = executable_cache.ExecutableCache(tmp_path)
    store.store("create", jax.jit(lambda: 1).lower().compile())
    assert store.load("create")() == 1
    (tmp_path / "create").write_bytes(damage((tmp_path / "create").read_bytes()))
    assert store.load("create") is None


def test_programs_of_jax_cache_are_not_stored(data_folder, tmp_path, cache, first):
    folder = (cache / executable_cache.FOLDER).rename(tmp_path / "aside")
    train(data_folder, tmp_path / "second")
    assert not (cache / executable_cache.FOLDER).exists()
    folder.rename(cache / executable_cache.FOLDER)


def test_cache_is_off_by_default(info, tmp_path, cache, monkeypatch):
    folders = [executable_cache.open_executable_cache(info, enabled, BATCH)._folder for enabled in (True, False)]
    assert folders == [cache / executable_cache.FOLDER / executable_cache.cache_key(info, BATCH), None]
    for flags, has_folder in (("/a/file/of/flags", False), ("", True), (" --xla_a=b", True)):
        monkeypatch.setenv("XLA_FLAGS", flags)
        assert (executable_cache.open_executable_cache(info, True, BATCH)._folder is not None) == has_folder
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        assert executable_cache.open_executable_cache(info, True, BATCH)._folder is None
    finally:
        jax.config.update("jax_enable_compilation_cache", True)


def test_store_ignores_full_disk(tmp_path, monkeypatch):
    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(executable_cache.Path, "replace", full)
    store = executable_cache.ExecutableCache(tmp_path / "kept")
    store.store("create", jax.jit(lambda: 1).lower().compile())
    assert [*(tmp_path / "kept").iterdir()] == []  # and no temporary file


def test_load_reads_read_only_folder(tmp_path, monkeypatch):
    store = executable_cache.ExecutableCache(tmp_path / "kept")
    store.store("create", jax.jit(lambda: 1).lower().compile())

    def forbidden(path):
        raise PermissionError(path)

    monkeypatch.setattr(executable_cache.os, "utime", forbidden)
    assert store.load("create")() == 1


def test_store_evicts_least_recently_used(tmp_path, monkeypatch):
    monkeypatch.setattr(executable_cache, "MAX_RUNS", 3)
    folders = [tmp_path / (str(age) * 64) for age in range(5)]
    for age, folder in enumerate(folders):
        folder.mkdir()
        (folder / "create").write_bytes(b"")
        (folder / "train_step.1234").write_bytes(b"")  # of a killed process
        os.utime(folder, (1000 - age, 1000 - age))
    (tmp_path / "my run" / "checkpoints").mkdir(parents=True)
    executable_cache._evict_lru(folders[4])
    assert {path.name for path in tmp_path.iterdir()} == {"my run", *(folders[age].name for age in (0, 1, 4))}


@pytest.mark.parametrize("field", dataclasses.fields(fr.TrainConfig), ids=lambda field: field.name)
def test_key_depends_on_option(info, field):
    other = copy.copy(info.config)
    value = getattr(other, field.name)
    object.__setattr__(other, field.name, value + 1 if isinstance(value, int | float) else "another value")
    changed = dataclasses.replace(info, config=other)
    same = executable_cache.cache_key(changed, BATCH) == executable_cache.cache_key(info, BATCH)
    harmless = {
        *(
            "data",
            "verbose",
            "image_size",
            "resize",
            "max_corrupt_fraction",
            "workdir",
            "input",
            "workers",
            "init",
            "report",
            "tensorboard",
            "profile",
        ),
        *(
            "checkpoint_steps",
            "coordinator_address",
            "process_id",
            "resume",
            "allow_config_changes",
            "compilation_cache",
        ),
    }
    assert same == (field.name in harmless)


@pytest.mark.parametrize(
    "change",
    [
        lambda info: {"class_names": (*info.class_names, "another")},
        lambda info: {"preprocessing": dataclasses.replace(info.preprocessing, height=48)},
        lambda info: {"data": info.data | {"streamed": not info.data["streamed"]}},
        lambda info: {"data": info.data | {"train_images": info.data["train_images"] + info.config.batch_size}},
    ],
    ids=["classes", "preprocessing", "streamed", "steps an epoch"],
)
def test_key_depends_on_metadata(info, change):
    assert executable_cache.cache_key(dataclasses.replace(info, **change(info)), BATCH) != executable_cache.cache_key(
        info, BATCH
    )


def test_key_is_equal_across_processes(info, finished_run):
    plain = (str, int, float, bool, type(None))
    settings = {name: value for name, value in jax.config.values.items() if type(value) in plain}
    program = f"""
import jax, numpy as np
for name, value in {settings!r}.items():
    if jax.config.values[name] != value:
        jax.config.update(name, value)
from flaxresnet.training import executable_cache
from flaxresnet.runs.run_dir import RunDir
batch = jax.ShapeDtypeStruct((8, 32, 32, 3), np.uint8)
print(executable_cache.cache_key(RunDir({str(finished_run)!r}).read_metadata(), batch))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == executable_cache.cache_key(info, BATCH)


def test_key_depends_on_environment(info, tmp_path, monkeypatch):
    batch = jax.ShapeDtypeStruct((8, 32, 32, 3), np.uint8)
    keys = [executable_cache.cache_key(info, batch)]
    assert executable_cache.cache_key(info, batch) == keys[0]
    keys.append(executable_cache.cache_key(info, jax.ShapeDtypeStruct((8, 32, 32, 3), np.float32)))
    keys.append(executable_cache.cache_key(info, jax.ShapeDtypeStruct((9, 32, 32, 3), np.uint8)))
    with jax.default_matmul_precision("highest"):
        keys.append(executable_cache.cache_key(info, batch))
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    keys.append(executable_cache.cache_key(info, batch))
    monkeypatch.setattr(executable_cache, "_cpu_features", lambda: "of another processor")
    keys.append(executable_cache.cache_key(info, batch))
    shutil.copytree(executable_cache.PACKAGE, tmp_path / "flaxresnet")
    monkeypatch.setattr(executable_cache, "PACKAGE", tmp_path / "flaxresnet")
    assert executable_cache._digest_sources() == executable_cache.SOURCES
    (tmp_path / "flaxresnet" / "models" / "resnet.py").write_text("")
    monkeypatch.setattr(executable_cache, "SOURCES", executable_cache._digest_sources())
    keys.append(executable_cache.cache_key(info, batch))
    monkeypatch.setattr(executable_cache.optax, "__version__", "0")
    keys.append(executable_cache.cache_key(info, batch))
    assert len(set(keys)) == len(keys)
