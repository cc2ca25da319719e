"""Test images as other people would have taken them: a fixed, seeded set of changes, each in three strengths.

They measure a network and never train one. So they are written apart from `augment/`, on other tools (NumPy
and Pillow, on uint8, picture by picture): an error of the one is not hidden by the same error of the other. The
idea of changes by kind and strength is that of Hendrycks & Dietterich 2019, arXiv:1903.12261.
"""

import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from flaxresnet.reliability import corruption_ops
from flaxresnet.reliability.background_swap import background
from flaxresnet.reliability.corruption_ops import Photo, Random

STRENGTHS = ("mild", "middle", "strong")


class Corruption(NamedTuple):
    """A kind of change.

    Attributes:
      amounts: of the three strengths, in the units of `change`.
      change: from a photo, an amount and random numbers (which way, where) to a photo of the same shape.
    """

    amounts: tuple[float, float, float]
    change: Callable[[Photo, float, Random], np.ndarray]

    def changed(self, image: Photo, strength: str, random: Random) -> Photo:
        """The photo, changed with a strength of `STRENGTHS`, uint8."""
        new = self.change(image, self.amounts[STRENGTHS.index(strength)], random)
        return new if new.dtype == np.uint8 else np.clip(np.rint(new), 0, 255).astype(np.uint8)


CORRUPTIONS: dict[str, Corruption] = {
    "rotation": Corruption((10, 25, 40), corruption_ops.rotation),
    "scale": Corruption((1.15, 1.35, 1.6), corruption_ops.scale),
    "shift": Corruption((0.08, 0.15, 0.22), corruption_ops.shift),
    "shear": Corruption((0.1, 0.25, 0.4), corruption_ops.shear),
    "perspective": Corruption((0.2, 0.45, 0.7), corruption_ops.perspective),
    "mirror": Corruption((1, 1, 1), corruption_ops.mirror),
    "brightness": Corruption((1.25, 1.6, 2.2), corruption_ops.brightness),
    "contrast": Corruption((1.25, 1.6, 2.2), corruption_ops.contrast),
    "gamma": Corruption((1.25, 1.6, 2.2), corruption_ops.gamma),
    "colour temperature": Corruption((0.1, 0.25, 0.45), corruption_ops.colour_temperature),
    "grey": Corruption((0.4, 0.7, 1), corruption_ops.grey),
    "light gradient": Corruption((0.3, 0.55, 0.8), corruption_ops.light_gradient),
    "shadow": Corruption((0.25, 0.45, 0.65), corruption_ops.shadow),
    "blur": Corruption((0.6, 1.2, 2), corruption_ops.blur),
    "noise": Corruption((8, 18, 35), corruption_ops.noise),
    "jpeg": Corruption((50, 25, 10), corruption_ops.jpeg),
    "low resolution": Corruption((1.5, 2.2, 3.2), corruption_ops.low_resolution),
    "occlusion": Corruption((0.03, 0.07, 0.13), corruption_ops.occlusion),
    "background": Corruption((0, 1, 2), background),
}


def shifted(images: np.ndarray, name: str, strength: str, seed: int = 0) -> np.ndarray:
    """Photos changed, each in its own way, the same ones for a seed.

    Args:
      images: (n, height, width, 3), uint8.
      name: one of `CORRUPTIONS`.
      strength: one of `STRENGTHS`; the draws are the same for all three, so that they differ in the amount alone.
      seed: of the draws.

    Returns:
      Photos of the same shape, uint8.
    """
    own = (seed, zlib.crc32(name.encode()))
    changed = [
        CORRUPTIONS[name].changed(image, strength, np.random.default_rng((*own, i))) for i, image in enumerate(images)
    ]
    return np.stack(changed) if changed else images


def iter_corruptions(
    images: np.ndarray, strengths: tuple[str, ...] = STRENGTHS, without: tuple[str, ...] = ()
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Name, strength and changed photos, kind by kind, some kinds left out."""
    for name in (name for name in CORRUPTIONS if name not in without):
        for strength in strengths:
            yield name, strength, shifted(images, name, strength)


def compose_corruptions(images: np.ndarray, count: int, strength: str, seed: int = 0) -> np.ndarray:
    """Photos that differ in several ways at once, as other people's do: so many kinds of change for each, by chance.

    Args:
      images: (n, height, width, 3), uint8.
      count: kinds of change for each photo, drawn from `CORRUPTIONS`; what is around the thing comes first, the camera
      last.
      strength: one of `STRENGTHS`.
      seed: of the draws.

    Returns:
      Photos of the same shape, uint8.
    """
    kinds = sorted(CORRUPTIONS, key=lambda name: CORRUPTIONS[name].change not in (background, corruption_ops.occlusion))
    changed = []
    for i, image in enumerate(images):
        random = np.random.default_rng((seed, count, i))
        for kind in np.sort(random.choice(len(kinds), count, replace=False)):
            image = CORRUPTIONS[kinds[kind]].changed(image, strength, random)
        changed.append(image)
    return np.stack(changed) if changed else images
