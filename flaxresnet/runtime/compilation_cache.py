"""JAX's persistent compilation cache, in the user's cache folder."""

import contextlib
import os

import jax
from jax.experimental.compilation_cache import compilation_cache

from flaxresnet.runtime.cache_dir import cache_dir

MIN_COMPILE_SECS = 0.5  # seconds; programs that compile faster are not worth a file


def use_compilation_cache(use: bool = True) -> None:
    """Keeps compiled programs between starts or not: in the folder that JAX was told of, else in the user's own."""
    if jax.config.values["jax_enable_compilation_cache"] != use:
        jax.config.update("jax_enable_compilation_cache", use)
        compilation_cache.reset_cache()  # JAX asks once in a process whether there is one
    if not use or jax.config.values.get("jax_compilation_cache_dir"):
        return
    with contextlib.suppress(OSError):  # no home, or none that may be written: compile each time
        cache = cache_dir("compiled")
        cache.mkdir(parents=True, exist_ok=True)
        if os.access(cache, os.W_OK):
            jax.config.update("jax_compilation_cache_dir", str(cache))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECS)
