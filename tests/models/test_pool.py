"""Max pooling against NumPy and XLA's own, values and gradient, ties included."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from flaxresnet.models.pool import max_pool

WINDOWS = [(3, 2, 0), (2, 2, 0), (3, 1, 0), (3, 3, 0), (2, 3, 0), (3, 2, 1), (3, 1, 1)]  # window, stride, padding
SHAPES = [(2, 8, 8, 3), (1, 7, 10, 2), (3, 3, 3, 1), (1, 16, 5, 2)]


def by_numpy(x, window, stride, padding, gradient):
    """Largest values, and the gradient that goes to the first of them in reading order, a window at a time."""
    sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    around = np.pad(x, sides, constant_values=-np.inf)
    by_x = np.zeros(around.shape, np.float32)
    values = np.zeros(gradient.shape, np.float32)
    for n, i, j, c in np.ndindex(gradient.shape):
        places = np.s_[n, i * stride : i * stride + window, j * stride : j * stride + window, c]
        values[n, i, j, c] = around[places].max()
        row, column = divmod(int(around[places].argmax()), window)
        by_x[n, i * stride + row, j * stride + column, c] += gradient[n, i, j, c]
    return values, by_x[:, padding : padding + x.shape[1], padding : padding + x.shape[2]]


def drawn(shape, window, stride, padding):
    """Images, and whole numbers as the gradient by their pooled values."""
    rng = np.random.default_rng(0)
    # Few values, as after a ReLU, so that windows have several largest ones.
    x = np.maximum(rng.integers(-3, 4, shape), 0).astype(np.float32)
    height, width = ((side + 2 * padding - window) // stride + 1 for side in shape[1:3])
    pooled = (shape[0], height, width, shape[3])
    return x, rng.permutation(np.prod(pooled)).reshape(pooled).astype(np.float32)


def test_numpys_pooling_is_xlas():
    case = (SHAPES[1], *WINDOWS[5])
    x, gradient = drawn(*case)
    expected, pull = jax.vjp(lambda x: nn.max_pool(x, (3, 3), (2, 2), [(1, 1)] * 2), x)
    values, by_x = by_numpy(x, *case[1:], gradient)
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(by_x, pull(gradient)[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradient_are_numpys(shape):
    arrays = [drawn(shape, *window) for window in WINDOWS]

    @jax.jit  # one program for all windows
    def by_ours(arrays):
        results = []
        for (x, gradient), window in zip(arrays, WINDOWS, strict=True):
            values, pull = jax.vjp(lambda x, window=window: max_pool(x, *window), x)
            results.append((values, *pull(gradient)))
        return results

    for window, (x, gradient), found in zip(WINDOWS, arrays, by_ours(arrays), strict=True):
        for mine, right in zip(found, by_numpy(x, *window, gradient), strict=True):
            np.testing.assert_array_equal(mine, right, err_msg=str(window))


def test_the_gradient_is_xlas_own_elsewhere_than_on_cpu():
    traced = jax.jit(jax.grad(lambda x: max_pool(x, 3, 2).sum())).trace(np.zeros((1, 8, 8, 2), np.float32))
    assert "select_and_scatter" not in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "select_and_scatter" in traced.lower(lowering_platforms=("cuda",)).as_text()
