"""Max pooling with a gradient that is fast on CPU, where XLA's own (select-and-scatter) takes as long as a stage."""

import functools
from itertools import product

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from flaxresnet.models.sharding import is_explicit


def max_pool(x: jax.Array, window: int, stride: int, padding: int = 0) -> jax.Array:
    """`nn.max_pool` over square windows: (batch, h, w, channels) → (batch, h', w', channels).

    The gradient goes to the first largest value of a window, in reading order, as in TensorFlow and PyTorch. It can be
    differentiated in reverse alone (`jax.grad`, `jax.vjp`); `nn.max_pool` can forwards, too.

    Args:
      x: images.
      window, stride: in pixels.
      padding: pixels of minus infinity on each side.
    """
    return _native(x, window, stride, padding) if is_explicit(x) else _pooled(x, window, stride, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _pooled(x: jax.Array, window: int, stride: int, padding: int) -> jax.Array:
    return _native(x, window, stride, padding)


def _native(x: jax.Array, window: int, stride: int, padding: int) -> jax.Array:
    return nn.max_pool(x, window_shape=(window, window), strides=(stride, stride), padding=[(padding, padding)] * 2)


def _forward(x: jax.Array, window: int, stride: int, padding: int) -> tuple[jax.Array, jax.Array]:
    return _native(x, window, stride, padding), x


def _backward(window: int, stride: int, padding: int, x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    def native(x: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.vjp(lambda x: _native(x, window, stride, padding), x)[1](gradient)[0]

    def all_gather_json(x: jax.Array, gradient: jax.Array) -> jax.Array:
        sides = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
        around = _gather_gradient(jnp.pad(x, sides, constant_values=-jnp.inf), gradient, window, stride)
        return around[:, padding : padding + x.shape[1], padding : padding + x.shape[2]]

    return (lax.platform_dependent(x, gradient, cpu=all_gather_json, default=native),)


_pooled.defvjp(_forward, _backward)


def _gather_gradient(x: jax.Array, gradient: jax.Array, window: int, stride: int) -> jax.Array:
    """The gradient by x, each pixel collecting from the windows that it lies in.

    Pixels whose rows and columns leave the same remainders when divided by the stride lie in windows in the same way,
    so there are stride² cases, each a sum of a few shifted arrays.
    """
    winner = _first_largest(x, window, stride)
    reach = -(-window // stride)  # windows over a pixel, in each direction, at most
    height, width = (-(-side // stride) for side in x.shape[1:3])
    pads = [(0, 0), (reach - 1, height), (reach - 1, width), (0, 0)]
    winner = jnp.pad(winner, pads, constant_values=-1)
    gradient = jnp.pad(gradient, pads)

    def of_case(row: int, column: int) -> jax.Array:
        total = jnp.zeros((x.shape[0], height, width, x.shape[3]), gradient.dtype)
        for up, left in product(range(reach), repeat=2):
            i, j = row + up * stride, column + left * stride  # the pixel's place in the window that starts there
            if i < window and j < window:
                top, side = reach - 1 - up, reach - 1 - left
                here = slice(None), slice(top, top + height), slice(side, side + width)
                total += jnp.where(winner[here] == i * window + j, gradient[here], 0)
        return total

    rows = [jnp.stack([of_case(row, column) for column in range(stride)], axis=3) for row in range(stride)]
    whole = jnp.stack(rows, axis=2)  # (batch, height, stride, width, stride, channels)
    return whole.reshape(x.shape[0], height * stride, width * stride, -1)[:, : x.shape[1], : x.shape[2]]


def _first_largest(x: jax.Array, window: int, stride: int) -> jax.Array:
    """For each window the place of its first largest value in reading order: (batch, h', w', channels) int32."""
    height, width = ((side - window) // stride * stride + 1 for side in x.shape[1:3])
    places = [x[:, i : i + height : stride, j : j + width : stride] for i, j in product(range(window), repeat=2)]
    largest, winner = places[0], jnp.zeros(places[0].shape, jnp.int32)
    for place, value in enumerate(places[1:], start=1):
        winner = jnp.where(value > largest, place, winner)
        largest = jnp.maximum(value, largest)
    return winner
