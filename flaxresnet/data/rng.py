"""Random arrays that compile quickly."""

import math
from collections.abc import Callable

import jax


def draw_flat(
    draw: Callable[[jax.Array, tuple[int, ...]], jax.Array], key: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """`draw(key, shape)`, the same numbers, drawn as one row and cut.

    On CPUs XLA takes three to eight times as long to compile the generator's loop for (32, 9) or (32, 64, 64) as for a
    row, which it does not unroll. Which number lies where depends on the place in row-major order alone.
    """
    return draw(key, (math.prod(shape),)).reshape(shape)
