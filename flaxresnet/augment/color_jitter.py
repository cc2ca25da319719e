"""Random light and colour for training images: on the device, keyed by one key, drawn for each image on its own."""

import jax
import jax.numpy as jnp

# Half-widths of the ranges at strength 1.
LOG_CONTRAST = 0.35
BRIGHTNESS = 0.2  # of full scale
LOG_COLOUR = 0.12  # each channel's gain: other light
SATURATION = 0.4
LOG_MIDTONES = 0.4  # mid-grey goes to 0.4 or 0.6, as with an exponent of 1.3 or 0.74
# Largest values at strength 1; half of the images have none of it.
UNEVEN = 0.4  # of the light, that is missing on one side
# Shares of the images at strength 1.
GREY = 0.05

DARKEST = 0.9  # of the light, missing at any strength
EDGES = (0.05, 1.5)  # widths of the change from light to dark, in half sides: a shadow's edge, a lamp at the side


def jitter_colors(key: jax.Array, images: jax.Array, strength: jax.typing.ArrayLike) -> jax.Array:
    """Random contrast about the image's mean, brightness, saturation, channels' gains, mid-tones; some are grey.

    Mid-tones move along x / (x + c (1 - x)): much like a gamma, and many times cheaper.

    Args:
      key: a PRNG key.
      images: (batch, height, width, 3), float32, in [0, 1].
      strength: multiplies every range; 0 changes nothing.
    """
    draw = jax.random.uniform(key, (images.shape[0], 1, 1, 8), minval=-1.0, maxval=1.0)
    is_grey, draw = draw[..., 7:] > 1 - 2 * GREY * strength, draw * strength
    contrast, brightness = jnp.exp(draw[..., :1] * LOG_CONTRAST), draw[..., 1:2] * BRIGHTNESS
    saturation, gain = 1 + draw[..., 2:3] * SATURATION, jnp.exp(draw[..., 3:6] * LOG_COLOUR)
    mean = images.mean(axis=(1, 2, 3), keepdims=True)
    images = (images - mean) * contrast + mean + brightness
    grey = images.mean(axis=-1, keepdims=True)
    images = jnp.clip((grey + (images - grey) * jnp.where(is_grey, 0, saturation)) * jnp.where(is_grey, 1, gain), 0, 1)
    return images / (images + jnp.exp(draw[..., 6:7] * LOG_MIDTONES) * (1 - images))


def random_shadow(key: jax.Array, images: jax.Array, strength: jax.typing.ArrayLike) -> jax.Array:
    """Light from one side, or a shadow over a part: in half of the images, in a random direction.

    Args:
      key: a PRNG key.
      images: (batch, height, width, 3), float32, in [0, 1].
      strength: multiplies the share of the light that is missing; 0 changes nothing.
    """
    count, height, width = images.shape[:3]
    draw = jax.random.uniform(key, (4, count, 1, 1), minval=-1.0, maxval=1.0)
    depth, angle, place = jnp.clip(draw[0] * UNEVEN * strength, 0, DARKEST), draw[1] * jnp.pi, draw[2] * 0.5
    low, high = jnp.log(jnp.array(EDGES))
    edge = jnp.exp(low + (draw[3] + 1) / 2 * (high - low))
    y, x = jnp.linspace(-1, 1, height)[:, None], jnp.linspace(-1, 1, width)
    dark = jax.nn.sigmoid((jnp.cos(angle) * x + jnp.sin(angle) * y - place) / (edge / 4))  # (batch, height, width)
    return images * (1 - depth * dark)[..., None]
