"""TrivialAugment and RandAugment: random operations from one list of fourteen, computed on the device.

The operations are those of both papers, as Pillow computes them; the tests compare with Pillow. Each image draws its
own operation and magnitude. All geometric operations share one bilinear sampling, which takes an affine map per image.
Each color operation is computed for the full batch and used for the images that drew it, which costs little beside the
network. Unlike in Pillow, pixels outside the image repeat its edge, as in `geometric.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from flaxresnet.augment.geometric import sample_bilinear

NUM_MAGNITUDES = 31  # equally spaced from 0 to 1, both included


@dataclass(frozen=True)
class AugmentPolicy:
    """Number, magnitude and ranges of the operations that are applied to an image.

    Attributes:
      num_ops: number of operations per image, applied in sequence.
      magnitude: magnitude of all operations, in [0, 1]; None draws one of `NUM_MAGNITUDES` for each operation.
      shear: largest shear, as a fraction of the distance from the center.
      translation: largest translation, as a fraction of the side.
      rotation: largest rotation, in degrees.
      enhancement: brightness, color, contrast and sharpness are multiplied by factors up to 1 ± this.
      bits: smallest number of bits per channel that posterize keeps.
    """

    num_ops: int
    magnitude: float | None
    shear: float
    translation: float
    rotation: float
    enhancement: float
    bits: int


POLICIES = {
    # Müller & Hutter 2021, arXiv:2103.10158, table 1, the wide ranges; translation by up to 32 of 224 pixels.
    "trivialaugment": AugmentPolicy(
        num_ops=1, magnitude=None, shear=0.99, translation=32 / 224, rotation=135, enhancement=0.99, bits=2
    ),
    # Cubuk et al. 2019, arXiv:1909.13719: N = 2 operations at M = 9 of 10, in the ranges of AutoAugment
    # (Cubuk et al. 2018, arXiv:1805.09501, table 6), with translation by up to 150 of 331 pixels.
    "randaugment": AugmentPolicy(
        num_ops=2, magnitude=0.9, shear=0.3, translation=150 / 331, rotation=30, enhancement=0.9, bits=4
    ),
}

AffineEntries = tuple[jax.typing.ArrayLike, ...]  # of a map: matrix yy, yx, xy, xx and translation y, x

# From a policy and signed magnitudes (batch,) in [-1, 1] to the six entries of the affine map.
GEOMETRIC_OPS: dict[str, Callable[[AugmentPolicy, jax.Array], AffineEntries]] = {
    "shear_x": lambda policy, level: (1, 0, level * policy.shear, 1, 0, 0),
    "shear_y": lambda policy, level: (1, level * policy.shear, 0, 1, 0, 0),
    "translate_x": lambda policy, level: (1, 0, 0, 1, 0, 2 * level * policy.translation),
    "translate_y": lambda policy, level: (1, 0, 0, 1, 2 * level * policy.translation, 0),
    "rotate": lambda policy, level: _rotation(jnp.deg2rad(level * policy.rotation)),
}
# From a policy, images and signed magnitudes (batch, 1, 1, 1) to images.
COLOR_OPS: dict[str, Callable[[AugmentPolicy, jax.Array, jax.Array], jax.Array]] = {
    "brightness": lambda policy, images, level: blend(0.0, images, 1 + level * policy.enhancement),
    "color": lambda policy, images, level: blend(luma(images), images, 1 + level * policy.enhancement),
    "contrast": lambda policy, images, level: blend(mean_luma(images), images, 1 + level * policy.enhancement),
    "sharpness": lambda policy, images, level: blend(smooth(images), images, 1 + level * policy.enhancement),
    "posterize": lambda policy, images, level: posterize(images, 8 - jnp.round(jnp.abs(level) * (8 - policy.bits))),
    "solarize": lambda policy, images, level: jnp.where(images > 1 - jnp.abs(level), 1 - images, images),
    "autocontrast": lambda policy, images, level: autocontrast(images),
    "equalize": lambda policy, images, level: equalize(images),
}
OPERATIONS = ("identity", *GEOMETRIC_OPS, *COLOR_OPS)


def apply_policy(key: jax.Array, images: jax.Array, policy: AugmentPolicy) -> jax.Array:
    """Applies random operations to each image.

    Args:
      key: a PRNG key.
      images: (batch, height, width, 3), float32, in [0, 1].
      policy: number, magnitude and ranges of the operations.

    Returns:
      Images of the same shape and dtype, in [0, 1].
    """
    count = (len(images),)
    for op_key in jax.random.split(key, policy.num_ops):
        kind_key, magnitude_key, sign_key = jax.random.split(op_key, 3)
        kind = jax.random.randint(kind_key, count, 0, len(OPERATIONS))
        random_magnitude = jax.random.randint(magnitude_key, count, 0, NUM_MAGNITUDES) / (NUM_MAGNITUDES - 1)
        magnitude = random_magnitude if policy.magnitude is None else policy.magnitude
        images = apply_ops(images, kind, magnitude * jax.random.rademacher(sign_key, count, jnp.float32), policy)
    return images


def apply_ops(images: jax.Array, kind: jax.Array, level: jax.Array, policy: AugmentPolicy) -> jax.Array:
    """Applies one given operation to each image.

    Args:
      images: (batch, height, width, 3), float32, in [0, 1].
      kind: (batch,), int, indices into `OPERATIONS`.
      level: (batch,), float32, signed magnitudes in [-1, 1].
      policy: the ranges that the magnitudes refer to.

    Returns:
      Images of the same shape and dtype, in [0, 1].
    """
    images = sample_bilinear(images, *affine_params(kind, level, policy))
    level = level[:, None, None, None]
    for name, operation in COLOR_OPS.items():
        selected = (kind == OPERATIONS.index(name))[:, None, None, None]
        images = jnp.where(selected, operation(policy, images, level), images)
    return jnp.clip(images, 0, 1)


def affine_params(kind: jax.Array, level: jax.Array, policy: AugmentPolicy) -> tuple[jax.Array, jax.Array]:
    """Returns each image's affine map, the identity if its operation is not geometric.

    Args:
      kind: (batch,), int, indices into `OPERATIONS`.
      level: (batch,), float32, signed magnitudes in [-1, 1].
      policy: the ranges that the magnitudes refer to.

    Returns:
      Matrices (batch, 2, 2) and translations (batch, 2) in half sides, both (y, x), as `sample_bilinear` takes them.
    """
    entries = jnp.broadcast_to(jnp.array([1.0, 0, 0, 1, 0, 0]), (len(kind), 6))
    for name, operation in GEOMETRIC_OPS.items():
        columns = [jnp.broadcast_to(entry, kind.shape) for entry in operation(policy, level)]
        selected = (kind == OPERATIONS.index(name))[:, None]
        entries = jnp.where(selected, jnp.stack(columns, axis=-1), entries)
    return entries[:, :4].reshape(-1, 2, 2), entries[:, 4:]


def _rotation(angle: jax.Array) -> AffineEntries:
    cos = jnp.cos(angle)
    sin = jnp.sin(angle)
    return cos, -sin, sin, cos, 0, 0


def blend(degenerate: jax.typing.ArrayLike, images: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns degenerate + (images - degenerate) · factor, clipped to [0, 1], as `PIL.ImageEnhance` computes it."""
    return jnp.clip(degenerate + (images - degenerate) * factor, 0, 1)


def luma(images: jax.Array) -> jax.Array:
    """Returns the luma (ITU-R 601) of images (batch, height, width, 3), as (batch, height, width, 1)."""
    return (images * jnp.array([0.299, 0.587, 0.114])).sum(axis=-1, keepdims=True)


def mean_luma(images: jax.Array) -> jax.Array:
    """Returns the mean luma of each image, (batch, 1, 1, 1)."""
    return luma(images).mean(axis=(1, 2), keepdims=True)


def smooth(images: jax.Array) -> jax.Array:
    """Applies a 3×3 kernel with center weight 5, others 1, divided by 13; the border stays (`ImageFilter.SMOOTH`)."""
    inner = jax.lax.reduce_window(images, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "VALID")
    return images.at[:, 1:-1, 1:-1].set((inner + 4 * images[:, 1:-1, 1:-1]) / 13)


def posterize(images: jax.Array, bits: jax.Array) -> jax.Array:
    """Keeps the highest `bits` of each channel's eight bits; `bits` is (batch, 1, 1, 1)."""
    step = 2 ** (8 - bits)
    return jnp.floor(jnp.round(images * 255) / step) * step / 255


def autocontrast(images: jax.Array) -> jax.Array:
    """Stretches each channel of each image to [0, 1]; a constant channel stays unchanged."""
    low = images.min(axis=(1, 2), keepdims=True)
    high = images.max(axis=(1, 2), keepdims=True)
    return jnp.where(high > low, (images - low) / jnp.where(high > low, high - low, 1), images)


def equalize(images: jax.Array) -> jax.Array:
    """Equalizes the histogram of each channel of each image, in 256 levels, as `PIL.ImageOps.equalize` does."""
    levels = jnp.round(images * 255).astype(jnp.int32).reshape(len(images), -1, 3)

    def equalize_channel(values: jax.Array) -> jax.Array:
        counts = jnp.bincount(values, length=256)
        step = (len(values) - counts[values.max()]) // 255
        table = (jnp.cumsum(counts) - counts + step // 2) // jnp.maximum(step, 1)
        return jnp.where(step > 0, jnp.clip(table, 0, 255)[values], values)

    equalized = jax.vmap(jax.vmap(equalize_channel, in_axes=1, out_axes=1))(levels)
    return equalized.reshape(images.shape).astype(images.dtype) / 255
