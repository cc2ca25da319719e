"""Random arrays drawn as one row equal those drawn directly."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxresnet.augment.rng import draw_flat

DRAWS = {
    "uniform": jax.random.uniform,
    "normal": jax.random.normal,
    "bits": partial(jax.random.bits, dtype=jnp.uint32),
}
SHAPES = [(4, 9), (3, 5, 5, 5), (2, 8, 6), (7,), (0, 3)]
ALL_CASES = [(name, shape) for name in DRAWS for shape in SHAPES]
FAST_CASES = [*(("bits", shape) for shape in SHAPES[1:]), ("uniform", (4, 9)), ("normal", (4, 9))]


@pytest.mark.parametrize(
    "cases", [FAST_CASES, pytest.param(ALL_CASES, marks=pytest.mark.campaign)], ids=["fast", "all"]
)
def test_draw_flat_equals_draw(cases):
    def draw_both(key):
        return [(draw_flat(DRAWS[name], key, shape), DRAWS[name](key, shape)) for name, shape in cases]

    for (name, shape), (flat, expected) in zip(cases, jax.jit(draw_both)(jax.random.key(3)), strict=True):
        assert flat.shape == shape, name
        np.testing.assert_array_equal(flat, expected, err_msg=f"{name} {shape}")
