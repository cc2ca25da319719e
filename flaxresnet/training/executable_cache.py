"""Keeps compiled programs between runs, so that a repeated run traces and compiles nothing.

JAX's own compilation cache looks a program up by its text, and producing the text takes seconds of tracing. The key of
this cache is everything that the text depends on: the run's options, the shapes of a batch, the versions and settings
of JAX, the machine, and the sources of this package. It assumes that no module is patched in memory, which only the
caller can know, and that a version number identifies a package's code.
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
FOLDER = "flaxresnet-programs"  # in the folder of JAX's compilation cache
# Options that change no program, or change it only through the shapes and the network, which the key contains anyway.
CACHE_KEY_EXCLUDES = (
    "data",
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
    "checkpoint_steps",
    "coordinator_address",
    "process_id",
    "resume",
    "allow_config_changes",
    "compilation_cache",
    "verbose",
)
MAX_RUNS = 12  # runs in the cache, about 4 MB each
DIGEST_SIZE = hashlib.sha256().digest_size


class ExecutableCache:
    """A folder with the compiled programs of one run.

    Anyone who can write to the folder can make this process run arbitrary code, as with JAX's own cache.
    """

    def __init__(self, folder: Path | None) -> None:
        """Uses a folder; None caches nothing."""
        self._folder = folder

    def load(self, name: str) -> Compiled | None:
        """Returns the program, or None if it is missing or damaged, or if JAX cannot load it."""
        if self._folder is None:
            return None
        try:
            with contextlib.suppress(OSError):
                os.utime(self._folder)  # marks the folder as recently used
            content = (self._folder / name).read_bytes()
            digest = content[:DIGEST_SIZE]
            compressed = content[DIGEST_SIZE:]
            if hashlib.sha256(compressed).digest() != digest:
                return None
            return serialize_executable.deserialize_and_load(*pickle.loads(zlib.decompress(compressed)))
        except Exception:  # JAX raises errors of many types here; in each case the program is compiled
            return None

    def store(self, name: str, program: Compiled) -> None:
        """Writes a program, if JAX can serialize it and the disk has room. Call it before the program first runs.

        XLA (jaxlib 0.10) does not serialize a program with a sort that has run.
        """
        if self._folder is None:
            return
        try:
            content = zlib.compress(pickle.dumps(serialize_executable.serialize(program)), level=1)
            self._folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._folder / name) as temporary:
                temporary.write_bytes(hashlib.sha256(content).digest() + content)
            _evict_lru(self._folder)
        except Exception:  # the next run compiles the program again
            return


def state_shapes(train_step: Compiled) -> Any:
    """Returns the shapes of the state, the first argument of a training step, as a pytree."""
    (state, *_), _ = train_step.args_info
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)


def open_executable_cache(metadata: RunMetadata, enabled: bool, *shapes: Any) -> ExecutableCache:
    """Returns the cache of a run that trains with arrays of these shapes.

    It caches nothing if `enabled` is False, on accelerators, with several processes, if JAX's compilation cache is off
    or remote, if `XLA_FLAGS` names a file, or if the sources of this package are not files.
    """
    cache_dir = jax.config.values.get("jax_compilation_cache_dir")
    if not enabled or not cache_dir or "://" in cache_dir or not jax.config.values["jax_enable_compilation_cache"]:
        return ExecutableCache(None)
    flags = os.environ.get("XLA_FLAGS", "").strip()
    flags_in_file = flags and not flags.startswith("-")  # the key does not cover the content of that file
    if flags_in_file or not SOURCES or jax.process_count() > 1 or jax.default_backend() != "cpu":
        return ExecutableCache(None)
    _count_jax_cache_hits()
    return ExecutableCache(Path(cache_dir) / FOLDER / cache_key(metadata, *shapes))


_hits = threading.local()  # programs that JAX took from its own cache, by thread


@functools.cache
def _count_jax_cache_hits() -> None:
    def count(event: str, **_: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            _hits.count = jax_cache_hits() + 1

    jax.monitoring.register_event_listener(count)


def jax_cache_hits() -> int:
    """Returns how many programs JAX has taken from its own cache in this thread.

    `ExecutableCache` cannot store such a program: XLA (jaxlib 0.10) serializes it without its compiled functions.
    """
    return getattr(_hits, "count", 0)


def cache_key(metadata: RunMetadata, *shapes: Any) -> str:
    """Returns the SHA-256, in hexadecimal, of everything that the programs of a run depend on.

    `shapes` are pytrees of leaves with `shape` and `dtype`, or None.
    """
    values = metadata.to_json()
    options = {name: value for name, value in values["config"].items() if name not in CACHE_KEY_EXCLUDES}
    versions = [module.__version__ for module in (jax, jaxlib, flax, optax, np)]
    key = {
        "config": options,
        "network": [len(metadata.class_names), values["preprocessing"], bool(metadata.data["streamed"])],
        "steps": metadata.data["train_images"] // metadata.config.batch_size,
        "shapes": repr(jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), shapes)),
        "versions": [sys.version, *versions],
        "settings": {name: repr(value) for name, value in jax.config.values.items()},
        "environment": {name: value for name, value in os.environ.items() if name.startswith(("JAX_", "XLA_"))},
        "machine": [platform.machine(), os.cpu_count(), _allowed_cores(), _cpu_features(), repr(jax.devices())],
        "sources": SOURCES,
    }
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def _allowed_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0


def _cpu_features() -> str:
    """Returns the instruction sets of the processor, for which XLA compiles."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    for line in lines:
        if line.startswith(("flags", "Features")):
            return line
    return platform.processor()


def _evict_lru(current: Path) -> None:
    """Removes the least recently used runs beside `current` above `MAX_RUNS`; leaves all other files alone."""
    others = [path for path in current.parent.iterdir() if re.fullmatch("[0-9a-f]{64}", path.name) and path != current]
    others.sort(key=lambda folder: folder.stat().st_mtime, reverse=True)
    for folder in others[MAX_RUNS - 1 :]:
        for path in folder.iterdir():
            path.unlink()  # programs, and temporary files of killed processes
        folder.rmdir()


def _digest_sources() -> str:
    """Returns the SHA-256 of the package's sources, or "" if they are not files, as in a zip archive."""
    sources = sorted(PACKAGE.rglob("*.py"))
    if not sources:
        return ""
    digest = hashlib.sha256()
    for path in sources:
        digest.update(f"{path.relative_to(PACKAGE)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


SOURCES = _digest_sources()  # computed at import, because the files may change before the step is traced
