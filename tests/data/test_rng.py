"""Draws made in a row: the numbers that the draw itself gives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxresnet.data.rng import draw_flat

DRAWS = {
    "uniform": jax.random.uniform,
    "normal": jax.random.normal,
    "bits": partial(jax.random.bits, dtype=jnp.uint32),
}
SHAPES = [(4, 9), (3, 5, 5, 5), (2, 8, 6), (7,), (0, 3)]
EVERY = [(name, shape) for name in DRAWS for shape in SHAPES]
SOME = [*(("bits", shape) for shape in SHAPES[1:]), ("uniform", (4, 9)), ("normal", (4, 9))]


@pytest.mark.parametrize("cases", [SOME, pytest.param(EVERY, marks=pytest.mark.campaign)], ids=["some", "every"])
def test_drawn_in_a_row_the_numbers_are_the_same(cases):
    def both(key):
        return [(draw_flat(DRAWS[name], key, shape), DRAWS[name](key, shape)) for name, shape in cases]

    for (name, shape), (drawn, expected) in zip(cases, jax.jit(both)(jax.random.key(3)), strict=True):
        assert drawn.shape == shape, name
        np.testing.assert_array_equal(drawn, expected, err_msg=f"{name} {shape}")
