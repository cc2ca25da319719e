"""Training images mixed in pairs, and their labels with them: mixup and CutMix. On the device, keyed by one key."""

from functools import partial

import jax
import jax.numpy as jnp

from flaxresnet.augment.crop_erase import box_mask


def mix(
    key: jax.Array, images: jax.Array, targets: jax.Array, mixup: float = 0.0, cutmix: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Images of a batch mixed with others of it, in one of the ways that are asked for.

    Args:
      key: a PRNG key; it decides which image is mixed with which, the way, and how much.
      images: (batch, height, width, channels), float.
      targets: (batch, classes), each row a distribution.
      mixup, cutmix: alpha of each, 0 for off; where both are on, a batch takes either with the same probability.

    Returns:
      Images and targets of the same shapes.
    """
    ways = [partial(way, alpha=alpha) for way, alpha in ((apply_mixup, mixup), (apply_cutmix, cutmix)) if alpha]
    if not ways:
        return images, targets
    by_order, by_way, by_share = jax.random.split(key, 3)
    order = jax.random.permutation(by_order, len(images))
    way = jax.random.randint(by_way, (), 0, len(ways))
    mixed, share = jax.lax.switch(way, ways, by_share, images, images[order])
    return mixed, share * targets + (1 - share) * targets[order]


def apply_mixup(key: jax.Array, images: jax.Array, others: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """mixup (Zhang et al. 2018, arXiv:1710.09412): share · image + (1 - share) · other, one share ~ Beta(α, α) a batch.

    Returns:
      The mixed images, and the share of `images` in them, a scalar.
    """
    share = jax.random.beta(key, alpha, alpha, dtype=images.dtype)
    return share * images + (1 - share) * others, share


def apply_cutmix(key: jax.Array, images: jax.Array, others: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """CutMix (Yun et al. 2019, arXiv:1905.04899, algorithm A1): one box of the others, in the image's proportions.

    The box has the area 1 - λ, λ ~ Beta(α, α), about a centre anywhere in the image, and ends at the image's edge.

    Returns:
      The mixed images, and the share of `images` in their pixels, counted, a scalar.
    """
    by_share, by_place = jax.random.split(key)
    size = jnp.array(images.shape[1:3])
    side = jnp.sqrt(1 - jax.random.beta(by_share, alpha, alpha))
    centre, half = jnp.floor(jax.random.uniform(by_place, (2,)) * size), jnp.floor(side * size / 2)
    box = box_mask(images.shape[1:3], centre - half, centre + half)
    share = (~box).sum().astype(images.dtype) / box.size
    return jnp.where(box[:, :, None], others, images), share
