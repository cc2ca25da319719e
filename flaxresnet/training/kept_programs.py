"""Compiled programs kept whole between starts, so that a run that was started before traces nothing.

JAX's own cache finds a program by its text, and to write that text takes seconds of tracing. These are found by what
the text is made from: the run's options, the shapes of a batch, the versions and settings of JAX, the machine, and this
package's own sources. That holds where nothing was changed in memory, which only the caller can know.
"""

import contextlib
import hashlib
import json
import os
import pickle
import platform
import shutil
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import flax
import jax
import jax.monitoring
import jaxlib
import numpy as np
import optax
from jax.experimental import serialize_executable
from jax.stages import Compiled

from flaxresnet.training.run_folder import RunInfo

T = TypeVar("T")

PACKAGE = Path(__file__).parents[1]
# Options that no program depends on.
NOT_COMPILED = (
    "data",
    "workdir",
    "workers",
    "process_id",
    "coordinator_address",
    "resume",
    "resume_changed",
    "report",
    "tensorboard",
    "profile",
)
MOST_RUNS = 12  # kept; some 4 MB each
DIGEST = hashlib.sha256().digest_size


class KeptPrograms:
    """A folder of one run's compiled programs, and of the shapes they were compiled for."""

    def __init__(self, folder: Path | None) -> None:
        """Keeps them there, or nowhere."""
        self._folder = folder

    def shapes(self, make: Callable[[], T]) -> T:
        """The pytree of shapes that `make()` returns, or did when it was kept."""
        found = self._read("shapes")
        if found is None:
            found = make()
            self._write("shapes", found)
        return found

    def load(self, name: str) -> Compiled | None:
        """The program of that name, or None: it is not there, damaged, or JAX cannot load it."""
        kept = self._read(name)
        if kept is None:
            return None
        try:
            return serialize_executable.deserialize_and_load(*kept)
        except Exception:  # JAX's own errors, of many kinds; what cannot be loaded is compiled
            return None

    def keep(self, name: str, program: Compiled) -> None:
        """Writes a program for the next start, where JAX can write it and the disk takes it.

        Before it first runs: XLA (jaxlib 0.10) does not write what has a sort that has run.
        """
        if self._folder is None:
            return
        # JAX raises these where a program, or the trees that it takes, cannot be written.
        with contextlib.suppress(NotImplementedError, TypeError, ValueError, jax.errors.JaxRuntimeError):
            self._write(name, serialize_executable.serialize(program))

    def _read(self, name: str) -> Any:
        if self._folder is None:
            return None
        try:
            content = (self._folder / name).read_bytes()
            os.utime(self._folder)  # so that it is not the next to go
        except OSError:  # not there, or not to be read: made again
            return None
        whole = hashlib.sha256(content[DIGEST:]).digest() == content[:DIGEST]
        return pickle.loads(zlib.decompress(content[DIGEST:])) if whole else None

    def _write(self, name: str, value: Any) -> None:
        if self._folder is None:
            return
        content = zlib.compress(pickle.dumps(value), level=1)
        unfinished = self._folder / f"{name}.{os.getpid()}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            unfinished.write_bytes(hashlib.sha256(content).digest() + content)
            unfinished.replace(self._folder / name)
        except OSError:  # a full disk, a folder that is not ours: the next start compiles again
            with contextlib.suppress(OSError):
                unfinished.unlink()


def kept_programs(info: RunInfo, keep: bool, *shapes: Any) -> KeptPrograms:
    """Where the programs of a run lie that is trained with arrays of these shapes, in JAX's folder for its own.

    Kept are those of one process on CPUs, where `keep` says so and JAX keeps compiled programs at all.
    """
    if not keep:
        return KeptPrograms(None)
    cache = jax.config.values.get("jax_compilation_cache_dir")
    used = cache and "://" not in cache and jax.config.values["jax_enable_compilation_cache"]
    if not used or jax.process_count() > 1 or jax.default_backend() != "cpu":
        return KeptPrograms(None)
    runs = Path(cache) / "runs"
    _forget_oldest(runs)
    return KeptPrograms(runs / key_of(info, *shapes))


def compiled_here(compile_it: Callable[[], Compiled]) -> tuple[Compiled, bool]:
    """A program, and whether it was compiled: XLA writes one that JAX took from its cache without its functions."""
    before = _taken()
    program = compile_it()
    return program, _taken() == before


_cache = threading.local()


def _count(event: str, **_: Any) -> None:
    if event == "/jax/compilation_cache/cache_hits":
        _cache.hits = _taken() + 1


def _taken() -> int:
    """Programs that JAX has taken from its cache in this thread."""
    return getattr(_cache, "hits", 0)


jax.monitoring.register_event_listener(_count)


def key_of(info: RunInfo, *shapes: Any) -> str:
    """A digest of all that a run's programs are made from."""
    described = info.to_json()
    settings = {name: value for name, value in described["config"].items() if name not in NOT_COMPILED}
    made_from = {
        "config": settings,
        "network": [len(info.class_names), described["preprocessing"], bool(info.data["streamed"])],
        "steps": info.data["train_images"] // info.config.batch_size,
        "shapes": repr(jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), shapes)),
        "versions": [sys.version, *(module.__version__ for module in (jax, jaxlib, flax, optax, np))],
        "settings": {name: repr(value) for name, value in jax.config.values.items()},
        "environment": {name: value for name, value in os.environ.items() if name.startswith(("JAX_", "XLA_"))},
        "machine": [platform.machine(), os.cpu_count(), len(_allowed_cores()), _instructions(), repr(jax.devices())],
        "sources": _sources(),
    }
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def _sources() -> str:
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(PACKAGE)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _allowed_cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _instructions() -> str:
    """What the processor can do, as far as the system says; programs are compiled for that."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def _forget_oldest(runs: Path) -> None:
    with contextlib.suppress(OSError):
        by_age = sorted(runs.iterdir(), key=lambda folder: folder.stat().st_mtime, reverse=True)
        for folder in by_age[MOST_RUNS - 1 :]:
            shutil.rmtree(folder, ignore_errors=True)
