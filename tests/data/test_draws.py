"""Draws made in a row: the numbers that the draw itself gives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxresnet.data.draws import in_a_row


@pytest.mark.parametrize("draw", [jax.random.uniform, jax.random.normal, partial(jax.random.bits, dtype=jnp.uint32)])
@pytest.mark.parametrize("shape", [(4, 9), (3, 5, 5, 5), (2, 8, 6), (7,), (0, 3)])
def test_drawn_in_a_row_the_numbers_are_the_same(draw, shape):
    key = jax.random.key(3)
    drawn = in_a_row(draw, key, shape)
    assert drawn.shape == shape
    np.testing.assert_array_equal(drawn, draw(key, shape))
