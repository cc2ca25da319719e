"""Whether JAX computes on what it was told to."""

import os
import sys
from functools import cache

import jax


@cache
def warn_of_fallback() -> None:
    """Warns on standard error, once, where JAX_PLATFORMS names a device first that JAX passes over, as it does GPUs.

    It looks for devices, so that processes that compute together have to be joined before.
    """
    first, _, others = (asked := os.environ.get("JAX_PLATFORMS", "")).partition(",")
    if not others:
        return  # of one alone JAX itself says that it is not there
    used = jax.devices()[0].device_kind
    try:
        jax.devices(first.strip())
    except RuntimeError:
        passed_over = f"JAX_PLATFORMS={asked} asks for {first} first, which JAX cannot use here"
        print(f"warning: {passed_over}; this computes on {used}", file=sys.stderr, flush=True)
