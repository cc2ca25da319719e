"""What layers with gradients of their own owe to a mesh of devices: `jax.shard_map`'s types, and explicit axes."""

from typing import Any

import jax
from jax import lax
from jax.sharding import AxisType


def psum_to_match(primal: jax.Array, gradient: jax.Array) -> jax.Array:
    """A gradient summed over the mesh axes of `jax.shard_map` along which it differs and its value does not.

    JAX does that for its own operations: a kernel that all devices share has one gradient, the sum of theirs.
    """
    axes = _differs_along(gradient) - _differs_along(primal)
    return lax.psum(gradient, tuple(axes)) if axes else gradient


def is_explicit(x: jax.Array) -> bool:
    """Whether the types of arrays say how this one is divided, so that every operation on it has to say so as well."""
    return AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types


def _differs_along(x: jax.Array) -> frozenset[str]:
    kind: Any = jax.typeof(x)
    return kind.mat.varying if hasattr(kind, "mat") else kind.vma  # the name until JAX 0.9
