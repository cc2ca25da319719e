"""Random boxes in images: what a random crop keeps, and what random erasing takes away. Pure functions, keyed."""

import jax
import jax.numpy as jnp

# Szegedy et al. 2015, arXiv:1409.4842, section 6, and recipes for ImageNet since: width by height of a crop.
CROP_ASPECTS = (3 / 4, 4 / 3)
# Zhong et al. 2017, arXiv:1708.04896, section 4: areas, and width by height, of what is erased.
ERASED_AREAS = (0.02, 0.4)
ERASED_ASPECTS = (0.3, 1 / 0.3)

Range = tuple[float, float]


def random_box_sizes(key: jax.Array, count: int, shape: float, areas: Range, aspects: Range) -> jax.Array:
    """Sides of random boxes as shares of the image's, (count, 2), (y, x), at most 1.

    Args:
      key: a PRNG key.
      count: boxes.
      shape: width by height of the image.
      areas: range of the areas, as shares of the image's; drawn evenly.
      aspects: range of a box's width by height; drawn evenly, on a logarithmic scale, from what fits into the image.
    """
    by_area, by_aspect = jax.random.split(key)
    area = jax.random.uniform(by_area, (count,), minval=areas[0], maxval=areas[1])
    low, high = jnp.maximum(aspects[0], area * shape), jnp.minimum(aspects[1], shape / area)
    aspect = jnp.exp(jnp.log(low) + jax.random.uniform(by_aspect, (count,)) * (jnp.log(high) - jnp.log(low)))
    sides = jnp.sqrt(area[:, None] * jnp.stack([shape / aspect, aspect / shape], axis=-1))
    return jnp.minimum(sides, 1)  # nothing fits where a large area is asked of a long image


def random_resized_crop(key: jax.Array, images: jax.Array, smallest: float) -> tuple[jax.Array, jax.Array]:
    """Random crops that are brought to the whole image's size, as maps for `sample_bilinear`.

    Args:
      key: a PRNG key.
      images: (count, height, width, channels), of which the shape alone matters.
      smallest: share of the area that a crop has at least; the largest is the whole image.

    Returns:
      Scales (count, 2) and shifts (count, 2) in units of half a side, both (y, x): output position p, from the centre,
      shows scale · p + shift, which is never outside the image.
    """
    by_side, by_place = jax.random.split(key)
    count, height, width = images.shape[:3]
    sides = random_box_sizes(by_side, count, width / height, (smallest, 1.0), CROP_ASPECTS)
    return sides, jax.random.uniform(by_place, (count, 2), minval=-1.0, maxval=1.0) * (1 - sides)


def box_mask(size: tuple[int, ...], low: jax.Array, high: jax.Array) -> jax.Array:
    """Masks (…, *size) of the boxes from the pixels `low` to before `high`, both (…, 2), (y, x)."""
    rows, columns = (jnp.arange(side) for side in size)
    low, high = low[..., None, :], high[..., None, :]
    down = (rows >= low[..., 0]) & (rows < high[..., 0])  # (…, height)
    across = (columns >= low[..., 1]) & (columns < high[..., 1])
    return down[..., :, None] & across[..., None, :]


def erase(key: jax.Array, images: jax.Array, probability: float) -> jax.Array:
    """Random erasing: a box of noise, each pixel evenly from [0, 1], in this share of the images.

    Args:
      key: a PRNG key.
      images: (batch, height, width, 3), float, in [0, 1].
      probability: that an image loses a box.

    Returns:
      Images of the same shape and dtype, in [0, 1].
    """
    whether, by_side, by_place, by_noise = jax.random.split(key, 4)
    count, height, width = images.shape[:3]
    size = jnp.array([height, width])
    sides = random_box_sizes(by_side, count, width / height, ERASED_AREAS, ERASED_ASPECTS)
    pixels = jnp.clip(jnp.round(sides * size), 1, size)
    low = jnp.floor(jax.random.uniform(by_place, (count, 2)) * (size - pixels + 1))
    erased = box_mask((height, width), low, low + pixels)
    erased &= jax.random.bernoulli(whether, probability, (count, 1, 1))
    return jnp.where(erased[..., None], jax.random.uniform(by_noise, images.shape, images.dtype), images)
