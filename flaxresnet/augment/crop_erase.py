"""Random resized crops and random erasing: pure functions of a PRNG key."""

import jax
import jax.numpy as jnp

Range = tuple[float, float]

# Szegedy et al. 2015, arXiv:1409.4842, section 6, and recipes for ImageNet since: width / height of a crop.
CROP_ASPECTS = (3 / 4, 4 / 3)
# Zhong et al. 2017, arXiv:1708.04896, section 4: area and width / height of an erased box.
ERASED_AREAS = (0.02, 0.4)
ERASED_ASPECTS = (0.3, 1 / 0.3)


def random_box_sizes(key: jax.Array, count: int, image_aspect: float, areas: Range, aspects: Range) -> jax.Array:
    """Draws sizes of boxes that fit into an image.

    Args:
      key: a PRNG key.
      count: number of boxes.
      image_aspect: width / height of the image.
      areas: range of the box's area, as a fraction of the image's; drawn uniformly.
      aspects: range of the box's width / height; drawn log-uniformly from the part that fits into the image.

    Returns:
      (count, 2), float32: height and width of each box, as fractions of the image's, at most 1. If no box of the drawn
      area fits, because the image is long, the box is cut at the image's edge.
    """
    area_key, aspect_key = jax.random.split(key)
    area = jax.random.uniform(area_key, (count,), minval=areas[0], maxval=areas[1])
    low = jnp.log(jnp.maximum(aspects[0], area * image_aspect))
    high = jnp.log(jnp.minimum(aspects[1], image_aspect / area))
    aspect = jnp.exp(low + jax.random.uniform(aspect_key, (count,)) * (high - low))
    sizes = jnp.sqrt(area[:, None] * jnp.stack([image_aspect / aspect, aspect / image_aspect], axis=-1))
    return jnp.minimum(sizes, 1)


def random_resized_crop(key: jax.Array, images: jax.Array, min_area: float) -> tuple[jax.Array, jax.Array]:
    """Draws random crops that are resized to the image's size, as maps for `sample_bilinear`.

    Args:
      key: a PRNG key.
      images: (count, height, width, channels); only the shape is used.
      min_area: smallest area of a crop, as a fraction of the image's; the largest is the full image.

    Returns:
      Scales (count, 2) and offsets (count, 2) in half sides, both (y, x): the output position p, from the center, shows
      scale · p + offset, which is never outside the image.
    """
    size_key, offset_key = jax.random.split(key)
    count, height, width = images.shape[:3]
    scale = random_box_sizes(size_key, count, width / height, (min_area, 1.0), CROP_ASPECTS)
    return scale, jax.random.uniform(offset_key, (count, 2), minval=-1.0, maxval=1.0) * (1 - scale)


def box_mask(size: tuple[int, ...], low: jax.Array, high: jax.Array) -> jax.Array:
    """Returns bool masks of boxes.

    Args:
      size: (height, width) of the masks.
      low: (…, 2), first row and column of each box.
      high: (…, 2), row and column after the last.

    Returns:
      (…, height, width), True inside the box.
    """
    rows = jnp.arange(size[0])
    columns = jnp.arange(size[1])
    low = low[..., None, :]
    high = high[..., None, :]
    in_rows = (rows >= low[..., 0]) & (rows < high[..., 0])  # (…, height)
    in_columns = (columns >= low[..., 1]) & (columns < high[..., 1])
    return in_rows[..., :, None] & in_columns[..., None, :]


def erase(key: jax.Array, images: jax.Array, probability: float) -> jax.Array:
    """Applies random erasing: fills a random box with noise, each value uniform in [0, 1].

    Args:
      key: a PRNG key.
      images: (batch, height, width, 3), float, in [0, 1].
      probability: probability that an image is erased in part.

    Returns:
      Images of the same shape and dtype, in [0, 1].
    """
    chosen_key, size_key, offset_key, noise_key = jax.random.split(key, 4)
    count, height, width = images.shape[:3]
    image_size = jnp.array([height, width])
    box_sizes = random_box_sizes(size_key, count, width / height, ERASED_AREAS, ERASED_ASPECTS)
    pixels = jnp.clip(jnp.round(box_sizes * image_size), 1, image_size)
    low = jnp.floor(jax.random.uniform(offset_key, (count, 2)) * (image_size - pixels + 1))
    erased = box_mask((height, width), low, low + pixels)
    erased &= jax.random.bernoulli(chosen_key, probability, (count, 1, 1))
    return jnp.where(erased[..., None], jax.random.uniform(noise_key, images.shape, images.dtype), images)
