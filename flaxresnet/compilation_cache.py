"""JAX's persistent compilation cache, in the user's cache folder."""

import os
from pathlib import Path

import jax

SHORTEST = 0.5  # seconds; programs that compile faster are not worth a file


def use_compilation_cache() -> None:
    """Keeps compiled programs between starts, unless JAX has been told of a cache of its own."""
    if not jax.config.values.get("jax_compilation_cache_dir"):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "flaxresnet" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST)
