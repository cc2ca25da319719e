"""Random label-preserving changes of training images: on the device, inside jit, keyed by one key.

Each image draws its own changes, in the order in which a photo forms: the camera's position, the light
(`color_jitter.py`), and blur and noise (`blur_noise.py`). The geometry is one inverse projective map with bilinear
sampling; pixels outside the image repeat its edge.
"""

import jax
import jax.numpy as jnp

from flaxresnet.augment.blur_noise import blur_and_noise
from flaxresnet.augment.color_jitter import jitter_colors, random_shadow
from flaxresnet.augment.crop_erase import random_resized_crop
from flaxresnet.augment.rng import draw_flat

# Half-widths of the ranges at strength 1.
ROTATION = 20.0  # degrees
LOG_SCALE = 0.2  # zoom from 1/1.22 to 1.22
LOG_ASPECT = 0.12  # stretches one axis, and shrinks the other, by a factor of up to 1.13
SHEAR = 0.12  # vertical displacement, as a fraction of the horizontal distance from the center
TILT = 0.15  # one corner is up to 1 + TILT times as far away as the center, the opposite one 1 - TILT times
SHIFT = 0.1  # as a fraction of the side

# Streams of the geometry key, apart from its own draws.
CROP_STREAM = 1
SHADOW_STREAM = 2
BLUR_NOISE_STREAM = 3


def augment(
    key: jax.Array,
    images: jax.Array,
    strength: jax.typing.ArrayLike | None = 1.0,
    hflip: bool = True,
    crop_min_area: float = 1.0,
) -> jax.Array:
    """Randomly crops, rotates, scales, tilts, shifts and flips images, and changes their light, color and sharpness.

    Args:
      key: a PRNG key; the same key gives the same changes.
      images: (batch, height, width, 3), float, in [0, 1].
      strength: multiplies every range, and the probability of grayscale. With 0, only the flip and the crop remain;
        None has the same result, and skips the computation of the rest.
      hflip: whether to mirror half of the images left to right.
      crop_min_area: smallest area of a random crop, as a fraction of the image's (`random_resized_crop`); 1 for no
        crop. A crop is enlarged from the images given here, so it has fewer pixels than the network's input.

    Returns:
      Images of the same shape and dtype, in [0, 1].
    """
    geometry_key, color_key = jax.random.split(key)
    geometry_strength = 0.0 if strength is None else strength
    matrix, shift, tilt = random_affine_params(geometry_key, images.shape[0], geometry_strength, hflip)
    if crop_min_area < 1:  # composed with the map above, so that one sampling does both
        scale, offset = random_resized_crop(jax.random.fold_in(geometry_key, CROP_STREAM), images, crop_min_area)
        # (M p + s) / w becomes scale · (M p + s) / w + offset, and w is 1 + tilt · p.
        half = jnp.array([images.shape[1] - 1, images.shape[2] - 1]) / 2
        matrix = scale[:, :, None] * matrix + (offset * half)[:, :, None] * (tilt / half)[:, None]
        shift = scale * shift + offset
    dtype = images.dtype
    images = images.astype(jnp.float32)  # half precision would round positions to full pixels
    if strength is None:
        return sample_bilinear(images, matrix, shift).astype(dtype)
    images = sample_bilinear(images, matrix, shift, tilt)
    images = random_shadow(jax.random.fold_in(geometry_key, SHADOW_STREAM), images, strength)
    images = jitter_colors(color_key, materialize(images), strength)
    images = blur_and_noise(jax.random.fold_in(geometry_key, BLUR_NOISE_STREAM), materialize(images), strength)
    return images.astype(dtype)


def materialize(images: jax.Array) -> jax.Array:
    """Returns the images from memory: if XLA fused them into their uses, it would compute them again for each."""
    return jax.lax.optimization_barrier(images)


def random_affine_params(
    key: jax.Array, count: int, strength: jax.typing.ArrayLike, hflip: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws inverse projective maps for `sample_bilinear`.

    Args:
      key: a PRNG key.
      count: number of maps.
      strength: multiplies every range.
      hflip: whether half of the maps mirror left to right.

    Returns:
      Matrices (count, 2, 2); shifts (count, 2), in half sides; tilts (count, 2), per half side. All are (y, x).
    """
    draw = 2 * draw_flat(jax.random.uniform, key, (count, 9)) - 1
    mirrored = (draw[:, 5] < 0) & hflip
    draw *= strength
    angle = draw[:, 0] * jnp.deg2rad(ROTATION)
    log_scale = draw[:, 1] * LOG_SCALE
    log_aspect = draw[:, 2] * LOG_ASPECT
    shear = draw[:, 6] * SHEAR
    rows = jnp.exp(log_scale + log_aspect)
    columns = jnp.exp(log_scale - log_aspect)
    columns = jnp.where(mirrored, -columns, columns)
    cos = jnp.cos(angle)
    sin = jnp.sin(angle)
    # diag(rows, columns) times the rotation times [[1, shear], [0, 1]].
    entries = [cos * rows, (cos * shear - sin) * rows, sin * columns, (sin * shear + cos) * columns]
    matrix = jnp.stack(entries, axis=-1).reshape(count, 2, 2)
    return matrix, draw[:, 3:5] * 2 * SHIFT, draw[:, 7:] * (TILT / 2)


def sample_bilinear(images: jax.Array, matrix: jax.Array, shift: jax.Array, tilt: jax.Array | None = None) -> jax.Array:
    """Samples images through inverse projective maps; positions beyond the edge repeat it.

    The output pixel at p, in pixels from the center, takes the input's value at matrix · p + shift · half a side. With
    a tilt, that position is divided by 1 + tilt · p / half a side, which must be above 0.

    Args:
      images: (batch, height, width, channels), float.
      matrix: (batch, 2, 2), (y, x).
      shift: (batch, 2), (y, x), in half sides.
      tilt: (batch, 2), (y, x), per half side; None for an affine map.

    Returns:
      Images of the same shape.
    """
    count, height, width, channels = images.shape
    half = jnp.array([[height - 1], [width - 1]], images.dtype) / 2
    y, x = jnp.meshgrid(jnp.arange(height) - half[0], jnp.arange(width) - half[1], indexing="ij")
    target = jnp.stack([y.ravel(), x.ravel()])  # (2, h·w)
    # Elementwise in float32, not as a matrix product, which may round its operands on an accelerator.
    source = matrix[:, :, :1] * target[0] + matrix[:, :, 1:] * target[1] + shift[..., None] * half  # (batch, 2, h·w)
    if tilt is not None:
        per_pixel = tilt / jnp.maximum(half[:, 0], 0.5)
        source /= 1 + (per_pixel[:, :1] * target[0] + per_pixel[:, 1:] * target[1])[:, None]
    source = jnp.clip(source + half, 0, 2 * half)
    low = jnp.floor(source)
    fraction = source - low
    y0 = low.astype(jnp.int32)[:, 0]
    x0 = low.astype(jnp.int32)[:, 1]
    y1 = jnp.minimum(y0 + 1, height - 1)
    x1 = jnp.minimum(x0 + 1, width - 1)
    pixels = images.reshape(count, height * width, channels)

    def at(row: jax.Array, column: jax.Array) -> jax.Array:
        return jnp.take_along_axis(pixels, (row * width + column)[..., None], axis=1)

    fy = fraction[:, 0, :, None]
    fx = fraction[:, 1, :, None]
    top = at(y0, x0) * (1 - fx) + at(y0, x1) * fx
    bottom = at(y1, x0) * (1 - fx) + at(y1, x1) * fx
    return (top * (1 - fy) + bottom * fy).reshape(images.shape)
