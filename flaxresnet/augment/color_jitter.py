"""Random light and color for training images, on the device, keyed by one key, drawn for each image."""

import jax
import jax.numpy as jnp

# Half-widths of the ranges at strength 1.
LOG_CONTRAST = 0.35
BRIGHTNESS = 0.2  # as a fraction of the full scale
LOG_CHANNEL_GAIN = 0.12  # of each channel, as under light of another color
SATURATION = 0.4
LOG_MIDTONES = 0.4  # mid-gray becomes 0.4 to 0.6, as with exponents from 1.3 to 0.74
# Largest value at strength 1. Half of the images have none of it.
SHADOW = 0.4  # fraction of the light that is missing on one side
# Fraction of the images at strength 1.
GRAYSCALE = 0.05

MAX_SHADOW = 0.9  # fraction of the light that is missing, at any strength
EDGE_WIDTHS = (0.05, 1.5)  # of the transition from light to dark, in half sides: a hard shadow to light from one side


def jitter_colors(key: jax.Array, images: jax.Array, strength: jax.typing.ArrayLike) -> jax.Array:
    """Randomly changes contrast about the image's mean, brightness, saturation, channel gains and midtones.

    A fraction of the images becomes grayscale. Midtones change along x / (x + c (1 - x)), which is close to a gamma
    curve and many times cheaper.

    Args:
      key: a PRNG key.
      images: (batch, height, width, 3), float32, in [0, 1].
      strength: multiplies every range and the fraction of grayscale images; 0 changes nothing.

    Returns:
      Images of the same shape, in [0, 1].
    """
    draw = jax.random.uniform(key, (images.shape[0], 1, 1, 8), minval=-1.0, maxval=1.0)
    is_gray = draw[..., 7:] > 1 - 2 * GRAYSCALE * strength
    draw *= strength
    contrast = jnp.exp(draw[..., :1] * LOG_CONTRAST)
    brightness = draw[..., 1:2] * BRIGHTNESS
    saturation = jnp.where(is_gray, 0, 1 + draw[..., 2:3] * SATURATION)
    gain = jnp.where(is_gray, 1, jnp.exp(draw[..., 3:6] * LOG_CHANNEL_GAIN))
    midtones = jnp.exp(draw[..., 6:7] * LOG_MIDTONES)
    mean = images.mean(axis=(1, 2, 3), keepdims=True)
    images = (images - mean) * contrast + mean + brightness
    gray = images.mean(axis=-1, keepdims=True)
    images = jnp.clip((gray + (images - gray) * saturation) * gain, 0, 1)
    return images / (images + midtones * (1 - images))


def random_shadow(key: jax.Array, images: jax.Array, strength: jax.typing.ArrayLike) -> jax.Array:
    """Darkens one side, in a random direction and with a soft or a hard edge, in half of the images.

    Args:
      key: a PRNG key.
      images: (batch, height, width, 3), float32, in [0, 1].
      strength: multiplies the fraction of the light that is missing; 0 changes nothing.

    Returns:
      Images of the same shape, in [0, 1].
    """
    count, height, width = images.shape[:3]
    draw = jax.random.uniform(key, (4, count, 1, 1), minval=-1.0, maxval=1.0)
    depth = jnp.clip(draw[0] * SHADOW * strength, 0, MAX_SHADOW)  # 0 in the half with a negative draw
    angle = draw[1] * jnp.pi
    offset = draw[2] * 0.5
    low, high = jnp.log(jnp.array(EDGE_WIDTHS))
    edge = jnp.exp(low + (draw[3] + 1) / 2 * (high - low))
    y = jnp.linspace(-1, 1, height)[:, None]
    x = jnp.linspace(-1, 1, width)
    dark = jax.nn.sigmoid((jnp.cos(angle) * x + jnp.sin(angle) * y - offset) / (edge / 4))  # (batch, height, width)
    return images * (1 - depth * dark)[..., None]
