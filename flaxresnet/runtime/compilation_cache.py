"""JAX's persistent compilation cache, in the user's cache folder."""

import contextlib
import os

import jax
from jax.experimental.compilation_cache import compilation_cache

from flaxresnet.runtime.cache_dir import cache_dir

MIN_COMPILE_SECS = 0.5  # seconds; a program that compiles faster is not worth a file


def use_compilation_cache(enabled: bool = True) -> None:
    """Turns JAX's persistent compilation cache on or off.

    Keeps a folder that JAX is already configured with. Otherwise the cache is in the user's cache folder, if it is
    writable.
    """
    if jax.config.values["jax_enable_compilation_cache"] != enabled:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()  # JAX reads the setting only once in a process
    if not enabled or jax.config.values.get("jax_compilation_cache_dir"):
        return
    with contextlib.suppress(OSError):  # without a writable home folder, each start compiles again
        folder = cache_dir("compiled")
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            jax.config.update("jax_compilation_cache_dir", str(folder))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECS)
