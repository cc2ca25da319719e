"""Other backgrounds for training images that have a plain one: on the device, inside jit, keyed by one key.

No one has marked what belongs to the thing. But where the upper border is of one hue, what has another hue, or is much
darker, is most likely the thing. Images without such a border stay as they are, and so do those whose thing would be
next to nothing or nearly everything.
"""

import jax
import jax.numpy as jnp

from flaxresnet.data.rng import draw_flat

PLAIN = 0.06  # mean distance in the border, above which it is not plain
SIZES = (0.05, 0.7)  # shares of the image, that a thing may take
THRESHOLDS = (0.05, 0.6)  # of distances
STEPS = 16  # thresholds that are tried, on every second row and column
DARKER = 0.8  # of the border's brightness; what is darker is no longer the wall in the corner's shade
COARSE, FINE = 5, 17  # random values a side, of large areas and of small ones


def replace_background(key: jax.Array, images: jax.Array, probability: float) -> jax.Array:
    """Images (batch, height, width, 3), float32 in [0, 1]; those with a plain background get another so probably."""
    by_whether, by_wall = jax.random.split(key)
    cover, plain = foreground_mask(images)
    chosen = plain & (jax.random.uniform(by_whether, plain.shape) < probability)
    cover = jnp.where(chosen[:, None, None, None], cover[..., None], 1)
    # Kept as it is: fused into a sampling, it would be computed again for each of a pixel's neighbours.
    return jax.lax.optimization_barrier(images * cover + random_backgrounds(by_wall, images.shape) * (1 - cover))


def foreground_mask(images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where the thing is, (batch, height, width), in [0, 1], and whether one may say so, (batch,), bool.

    The border is the upper row and the upper half of both sides, where no arm comes in.
    """
    distance = background_distance(images)
    half = images.shape[1] // 2
    border = jnp.concatenate([distance[:, 0], distance[:, :half, 0], distance[:, :half, -1]], axis=1)
    threshold = otsu_threshold(distance)[:, None, None]
    cover = jax.nn.sigmoid((distance - threshold) / (0.1 * threshold))
    padded = jnp.pad(cover, ((0, 0), (1, 1), (1, 1)), mode="edge")
    cover = jax.lax.reduce_window(padded, 0.0, jax.lax.add, (1, 3, 3), (1, 1, 1), "VALID") / 9
    size = cover.mean(axis=(1, 2))
    return cover, (border.mean(axis=1) < PLAIN) & (size > SIZES[0]) & (size < SIZES[1])


def background_distance(images: jax.Array) -> jax.Array:
    """How far each pixel is from the border's median colour, (batch, height, width): in hue, and in being darker.

    A lamp's light on a wall is brighter than the corners and has their hue, so being brighter does not count.
    """
    half = images.shape[1] // 2
    border = jnp.concatenate([images[:, 0], images[:, :half, 0], images[:, :half, -1]], axis=1)
    usual = jnp.median(border[:, ::4], axis=1)[:, None, None]  # of some: sorting is slow
    level, usual_level = images.mean(axis=-1, keepdims=True) + 0.03, usual.mean(axis=-1, keepdims=True) + 0.03
    tints = images / level - usual / usual_level
    darker = jnp.maximum(DARKER - level / usual_level, 0)[..., 0]
    return jnp.sqrt((tints**2).sum(axis=-1) + darker**2)


def otsu_threshold(distance: jax.Array) -> jax.Array:
    """Otsu's threshold of each image, (batch,): the one with the most variance between the two sides."""
    tried = jnp.linspace(*THRESHOLDS, STEPS)
    flat = distance[:, ::2, ::2].reshape(len(distance), 1, -1)
    above = flat > tried[:, None]  # (batch, STEPS, pixels)
    share = above.mean(axis=2)
    upper, whole = (flat * above).mean(axis=2), flat.mean(axis=2)
    # With p above and 1 - p below: p (1 - p) (mean above - mean below)^2.
    between = (upper - share * whole) ** 2 / jnp.maximum(share * (1 - share), 1e-6)
    return tried[between.argmax(axis=1)]


def random_backgrounds(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Random backgrounds, (batch, height, width, 3), in [0, 1]: two surfaces that meet in sharp edges, with grain."""
    count, height, width, _ = shape
    by_colour, by_coarse, by_fine, by_amount = jax.random.split(key, 4)
    colours = draw_flat(jax.random.uniform, by_colour, (count, 1, 1, 6))
    amount = 0.4 * jax.random.uniform(by_amount, (4, count, 1, 1, 1)) ** 2  # mostly little
    coarse = upsample_bilinear(draw_flat(jax.random.normal, by_coarse, (count, COARSE, COARSE, 5)), height, width)
    fine = upsample_bilinear(draw_flat(jax.random.normal, by_fine, (count, FINE, FINE, 1)), height, width)
    tinted = amount[0] * coarse[..., :1] + amount[1] / 2 * coarse[..., 1:4] + amount[2] * fine
    # The edge lies where a smooth field passes a level, which for some images is hardly anywhere.
    first = coarse[..., 4:] + 4 * amount[3] - 0.5 > 0
    return jnp.clip(jnp.where(first, colours[..., :3], colours[..., 3:]) + tinted, 0, 1)


def upsample_bilinear(grid: jax.Array, height: int, width: int) -> jax.Array:
    """(batch, n, n, channels) → (batch, height, width, channels), linearly between the values."""
    rows, columns = linear_weights(height, grid.shape[1]), linear_weights(width, grid.shape[2])
    return jnp.einsum("wq,nhqc->nhwc", columns, jnp.einsum("hp,npqc->nhqc", rows, grid))


def linear_weights(side: int, count: int) -> jax.Array:
    """Weights (side, count) of linear interpolation between as many values, the outer ones at the ends."""
    place = jnp.linspace(0, count - 1, side)
    return jnp.maximum(1 - jnp.abs(place[:, None] - jnp.arange(count)), 0)
