"""Random blur and sensor noise for training images, on the device, keyed by one key."""

from functools import partial

import jax
import jax.numpy as jnp

from flaxresnet.augment.rng import draw_flat

# Largest values at strength 1. Each image has no blur with probability 1/2 and, independently, no noise with 1/2.
BLUR = 1.0  # standard deviation of a Gaussian, in 64ths of the side
NOISE = 0.04  # standard deviation, as a fraction of the full scale


def blur_and_noise(key: jax.Array, images: jax.Array, strength: jax.typing.ArrayLike) -> jax.Array:
    """Blurs images, with different widths vertically and horizontally, and adds noise.

    The blur stands for defocus, motion and low resolution alike. It is one matrix product per axis, so its cost does
    not depend on its width.

    Args:
      key: a PRNG key.
      images: (batch, height, width, 3), float32, in [0, 1].
      strength: multiplies the standard deviations; 0 changes nothing.

    Returns:
      Images of the same shape, in [0, 1].
    """
    amount_key, noise_key = jax.random.split(key)
    count, height, width = images.shape[:3]
    chosen, vertical, horizontal, noise = jax.random.uniform(amount_key, (4, count))
    max_blur = jnp.where(chosen < 0.5, BLUR * strength, 0) / 64
    rows = gaussian_matrices(height, max_blur * vertical * height)
    columns = gaussian_matrices(width, max_blur * horizontal * width)
    precision = jax.lax.Precision.HIGHEST
    images = jnp.einsum("nih,nhwc->niwc", rows, images, precision=precision)
    images = jnp.einsum("njw,niwc->nijc", columns, images, precision=precision)
    deviation = jnp.maximum(2 * noise - 1, 0)[:, None, None, None] * NOISE * strength
    return jnp.clip(images + deviation * uniform_noise(noise_key, images.shape), 0, 1)


def uniform_noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns uniform noise of mean 0 and standard deviation 1, (batch, height, width, 3) float32, in 256 levels.

    A pixel's three channels are bytes of one random 32-bit integer, because the draws dominate the cost.
    """
    bits = draw_flat(partial(jax.random.bits, dtype=jnp.uint32), key, shape[:3])
    levels = (bits[..., None] >> jnp.array([0, 8, 16], jnp.uint32)) & 255
    return (levels.astype(jnp.float32) - 127.5) / jnp.sqrt((256**2 - 1) / 12)


def gaussian_matrices(side: int, deviation: jax.Array) -> jax.Array:
    """Returns matrices (count, side, side) that blur an axis with a Gaussian.

    Each row sums to 1: near the edge the weights are renormalized over the pixels inside the image.

    Args:
      side: length of the axis, in pixels.
      deviation: (count,), standard deviations in pixels; 0 gives the identity.
    """
    position = jnp.arange(side)
    distance = (position[:, None] - position) / jnp.maximum(deviation, 1e-2)[:, None, None]
    weight = jnp.exp(-(distance**2) / 2)
    return weight / weight.sum(axis=2, keepdims=True)
