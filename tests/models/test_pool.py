"""Tests of max pooling against NumPy and XLA: values and gradients, also of ties."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from flaxresnet.models.pool import max_pool

WINDOWS = [(3, 2, 0), (2, 2, 0), (3, 1, 0), (3, 3, 0), (2, 3, 0), (3, 2, 1), (3, 1, 1)]  # window, stride, padding
SHAPES = [(2, 8, 8, 3), (1, 7, 10, 2), (3, 3, 3, 1), (1, 16, 5, 2)]


def numpy_max_pool(x, window, stride, padding, gradient):
    """Returns the pooled values, and the gradient of the images, which the first largest value of a window gets."""
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = np.pad(x, pads, constant_values=-np.inf)
    grad_x = np.zeros(padded.shape, np.float32)
    values = np.zeros(gradient.shape, np.float32)
    for n, i, j, c in np.ndindex(gradient.shape):
        pixels = padded[n, i * stride : i * stride + window, j * stride : j * stride + window, c]
        values[n, i, j, c] = pixels.max()
        row, column = divmod(int(pixels.argmax()), window)
        grad_x[n, i * stride + row, j * stride + column, c] += gradient[n, i, j, c]
    return values, grad_x[:, padding : padding + x.shape[1], padding : padding + x.shape[2]]


def images_and_gradient(shape, window, stride, padding):
    """Returns random images, and distinct integers as the gradient of their pooled values."""
    rng = np.random.default_rng(0)
    # Few distinct values, as after a ReLU, so that windows contain ties.
    x = np.maximum(rng.integers(-3, 4, shape), 0).astype(np.float32)
    height, width = ((side + 2 * padding - window) // stride + 1 for side in shape[1:3])
    pooled = (shape[0], height, width, shape[3])
    return x, rng.permutation(np.prod(pooled)).reshape(pooled).astype(np.float32)


def test_numpy_max_pool_matches_xla():
    case = (SHAPES[1], *WINDOWS[5])
    x, gradient = images_and_gradient(*case)
    expected, pull = jax.vjp(lambda x: nn.max_pool(x, (3, 3), (2, 2), [(1, 1)] * 2), x)
    values, grad_x = numpy_max_pool(x, *case[1:], gradient)
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(grad_x, pull(gradient)[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_max_pool_matches_numpy(shape):
    arrays = [images_and_gradient(shape, *window) for window in WINDOWS]

    @jax.jit  # one program for all windows
    def pool_all(arrays):
        results = []
        for (x, gradient), window in zip(arrays, WINDOWS, strict=True):
            values, pull = jax.vjp(lambda x, window=window: max_pool(x, *window), x)
            results.append((values, *pull(gradient)))
        return results

    for window, (x, gradient), results in zip(WINDOWS, arrays, pool_all(arrays), strict=True):
        for result, expected in zip(results, numpy_max_pool(x, *window, gradient), strict=True):
            np.testing.assert_array_equal(result, expected, err_msg=str(window))


def test_max_pool_gradient_on_gpu():
    traced = jax.jit(jax.grad(lambda x: max_pool(x, 3, 2).sum())).trace(np.zeros((1, 8, 8, 2), np.float32))
    assert "select_and_scatter" not in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "select_and_scatter" in traced.lower(lowering_platforms=("cuda",)).as_text()
