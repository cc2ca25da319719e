"""Replaces plain backgrounds of training images on the device, inside jit, keyed by one key.

No segmentation masks are available. If the upper border of an image has one hue, pixels of another hue, or much darker
pixels, most likely belong to the object. An image stays unchanged if it has no such border, or if the
object would cover too little or too much of it.
"""

import jax
import jax.numpy as jnp

from flaxresnet.augment.rng import draw_flat

MAX_BORDER_DISTANCE = 0.06  # mean distance of the border from its median color; above it, the background is not plain
OBJECT_AREAS = (0.05, 0.7)  # allowed range of the object's area, as a fraction of the image
THRESHOLDS = (0.05, 0.6)  # range of candidate thresholds of the distance
NUM_THRESHOLDS = 16  # evaluated on every second row and column
DARKER = 0.8  # fraction of the border's brightness; darker pixels are not the background in shade
# Random values per side, of coarse and of fine background patterns.
COARSE = 5
FINE = 17


def replace_background(key: jax.Array, images: jax.Array, probability: float) -> jax.Array:
    """Replaces plain backgrounds at random.

    Args:
      key: a PRNG key.
      images: (batch, height, width, 3), float32, in [0, 1].
      probability: probability that an image with a plain background gets another one.

    Returns:
      Images of the same shape and dtype, in [0, 1].
    """
    chosen_key, background_key = jax.random.split(key)
    mask, plain = foreground_mask(images)
    chosen = plain & (jax.random.uniform(chosen_key, plain.shape) < probability)
    mask = jnp.where(chosen[:, None, None, None], mask[..., None], 1)
    # The barrier stops XLA from fusing this into a sampling, which would compute it again for each neighboring pixel.
    return jax.lax.optimization_barrier(images * mask + random_backgrounds(background_key, images.shape) * (1 - mask))


def foreground_mask(images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Segments the object in front of a plain background.

    The border is the top row and the upper half of both sides, because an arm usually enters from below.

    Args:
      images: (batch, height, width, 3), float32, in [0, 1].

    Returns:
      Soft masks (batch, height, width) in [0, 1], 1 on the object, and (batch,) bool: whether the background is plain
      and the object's area is in `OBJECT_AREAS`, so that the mask can be used.
    """
    distance = background_distance(images)
    half = images.shape[1] // 2
    border = jnp.concatenate([distance[:, 0], distance[:, :half, 0], distance[:, :half, -1]], axis=1)
    threshold = otsu_threshold(distance)[:, None, None]
    mask = jax.nn.sigmoid((distance - threshold) / (0.1 * threshold))
    padded = jnp.pad(mask, ((0, 0), (1, 1), (1, 1)), mode="edge")
    mask = jax.lax.reduce_window(padded, 0.0, jax.lax.add, (1, 3, 3), (1, 1, 1), "VALID") / 9
    area = mask.mean(axis=(1, 2))
    plain = border.mean(axis=1) < MAX_BORDER_DISTANCE
    return mask, plain & (area > OBJECT_AREAS[0]) & (area < OBJECT_AREAS[1])


def background_distance(images: jax.Array) -> jax.Array:
    """Returns each pixel's distance from the border's median color, in hue and darkness, (batch, height, width).

    Brighter pixels of the same hue have distance 0: lamplight brightens a part of the background.
    """
    half = images.shape[1] // 2
    border = jnp.concatenate([images[:, 0], images[:, :half, 0], images[:, :half, -1]], axis=1)
    median = jnp.median(border[:, ::4], axis=1)[:, None, None]  # every fourth pixel, because sorting is slow
    level = images.mean(axis=-1, keepdims=True) + 0.03
    median_level = median.mean(axis=-1, keepdims=True) + 0.03
    hue_difference = images / level - median / median_level
    darkness = jnp.maximum(DARKER - level / median_level, 0)[..., 0]
    return jnp.sqrt((hue_difference**2).sum(axis=-1) + darkness**2)


def otsu_threshold(distance: jax.Array) -> jax.Array:
    """Returns each image's threshold with the largest between-class variance (Otsu 1979), (batch,)."""
    thresholds = jnp.linspace(*THRESHOLDS, NUM_THRESHOLDS)
    flat = distance[:, ::2, ::2].reshape(len(distance), 1, -1)
    above = flat > thresholds[:, None]  # (batch, NUM_THRESHOLDS, pixels)
    fraction = above.mean(axis=2)
    excess = (flat * above).mean(axis=2) - fraction * flat.mean(axis=2)
    # With a fraction p above: p (1 - p) (mean above - mean below)^2 = excess^2 / (p (1 - p)).
    variance = excess**2 / jnp.maximum(fraction * (1 - fraction), 1e-6)
    return thresholds[variance.argmax(axis=1)]


def random_backgrounds(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns random backgrounds, float32 in [0, 1]: two surfaces with texture that meet in sharp edges.

    Args:
      key: a PRNG key.
      shape: (batch, height, width, 3).
    """
    count, height, width, _ = shape
    color_key, coarse_key, fine_key, amount_key = jax.random.split(key, 4)
    colors = draw_flat(jax.random.uniform, color_key, (count, 1, 1, 6))
    amount = 0.4 * jax.random.uniform(amount_key, (4, count, 1, 1, 1)) ** 2  # small in most images
    coarse = upsample_bilinear(draw_flat(jax.random.normal, coarse_key, (count, COARSE, COARSE, 5)), height, width)
    fine = upsample_bilinear(draw_flat(jax.random.normal, fine_key, (count, FINE, FINE, 1)), height, width)
    texture = amount[0] * coarse[..., :1] + amount[1] / 2 * coarse[..., 1:4] + amount[2] * fine
    # The edge is a level line of a smooth field. In some images hardly any pixel lies on its other side.
    first = coarse[..., 4:] + 4 * amount[3] - 0.5 > 0
    return jnp.clip(jnp.where(first, colors[..., :3], colors[..., 3:]) + texture, 0, 1)


def upsample_bilinear(grid: jax.Array, height: int, width: int) -> jax.Array:
    """Interpolates (batch, n, n, channels) linearly to (batch, height, width, channels), corners aligned."""
    rows = linear_weights(height, grid.shape[1])
    columns = linear_weights(width, grid.shape[2])
    return jnp.einsum("wq,nhqc->nhwc", columns, jnp.einsum("hp,npqc->nhqc", rows, grid))


def linear_weights(side: int, count: int) -> jax.Array:
    """Returns the weights (side, count) that interpolate linearly between `count` values, the end points aligned."""
    position = jnp.linspace(0, count - 1, side)
    return jnp.maximum(1 - jnp.abs(position[:, None] - jnp.arange(count)), 0)
