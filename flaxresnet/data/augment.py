"""Random changes to training images that keep their meaning: on the device, inside jit, keyed by one key.

Every change is drawn for each image on its own. Geometry is one inverse affine map with bilinear sampling, where
pixels outside the image repeat its edge; colour is one affine map of the channels.
"""

import jax
import jax.numpy as jnp

from flaxresnet.data.boxes import crop_maps

# Half-widths of the ranges at strength 1.
ROTATION = 20.0  # degrees
LOG_SCALE = 0.2  # zoom from 1/1.22 to 1.22
LOG_ASPECT = 0.12  # one side against the other, so that photos of other proportions are met
SHIFT = 0.1  # of the side
LOG_CONTRAST = 0.35
BRIGHTNESS = 0.2  # of full scale
LOG_COLOUR = 0.12  # each channel's gain: other light
SATURATION = 0.4

CROP = 1  # the stream of the geometry's key that crops are drawn from


def augment(
    key: jax.Array,
    images: jax.Array,
    strength: jax.typing.ArrayLike = 1.0,
    flip: bool = True,
    crop: float = 1.0,
) -> jax.Array:
    """Randomly crops, rotates, scales, shifts, flips and recolours images.

    Args:
      key: a PRNG key; the same key gives the same changes.
      images: (batch, height, width, 3), float, in [0, 1].
      strength: multiplies every range; 0 leaves only the flip and the crop.
      flip: whether half of the images are mirrored left to right.
      crop: the smallest share of the area in a random crop (`crop_maps`); 1 for none. A crop is enlarged from the
        pixels that there are: those of the network's size.

    Returns:
      Images of the same shape and dtype, in [0, 1].
    """
    geometry, colour = jax.random.split(key)
    matrix, shift = random_maps(geometry, images.shape[0], strength, flip)
    if crop < 1:  # what the first map shows of the crop: one sampling for both
        scale, place = crop_maps(jax.random.fold_in(geometry, CROP), images, crop)
        matrix, shift = scale[:, :, None] * matrix, scale * shift + place
    # float32 throughout: half precision would round positions to whole pixels.
    changed = sample_bilinear(images.astype(jnp.float32), matrix, shift)
    return recolour(colour, changed, strength).astype(images.dtype)


def random_maps(key: jax.Array, count: int, strength: jax.typing.ArrayLike, flip: bool) -> tuple[jax.Array, jax.Array]:
    """Random inverse affine maps: matrices (count, 2, 2) and shifts (count, 2), in units of half a side, (y, x)."""
    draw = jax.random.uniform(key, (count, 6), minval=-1.0, maxval=1.0)
    angle = draw[:, 0] * jnp.deg2rad(ROTATION) * strength
    zoom, aspect = draw[:, 1] * LOG_SCALE * strength, draw[:, 2] * LOG_ASPECT * strength
    rows, columns = jnp.exp(zoom + aspect), jnp.exp(zoom - aspect)
    columns = jnp.where((draw[:, 5] < 0) & flip, -columns, columns)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    matrix = jnp.stack([cos * rows, -sin * rows, sin * columns, cos * columns], axis=-1).reshape(count, 2, 2)
    return matrix, draw[:, 3:5] * 2 * SHIFT * strength


def sample_bilinear(images: jax.Array, matrix: jax.Array, shift: jax.Array) -> jax.Array:
    """Images (batch, height, width, channels) seen through affine maps; positions beyond the edge repeat it.

    The output pixel at p, in pixels from the centre, takes the input's value at matrix · p + shift · half a side.
    """
    count, height, width, channels = images.shape
    half = jnp.array([[height - 1], [width - 1]], images.dtype) / 2
    y, x = jnp.meshgrid(jnp.arange(height) - half[0], jnp.arange(width) - half[1], indexing="ij")
    target = jnp.stack([y.ravel(), x.ravel()])  # (2, h·w)
    # Multiplied and added in float32 everywhere: a matrix product may round its operands on an accelerator.
    source = matrix[:, :, :1] * target[0] + matrix[:, :, 1:] * target[1] + shift[..., None] * half  # (batch, 2, h·w)
    source = jnp.clip(source + half, 0, 2 * half)
    low = jnp.floor(source)
    fraction = source - low
    y0, x0 = low.astype(jnp.int32)[:, 0], low.astype(jnp.int32)[:, 1]
    y1, x1 = jnp.minimum(y0 + 1, height - 1), jnp.minimum(x0 + 1, width - 1)
    pixels = images.reshape(count, height * width, channels)

    def at(row: jax.Array, column: jax.Array) -> jax.Array:
        return jnp.take_along_axis(pixels, (row * width + column)[..., None], axis=1)

    fy, fx = fraction[:, 0, :, None], fraction[:, 1, :, None]
    top = at(y0, x0) * (1 - fx) + at(y0, x1) * fx
    bottom = at(y1, x0) * (1 - fx) + at(y1, x1) * fx
    return (top * (1 - fy) + bottom * fy).reshape(images.shape)


def recolour(key: jax.Array, images: jax.Array, strength: jax.typing.ArrayLike) -> jax.Array:
    """Random contrast about the image's mean, brightness, saturation and gain of each channel."""
    draw = jax.random.uniform(key, (images.shape[0], 1, 1, 6), minval=-1.0, maxval=1.0) * strength
    contrast, brightness = jnp.exp(draw[..., :1] * LOG_CONTRAST), draw[..., 1:2] * BRIGHTNESS
    saturation, gain = 1 + draw[..., 2:3] * SATURATION, jnp.exp(draw[..., 3:] * LOG_COLOUR)
    mean = images.mean(axis=(1, 2, 3), keepdims=True)
    images = (images - mean) * contrast + mean + brightness
    grey = images.mean(axis=-1, keepdims=True)
    return jnp.clip((grey + (images - grey) * saturation) * gain, 0, 1)
