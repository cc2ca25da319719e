"""Max pooling with a fast gradient on CPUs, on which XLA's select-and-scatter takes as long as a stage of a ResNet."""

import functools
from itertools import product

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from flaxresnet.models.sharding import is_explicit


def max_pool(x: jax.Array, window: int, stride: int, padding: int = 0) -> jax.Array:
    """Applies `nn.max_pool` with square windows.

    As in TensorFlow and PyTorch, the gradient goes to the first largest value of a window in row-major order. Unlike
    `nn.max_pool`, it supports reverse-mode differentiation (`jax.grad`, `jax.vjp`) only.

    Args:
      x: images, (batch, h, w, channels).
      window, stride: in pixels.
      padding: pixels of minus infinity on each side.

    Returns:
      (batch, h', w', channels) with h' = ⌊(h + 2 · padding - window) / stride⌋ + 1, and w' likewise.
    """
    return _native(x, window, stride, padding) if is_explicit(x) else _pool(x, window, stride, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _pool(x: jax.Array, window: int, stride: int, padding: int) -> jax.Array:
    return _native(x, window, stride, padding)


def _native(x: jax.Array, window: int, stride: int, padding: int) -> jax.Array:
    return nn.max_pool(x, window_shape=(window, window), strides=(stride, stride), padding=[(padding, padding)] * 2)


def _forward(x: jax.Array, window: int, stride: int, padding: int) -> tuple[jax.Array, jax.Array]:
    return _native(x, window, stride, padding), x


def _backward(window: int, stride: int, padding: int, x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    def native(x: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.vjp(lambda x: _native(x, window, stride, padding), x)[1](gradient)[0]

    def gather(x: jax.Array, gradient: jax.Array) -> jax.Array:
        pads = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
        padded = _gather_gradient(jnp.pad(x, pads, constant_values=-jnp.inf), gradient, window, stride)
        return padded[:, padding : padding + x.shape[1], padding : padding + x.shape[2]]

    return (lax.platform_dependent(x, gradient, cpu=gather, default=native),)


_pool.defvjp(_forward, _backward)


def _gather_gradient(x: jax.Array, gradient: jax.Array, window: int, stride: int) -> jax.Array:
    """Returns the gradient with respect to x. Each pixel sums the gradients of the windows in which it is the maximum.

    All pixels with the same row and column modulo the stride have the same position in their windows. The gradient
    therefore consists of stride² interleaved arrays, and each is a sum of a few shifted arrays.

    Args:
      x: padded images, (batch, h, w, channels).
      gradient: gradient of the pooled values, (batch, h', w', channels).
      window, stride: in pixels.
    """
    winner = _argmax_of_windows(x, window, stride)
    reach = -(-window // stride)  # maximum number of windows that contain a pixel, in each direction
    height = -(-x.shape[1] // stride)
    width = -(-x.shape[2] // stride)
    pads = [(0, 0), (reach - 1, height), (reach - 1, width), (0, 0)]
    winner = jnp.pad(winner, pads, constant_values=-1)
    gradient = jnp.pad(gradient, pads)

    def at_remainder(row: int, column: int) -> jax.Array:
        total = jnp.zeros((x.shape[0], height, width, x.shape[3]), gradient.dtype)
        for up, left in product(range(reach), repeat=2):
            i = row + up * stride  # the pixel's position in the window
            j = column + left * stride
            if i < window and j < window:
                top = reach - 1 - up
                side = reach - 1 - left
                windows = slice(None), slice(top, top + height), slice(side, side + width)
                total += jnp.where(winner[windows] == i * window + j, gradient[windows], 0)
        return total

    rows = [jnp.stack([at_remainder(row, column) for column in range(stride)], axis=3) for row in range(stride)]
    interleaved = jnp.stack(rows, axis=2)  # (batch, height, stride, width, stride, channels)
    return interleaved.reshape(x.shape[0], height * stride, width * stride, -1)[:, : x.shape[1], : x.shape[2]]


def _argmax_of_windows(x: jax.Array, window: int, stride: int) -> jax.Array:
    """Returns the row-major index of each window's first largest value: (batch, h', w', channels), int32."""
    height = (x.shape[1] - window) // stride * stride + 1
    width = (x.shape[2] - window) // stride * stride + 1
    values = [x[:, i : i + height : stride, j : j + width : stride] for i, j in product(range(window), repeat=2)]
    largest = values[0]
    winner = jnp.zeros(largest.shape, jnp.int32)
    for index, value in enumerate(values[1:], start=1):
        winner = jnp.where(value > largest, index, winner)
        largest = jnp.maximum(value, largest)
    return winner
