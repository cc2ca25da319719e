"""Sharding helpers for layers with a custom gradient: `jax.shard_map` types and explicit mesh axes."""

from typing import Any

import jax
from jax import lax
from jax.sharding import AxisType


def psum_to_match(primal: jax.Array, gradient: jax.Array) -> jax.Array:
    """Returns a gradient summed over the axes of `jax.shard_map` along which it varies and its primal does not.

    JAX's own operations do the same: if all devices share a kernel, its gradient is the sum over the devices.
    """
    axes = _varying_axes(gradient) - _varying_axes(primal)
    return lax.psum(gradient, tuple(axes)) if axes else gradient


def is_explicit(x: jax.Array) -> bool:
    """Returns whether the array's mesh has explicit axes, with which some operations need an output sharding."""
    return AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types


def _varying_axes(x: jax.Array) -> frozenset[str]:
    aval: Any = jax.typeof(x)
    return aval.mat.varying if hasattr(aval, "mat") else aval.vma  # `vma` until JAX 0.9
