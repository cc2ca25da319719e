"""The C library's memory allocator: told to keep what a step frees, as the next step asks for the same again."""

import ctypes
import sys

# Parameters of glibc's mallopt(3), and what they are set to.
KEEP = {
    "M_MMAP_MAX": (-4, 0),  # large blocks come from the heap, not from pages of their own that are unmapped when freed
    "M_TRIM_THRESHOLD": (-1, 2**31 - 1),  # bytes; the end of the heap is not given back
}


def disable_malloc_trim() -> bool:
    """Lets this process reuse freed memory instead of returning it to the system; True where that could be set.

    XLA on CPU allocates a step's scratch memory, hundreds of MiB, anew for every step. By default glibc maps it in and
    out each time, and the system clears every page: a sixth of a training step on two cores.

    Only the main thread's heap takes blocks that large, so JAX is told to compute on a CPU in the thread that calls it,
    which it does if it has not begun to compute. One heap for all threads (`M_ARENA_MAX`) would keep the scratch memory
    as well, but they would wait for each other there, some 2,000 times in a step.

    Elsewhere than on Linux with glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not all(mallopt(parameter, value) == 1 for parameter, value in KEEP.values()):
        return False
    import jax  # here, for `--help` does without it

    jax.config.update("jax_cpu_enable_async_dispatch", False)
    return True


def malloc_trim() -> bool:
    """Gives the system what this process has freed; True where anything was given back, False also where it cannot be.

    Compiling a training step takes XLA a gigabyte that no step needs again.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    return trim is not None and trim(0) == 1
