"""Random changes to training images that keep their meaning: on the device, inside jit, keyed by one key.

Every change is drawn for each image on its own, in the order in which a photo comes about: where the camera
stands, the light (`color_jitter.py`), and the camera's faults (`blur_noise.py`). Geometry is
one inverse projective map with bilinear sampling, where pixels outside the image repeat its edge.
"""

import jax
import jax.numpy as jnp

from flaxresnet.augment.blur_noise import blur_and_noise
from flaxresnet.augment.color_jitter import jitter_colors, random_shadow
from flaxresnet.augment.crop_erase import random_resized_crop
from flaxresnet.data.rng import draw_flat

# Half-widths of the ranges at strength 1.
ROTATION = 20.0  # degrees
LOG_SCALE = 0.2  # zoom from 1/1.22 to 1.22
LOG_ASPECT = 0.12  # one side against the other, so that photos of other proportions are met
SHEAR = 0.12  # columns slide by this share of the distance between them
TILT = 0.15  # one corner is 1 + TILT, the opposite one 1 - TILT times as far as the centre
SHIFT = 0.1  # of the side

CROP, UNEVEN, CAMERA = 1, 2, 3  # streams of the geometry's key, apart from its own draws


def augment(
    key: jax.Array,
    images: jax.Array,
    strength: jax.typing.ArrayLike | None = 1.0,
    flip: bool = True,
    crop: float = 1.0,
) -> jax.Array:
    """Randomly crops, rotates, scales, tilts, shifts, flips, lights, recolours and blurs images.

    Args:
      key: a PRNG key; the same key gives the same changes.
      images: (batch, height, width, 3), float, in [0, 1].
      strength: multiplies every range and share; 0 leaves only the flip and the crop, and so does None, without the
        cost of the rest.
      flip: whether half of the images are mirrored left to right.
      crop: the smallest share of the area in a random crop (`random_resized_crop`); 1 for none. A crop is enlarged from
        the pixels that there are: those of the network's size.

    Returns:
      Images of the same shape and dtype, in [0, 1].
    """
    geometry, colour = jax.random.split(key)
    light, camera = (jax.random.fold_in(geometry, stream) for stream in (UNEVEN, CAMERA))
    matrix, shift, tilt = random_affine_params(geometry, images.shape[0], 0.0 if strength is None else strength, flip)
    if crop < 1:  # what the first map shows of the crop: one sampling for both
        scale, place = random_resized_crop(jax.random.fold_in(geometry, CROP), images, crop)
        # (M p + s) / w becomes scale · (M p + s) / w + place, and w is 1 + tilt · p.
        half = jnp.array([images.shape[1] - 1, images.shape[2] - 1]) / 2
        matrix = scale[:, :, None] * matrix + (place * half)[:, :, None] * (tilt / half)[:, None]
        shift = scale * shift + place
    # float32 throughout: half precision would round positions to whole pixels.
    changed = sample_bilinear(images.astype(jnp.float32), matrix, shift, None if strength is None else tilt)
    if strength is not None:
        changed = jitter_colors(colour, materialize(random_shadow(light, changed, strength)), strength)
        changed = blur_and_noise(camera, materialize(changed), strength)
    return changed.astype(images.dtype)


def materialize(images: jax.Array) -> jax.Array:
    """Images computed here and kept: fused into what follows, they would be computed again for each use."""
    return jax.lax.optimization_barrier(images)


def random_affine_params(
    key: jax.Array, count: int, strength: jax.typing.ArrayLike, flip: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Random inverse projective maps, as `sample_bilinear` takes them.

    Returns:
      Matrices (count, 2, 2); shifts (count, 2), in units of half a side; tilts (count, 2), for half a side. All (y, x).
    """
    draw = 2 * draw_flat(jax.random.uniform, key, (count, 9)) - 1
    flipped, draw = draw[:, 5] < 0, draw * strength
    angle, zoom, aspect, shear = draw[:, 0] * jnp.deg2rad(ROTATION), draw[:, 1], draw[:, 2], draw[:, 6] * SHEAR
    rows, columns = (jnp.exp(zoom * LOG_SCALE + sign * aspect * LOG_ASPECT) for sign in (1, -1))
    columns = jnp.where(flipped & flip, -columns, columns)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    # Sides, times the rotation, times [[1, shear], [0, 1]].
    turned = [cos * rows, (cos * shear - sin) * rows, sin * columns, (sin * shear + cos) * columns]
    return jnp.stack(turned, axis=-1).reshape(count, 2, 2), draw[:, 3:5] * 2 * SHIFT, draw[:, 7:] * (TILT / 2)


def sample_bilinear(images: jax.Array, matrix: jax.Array, shift: jax.Array, tilt: jax.Array | None = None) -> jax.Array:
    """Images (batch, height, width, channels) seen through maps; positions beyond the edge repeat it.

    The output pixel at p, in pixels from the centre, takes the input's value at matrix · p + shift · half a side; with
    a tilt, at that divided by 1 + tilt · p / half a side, which must stay above 0.
    """
    count, height, width, channels = images.shape
    half = jnp.array([[height - 1], [width - 1]], images.dtype) / 2
    y, x = jnp.meshgrid(jnp.arange(height) - half[0], jnp.arange(width) - half[1], indexing="ij")
    target = jnp.stack([y.ravel(), x.ravel()])  # (2, h·w)
    # Multiplied and added in float32 everywhere: a matrix product may round its operands on an accelerator.
    source = matrix[:, :, :1] * target[0] + matrix[:, :, 1:] * target[1] + shift[..., None] * half  # (batch, 2, h·w)
    if tilt is not None:
        per_pixel = tilt / jnp.maximum(half[:, 0], 0.5)
        source /= 1 + (per_pixel[:, :1] * target[0] + per_pixel[:, 1:] * target[1])[:, None]
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
