"""Random faults of a camera for training images: out of focus, moved, few pixels, noise. On the device, by one key."""

from functools import partial

import jax
import jax.numpy as jnp

from flaxresnet.data.rng import draw_flat

# Largest values at strength 1; half of the images have none of it.
BLUR = 1.0  # deviation of a Gaussian, in 64ths of the side
NOISE = 0.04  # standard deviation, of full scale


def blur_and_noise(key: jax.Array, images: jax.Array, strength: jax.typing.ArrayLike) -> jax.Array:
    """Blurs images, down and across by different amounts, and adds noise.

    A blur that is one matrix product a side costs little whatever its width, and an image of few pixels that was
    enlarged is a blurred one.

    Args:
      key: a PRNG key.
      images: (batch, height, width, 3), float32, in [0, 1].
      strength: multiplies the deviations; 0 changes nothing.

    Returns:
      Images of the same shape, in [0, 1].
    """
    by_amount, by_noise = jax.random.split(key)
    count, height, width = images.shape[:3]
    whether, down, across, grain = jax.random.uniform(by_amount, (4, count))
    widest = jnp.where(whether < 0.5, BLUR * strength, 0) / 64
    rows, columns = gaussian_matrices(height, widest * down * height), gaussian_matrices(width, widest * across * width)
    exact = jax.lax.Precision.HIGHEST
    images = jnp.einsum("nih,nhwc->niwc", rows, images, precision=exact)
    images = jnp.einsum("njw,niwc->nijc", columns, images, precision=exact)
    deviation = jnp.maximum(2 * grain - 1, 0)[:, None, None, None] * NOISE * strength
    return jnp.clip(images + deviation * uniform_noise(by_noise, images.shape), 0, 1)


def uniform_noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Even noise of mean 0 and deviation 1, (batch, height, width, 3), in 256 levels.

    A pixel's three channels are bytes of one random word: drawing is what noise costs.
    """
    words = draw_flat(partial(jax.random.bits, dtype=jnp.uint32), key, shape[:3])
    levels = (words[..., None] >> jnp.array([0, 8, 16], jnp.uint32)) & 255
    return (levels.astype(jnp.float32) - 127.5) / jnp.sqrt((256**2 - 1) / 12)


def gaussian_matrices(side: int, deviation: jax.Array) -> jax.Array:
    """Matrices (count, side, side) that blur with deviations (count,), in pixels; near the edge, of what is inside."""
    place = jnp.arange(side)
    away = (place[:, None] - place) / jnp.maximum(deviation, 1e-2)[:, None, None]
    weight = jnp.exp(-(away**2) / 2)
    return weight / weight.sum(axis=2, keepdims=True)
