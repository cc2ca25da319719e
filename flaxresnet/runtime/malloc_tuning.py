"""Settings of glibc's memory allocator that let a training step reuse the memory of the step before."""

import ctypes
import sys
from typing import Any

# Parameters of glibc's mallopt(3): name → (number, value).
MALLOPT = {
    "M_MMAP_MAX": (-4, 0),  # allocate large blocks on the heap instead of in mappings that are unmapped when freed
    "M_TRIM_THRESHOLD": (-1, 2**31 - 1),  # bytes; do not return the end of the heap to the system
}


def disable_malloc_trim() -> bool:
    """Makes this process reuse freed memory instead of returning it to the system.

    XLA on CPU allocates a step's scratch memory, hundreds of MiB, again in every step. By default, glibc maps and
    unmaps that memory each time, and the system clears every page, which takes a sixth of a training step on two cores.

    Only the main thread's heap can hold such large blocks. The function therefore also makes JAX compute on CPUs in the
    calling thread, which works only before JAX's first computation. One heap for all threads (`M_ARENA_MAX`) would
    reuse the memory as well, but the threads would wait for each other about 2,000 times in a step.

    Returns:
      True if the allocator accepted the settings; False on systems other than Linux with glibc.
    """
    mallopt = _libc_function("mallopt")
    if mallopt is None or not all(mallopt(number, value) == 1 for number, value in MALLOPT.values()):
        return False
    import jax  # not at the top, because `--help` works without JAX

    jax.config.update("jax_cpu_enable_async_dispatch", False)
    return True


def malloc_trim() -> bool:
    """Returns freed memory to the system. Compiling a training step leaves about 1 GB that no step needs again.

    Returns:
      True if the system got memory back; False also on systems other than Linux with glibc.
    """
    trim = _libc_function("malloc_trim")
    return trim is not None and trim(0) == 1


def _libc_function(name: str) -> Any:
    """Returns a function of the C library, or None on systems other than Linux or if the library lacks it."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), name, None)
