"""Max pooling against XLA's own, values and gradient, ties included."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from flaxresnet.models.pool import max_pool


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (1, 7, 10, 2), (3, 3, 3, 1), (1, 16, 5, 2)])
@pytest.mark.parametrize(
    ("window", "stride", "padding"), [(3, 2, 0), (2, 2, 0), (3, 1, 0), (3, 3, 0), (2, 3, 0), (3, 2, 1), (3, 1, 1)]
)
def test_values_and_gradient_are_xlas(shape, window, stride, padding):
    rng = np.random.default_rng(0)
    # Few values, as after a ReLU, so that windows have several largest ones.
    x = np.maximum(rng.integers(-3, 4, shape), 0).astype(np.float32)

    def pooled(pool):
        values, pull = jax.vjp(pool, x)
        return values, pull(rng.permutation(values.size).reshape(values.shape).astype(np.float32))[0]

    rng_state = rng.bit_generator.state
    expected = pooled(lambda x: nn.max_pool(x, (window, window), (stride, stride), [(padding, padding)] * 2))
    rng.bit_generator.state = rng_state
    for mine, theirs in zip(pooled(lambda x: max_pool(x, window, stride, padding)), expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_the_gradient_is_xlas_own_elsewhere_than_on_cpu():
    traced = jax.jit(jax.grad(lambda x: max_pool(x, 3, 2).sum())).trace(np.zeros((1, 8, 8, 2), np.float32))
    assert "select_and_scatter" not in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "select_and_scatter" in traced.lower(lowering_platforms=("cuda",)).as_text()
