"""JAX's 64-bit mode, in which arrays without an explicit dtype have 64 bits."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import jax


@contextmanager
def x64_disabled() -> Iterator[None]:
    """Turns the 64-bit mode off within the `with` block, in all threads, and turns it on again at its end.

    The package computes in 32 bits. Its checkpoints have the same dtypes with and without `JAX_ENABLE_X64`.
    """
    if not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        yield
        return
    jax.config.update("jax_enable_x64", False)
    is_thread_local = jax.config.jax_enable_x64  # type: ignore[attr-defined]
    try:
        with jax.enable_x64(False) if is_thread_local else nullcontext():
            yield
    finally:
        jax.config.update("jax_enable_x64", not is_thread_local)
