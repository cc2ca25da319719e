"""Random operations from one list, as TrivialAugment and RandAugment draw them: on the device, keyed by one key.

The fourteen operations are those of both papers, with Pillow's meaning (the tests compare). Every image has its own
operation and strength: those on positions are one affine map, whose matrix depends on the operation; those on colours
are computed for the whole batch and taken where they were drawn, which costs next to nothing beside the network.
Unlike in Pillow, positions outside the image repeat its edge, as everywhere in this project.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from flaxresnet.augment.geometric import sample_bilinear

STRENGTHS = 31  # equal steps from nothing to the whole range, both ends among them


@dataclass(frozen=True)
class AugmentPolicy:
    """How many operations an image gets, how strong, and what the greatest strength of each is.

    Attributes:
      rounds: operations one after another.
      strength: of all of them, from 0 to 1; None to draw one of 31 for each.
      shear: sideways by this share of the distance.
      shift: of the side.
      rotation: degrees.
      colour: brightness, colour, contrast and sharpness are multiplied by 1 ± this.
      bits: of each channel that posterize leaves at the least.
    """

    rounds: int
    strength: float | None
    shear: float
    shift: float
    rotation: float
    colour: float
    bits: int


POLICIES = {
    # Müller & Hutter 2021, arXiv:2103.10158, table 1, the wide ranges; 32 pixels of 224.
    "trivialaugment": AugmentPolicy(
        rounds=1, strength=None, shear=0.99, shift=32 / 224, rotation=135, colour=0.99, bits=2
    ),
    # Cubuk et al. 2019, arXiv:1909.13719: N = 2 operations at M = 9 of 10, in the ranges of AutoAugment
    # (Cubuk et al. 2018, arXiv:1805.09501, table 6), 150 pixels of 331.
    "randaugment": AugmentPolicy(rounds=2, strength=0.9, shear=0.3, shift=150 / 331, rotation=30, colour=0.9, bits=4),
}

Levels = jax.Array  # (batch,), of each image
Map = tuple[jax.Array, jax.Array]  # matrices (batch, 2, 2) and shifts (batch, 2), (y, x), as `sample_bilinear` takes

# What moves pixels: from the strength with a sign, from -1 to 1, to the map's six numbers (yy, yx, xy, xx, y, x).
POSITIONS: dict[str, Callable[[AugmentPolicy, Levels], tuple[jax.typing.ArrayLike, ...]]] = {
    "shear_x": lambda policy, level: (1, 0, level * policy.shear, 1, 0, 0),
    "shear_y": lambda policy, level: (1, level * policy.shear, 0, 1, 0, 0),
    "shift_x": lambda policy, level: (1, 0, 0, 1, 0, 2 * level * policy.shift),
    "shift_y": lambda policy, level: (1, 0, 0, 1, 2 * level * policy.shift, 0),
    "rotate": lambda policy, level: _rotation(jnp.deg2rad(level * policy.rotation)),
}
# What changes colours: from images and the strength with a sign, (batch, 1, 1, 1), to images.
COLOURS: dict[str, Callable[[AugmentPolicy, jax.Array, Levels], jax.Array]] = {
    "brightness": lambda policy, images, level: blend(0.0, images, 1 + level * policy.colour),
    "colour": lambda policy, images, level: blend(grey(images), images, 1 + level * policy.colour),
    "contrast": lambda policy, images, level: blend(mean_grey(images), images, 1 + level * policy.colour),
    "sharpness": lambda policy, images, level: blend(smooth(images), images, 1 + level * policy.colour),
    "posterize": lambda policy, images, level: posterize(images, 8 - jnp.round(jnp.abs(level) * (8 - policy.bits))),
    "solarize": lambda policy, images, level: jnp.where(images > 1 - jnp.abs(level), 1 - images, images),
    "autocontrast": lambda policy, images, level: autocontrast(images),
    "equalize": lambda policy, images, level: equalize(images),
}
OPERATIONS = ("identity", *POSITIONS, *COLOURS)


def apply_policy(key: jax.Array, images: jax.Array, policy: AugmentPolicy) -> jax.Array:
    """Images (batch, height, width, 3), float32 in [0, 1], each changed by operations drawn for it; as they came."""
    for by_round in jax.random.split(key, policy.rounds):
        by_kind, by_level, by_sign = jax.random.split(by_round, 3)
        count = (len(images),)
        kind = jax.random.randint(by_kind, count, 0, len(OPERATIONS))
        drawn = jax.random.randint(by_level, count, 0, STRENGTHS) / (STRENGTHS - 1)
        strength = drawn if policy.strength is None else policy.strength
        images = apply_ops(images, kind, strength * jax.random.rademacher(by_sign, count, jnp.float32), policy)
    return images


def apply_ops(images: jax.Array, kind: jax.Array, level: jax.Array, policy: AugmentPolicy) -> jax.Array:
    """Each image changed by its operation.

    Args:
      images: (batch, height, width, 3), float32, in [0, 1].
      kind: (batch,), places in `OPERATIONS`.
      level: (batch,), strength with a sign, from -1 to 1.
      policy: says what the strengths mean.
    """
    images = sample_bilinear(images, *affine_params(kind, level, policy))
    level = level[:, None, None, None]
    for name, operation in COLOURS.items():
        drawn = (kind == OPERATIONS.index(name))[:, None, None, None]
        images = jnp.where(drawn, operation(policy, images, level), images)
    return jnp.clip(images, 0, 1)


def affine_params(kind: jax.Array, level: jax.Array, policy: AugmentPolicy) -> Map:
    """The affine map of each image: the identity where its operation is one on colours."""
    numbers = jnp.broadcast_to(jnp.array([1.0, 0, 0, 1, 0, 0]), (len(kind), 6))
    for name, operation in POSITIONS.items():
        moved = jnp.stack([jnp.broadcast_to(number, kind.shape) for number in operation(policy, level)], axis=-1)
        numbers = jnp.where((kind == OPERATIONS.index(name))[:, None], moved, numbers)
    return numbers[:, :4].reshape(-1, 2, 2), numbers[:, 4:]


def _rotation(angle: jax.Array) -> tuple[jax.typing.ArrayLike, ...]:
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return cos, -sin, sin, cos, 0, 0


def blend(plain: jax.typing.ArrayLike, images: jax.Array, factor: jax.Array) -> jax.Array:
    """plain + (images - plain) · factor, within [0, 1]: `PIL.ImageEnhance`, whose kinds differ in what is plain."""
    return jnp.clip(plain + (images - plain) * factor, 0, 1)


def grey(images: jax.Array) -> jax.Array:
    """Luma (ITU-R 601), (batch, height, width, 1)."""
    return (images * jnp.array([0.299, 0.587, 0.114])).sum(axis=-1, keepdims=True)


def mean_grey(images: jax.Array) -> jax.Array:
    return grey(images).mean(axis=(1, 2), keepdims=True)


def smooth(images: jax.Array) -> jax.Array:
    """Each pixel five times with its eight neighbours, by 13; the outermost stay (`ImageFilter.SMOOTH`)."""
    inner = jax.lax.reduce_window(images, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "VALID")
    return images.at[:, 1:-1, 1:-1].set((inner + 4 * images[:, 1:-1, 1:-1]) / 13)


def posterize(images: jax.Array, bits: jax.Array) -> jax.Array:
    """The highest of the eight bits of each channel."""
    step = 2 ** (8 - bits)
    return jnp.floor(jnp.round(images * 255) / step) * step / 255


def autocontrast(images: jax.Array) -> jax.Array:
    """Each channel stretched to [0, 1]; one of a single value stays."""
    low, high = images.min(axis=(1, 2), keepdims=True), images.max(axis=(1, 2), keepdims=True)
    return jnp.where(high > low, (images - low) / jnp.where(high > low, high - low, 1), images)


def equalize(images: jax.Array) -> jax.Array:
    """Each channel's 256 levels spread so that all are about as frequent, as `PIL.ImageOps.equalize` does."""
    levels = jnp.round(images * 255).astype(jnp.int32).reshape(len(images), -1, 3)

    def of_channel(values: jax.Array) -> jax.Array:
        counts = jnp.bincount(values, length=256)
        step = (len(values) - counts[values.max()]) // 255
        table = (jnp.cumsum(counts) - counts + step // 2) // jnp.maximum(step, 1)
        return jnp.where(step > 0, jnp.clip(table, 0, 255)[values], values)

    spread = jax.vmap(jax.vmap(of_channel, in_axes=1, out_axes=1))(levels)
    return spread.reshape(images.shape).astype(images.dtype) / 255
