"""A warning if JAX cannot use the requested device."""

import os
import sys
from functools import cache

import jax


@cache
def warn_of_fallback() -> None:
    """Warns on standard error, once, if JAX skips the first device in `JAX_PLATFORMS`, such as an unavailable GPU.

    The check initializes JAX's devices, so several processes must join before it.
    """
    platforms = os.environ.get("JAX_PLATFORMS", "")
    first, _, others = platforms.partition(",")
    if not others:
        return  # JAX itself raises an error if the only platform is unavailable
    device = jax.devices()[0].device_kind
    try:
        jax.devices(first.strip())
    except RuntimeError:
        print(
            f"warning: JAX_PLATFORMS={platforms} asks for {first} first, which JAX cannot use here; this computes on "
            f"{device}",
            file=sys.stderr,
            flush=True,
        )
