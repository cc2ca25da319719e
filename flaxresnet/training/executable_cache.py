"""Compiled programs kept whole between starts, so that a run that was started before traces nothing.

JAX's own cache finds a program by its text, and to write that text takes seconds of tracing. These are found by what
the text is made from: the run's options, the shapes of a batch, the versions and settings of JAX, the machine, and this
package's own sources. That holds where nothing was changed in memory, which only the caller can know, and where of a
package's version there is one.
"""

import contextlib
import functools
import hashlib
import json
import os
import pickle
import platform
import re
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

import flax
import jax
import jax.monitoring
import jaxlib
import numpy as np
import optax
from jax.experimental import serialize_executable
from jax.stages import Compiled

from flaxresnet.runs.metadata import RunMetadata
from flaxresnet.runtime.atomic_io import atomic_write

PACKAGE = Path(__file__).parents[1]
FOLDER = "flaxresnet-programs"  # in JAX's folder for compiled programs, which may hold anything else
# Options that no program depends on, or only by what is in the key besides: shapes, and the network.
CACHE_KEY_EXCLUDES = (
    "data",
    "image_size",
    "max_corrupt_fraction",
    "workdir",
    "input",
    "workers",
    "init",
    "report",
    "tensorboard",
    "profile",
    "checkpoint_steps",
    "coordinator_address",
    "process_id",
    "resume",
    "allow_config_changes",
    "compilation_cache",
)
MAX_RUNS = 12  # kept; some 4 MB each
DIGEST = hashlib.sha256().digest_size


class ExecutableCache:
    """A folder of one run's compiled programs.

    Whoever can write there can have this process run any code, as with JAX's own cache.
    """

    def __init__(self, folder: Path | None) -> None:
        """Keeps them there, or nowhere."""
        self._folder = folder

    def load(self, name: str) -> Compiled | None:
        """The program of that name, or None: it is not there, damaged, or JAX cannot load it."""
        if self._folder is None:
            return None
        try:
            with contextlib.suppress(OSError):
                os.utime(self._folder)  # so that it is not the next to go
            content = (self._folder / name).read_bytes()
            if hashlib.sha256(content[DIGEST:]).digest() != content[:DIGEST]:
                return None
            return serialize_executable.deserialize_and_load(*pickle.loads(zlib.decompress(content[DIGEST:])))
        except Exception:  # not there, or one of JAX's own errors, of many kinds; it is compiled
            return None

    def store(self, name: str, program: Compiled) -> None:
        """Writes a program for the next start, where JAX can write it and the disk takes it.

        Before it first runs: XLA (jaxlib 0.10) does not write what has a sort that has run.
        """
        if self._folder is None:
            return
        try:
            content = zlib.compress(pickle.dumps(serialize_executable.serialize(program)), level=1)
            self._folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._folder / name) as temporary:
                temporary.write_bytes(hashlib.sha256(content).digest() + content)
            _evict_lru(self._folder)
        except Exception:  # what cannot be written, or finds no room, is compiled again by the next start
            return


def state_shapes(train_step: Compiled) -> Any:
    """The pytree of shapes of the state that a training step takes, its first argument."""
    (state, *_), _ = train_step.args_info
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)


def open_executable_cache(info: RunMetadata, keep: bool, *shapes: Any) -> ExecutableCache:
    """Where the programs of a run lie that is trained with arrays of these shapes, in JAX's folder for its own.

    Kept are those of one process on CPUs, where `keep` says so and JAX keeps compiled programs at all.
    """
    cache = jax.config.values.get("jax_compilation_cache_dir")
    used = keep and cache and "://" not in cache and jax.config.values["jax_enable_compilation_cache"]
    flags = os.environ.get("XLA_FLAGS", "").strip()
    from_a_file = flags and not flags.startswith("-")  # whose content nobody has looked at
    if not used or from_a_file or not SOURCES or jax.process_count() > 1 or jax.default_backend() != "cpu":
        return ExecutableCache(None)
    _listen()
    return ExecutableCache(Path(cache) / FOLDER / cache_key(info, *shapes))


_hits = threading.local()  # programs that JAX has taken from its cache, in each thread


@functools.cache
def _listen() -> None:
    def count(event: str, **_: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            _hits.count = jax_cache_hits() + 1

    jax.monitoring.register_event_listener(count)


def jax_cache_hits() -> int:
    """Programs that JAX has taken from its own cache in this thread, since programs are kept.

    Those cannot be: XLA (jaxlib 0.10) writes a program that it has loaded without the program's functions.
    """
    return getattr(_hits, "count", 0)


def cache_key(info: RunMetadata, *shapes: Any) -> str:
    """A digest of all that a run's programs are made from."""
    described = info.to_json()
    settings = {name: value for name, value in described["config"].items() if name not in CACHE_KEY_EXCLUDES}
    made_from = {
        "config": settings,
        "network": [len(info.class_names), described["preprocessing"], bool(info.data["streamed"])],
        "steps": info.data["train_images"] // info.config.batch_size,
        "shapes": repr(jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), shapes)),
        "versions": [sys.version, *(module.__version__ for module in (jax, jaxlib, flax, optax, np))],
        "settings": {name: repr(value) for name, value in jax.config.values.items()},
        "environment": {name: value for name, value in os.environ.items() if name.startswith(("JAX_", "XLA_"))},
        "machine": [platform.machine(), os.cpu_count(), len(_allowed_cores()), _instructions(), repr(jax.devices())],
        "sources": SOURCES,
    }
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def _allowed_cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _instructions() -> str:
    """What the processor can do, as far as the system says; programs are compiled for that."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def _evict_lru(mine: Path) -> None:
    """Removes the folders beside this one that were used longest ago, and nothing else that may lie there."""
    others = [path for path in mine.parent.iterdir() if re.fullmatch("[0-9a-f]{64}", path.name) and path != mine]
    others.sort(key=lambda folder: folder.stat().st_mtime, reverse=True)
    for folder in others[MAX_RUNS - 1 :]:
        for path in folder.iterdir():
            path.unlink()  # programs, finished or, by a process that was killed, not
        folder.rmdir()


def _digest_of_sources() -> str:
    """Of this package's sources; "" where they are not to be found, such as in an archive."""
    sources, digest = sorted(PACKAGE.rglob("*.py")), hashlib.sha256()
    for path in sources:
        digest.update(f"{path.relative_to(PACKAGE)}\n".encode() + path.read_bytes())
    return digest.hexdigest() if sources else ""


SOURCES = _digest_of_sources()  # as they are when they are loaded, not when they are traced: data may take minutes
