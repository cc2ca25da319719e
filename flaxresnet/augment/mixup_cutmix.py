"""mixup and CutMix: training images and their labels mixed in pairs, on the device, keyed by one key."""

from functools import partial

import jax
import jax.numpy as jnp

from flaxresnet.augment.crop_erase import box_mask


def mix(
    key: jax.Array, images: jax.Array, targets: jax.Array, mixup: float = 0.0, cutmix: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Mixes each image of a batch, and its target, with another one of the batch.

    Args:
      key: a PRNG key for the pairs, the method and the weights.
      images: (batch, height, width, channels), float.
      targets: (batch, classes), each row a distribution.
      mixup: alpha of mixup, 0 for off.
      cutmix: alpha of CutMix, 0 for off. If both are on, each batch uses either with probability 1/2.

    Returns:
      Images and targets of the same shapes.
    """
    methods = []
    if mixup:
        methods.append(partial(apply_mixup, alpha=mixup))
    if cutmix:
        methods.append(partial(apply_cutmix, alpha=cutmix))
    if not methods:
        return images, targets
    order_key, method_key, weight_key = jax.random.split(key, 3)
    order = jax.random.permutation(order_key, len(images))
    method = jax.random.randint(method_key, (), 0, len(methods))
    mixed, weight = jax.lax.switch(method, methods, weight_key, images, images[order])
    return mixed, weight * targets + (1 - weight) * targets[order]


def apply_mixup(key: jax.Array, images: jax.Array, others: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Applies mixup (Zhang et al. 2018, arXiv:1710.09412): λ · image + (1 - λ) · other, one λ ~ Beta(α, α) per batch.

    Returns:
      The mixed images, and λ, a scalar.
    """
    weight = jax.random.beta(key, alpha, alpha, dtype=images.dtype)
    return weight * images + (1 - weight) * others, weight


def apply_cutmix(key: jax.Array, images: jax.Array, others: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Applies CutMix (Yun et al. 2019, arXiv:1905.04899, algorithm A1): pastes one box per batch.

    In all images, the same box shows the other image. It has the image's proportions and the area 1 - λ, λ ~
    Beta(α, α), and is cut off at the image's edge, because its center is anywhere in the image.

    Returns:
      The mixed images, and the fraction of pixels that come from `images`, a scalar.
    """
    weight_key, center_key = jax.random.split(key)
    size = jnp.array(images.shape[1:3])
    side = jnp.sqrt(1 - jax.random.beta(weight_key, alpha, alpha))
    center = jnp.floor(jax.random.uniform(center_key, (2,)) * size)
    half = jnp.floor(side * size / 2)
    box = box_mask(images.shape[1:3], center - half, center + half)
    weight = (~box).sum().astype(images.dtype) / box.size
    return jnp.where(box[:, :, None], others, images), weight
