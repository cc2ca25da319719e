"""Corruptions of test images, as in photos that other people take: a fixed, seeded set in three strengths.

Corruptions evaluate a network and never train it. Their code is therefore independent of `augment/` and uses other
tools: NumPy and Pillow, on one uint8 image at a time. An error in the augmentations thus cannot recur here and go
unnoticed. The idea of corruptions by kind and strength is from Hendrycks & Dietterich 2019, arXiv:1903.12261.
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
    """A kind of corruption.

    Attributes:
      amounts: the amount for each of the three strengths, in the units of `operation`.
      operation: a function from a photo, an amount and a random generator to a photo of the same shape.
    """

    amounts: tuple[float, float, float]
    operation: Callable[[Photo, float, Random], np.ndarray]

    def apply(self, image: Photo, strength: str, random: Random) -> Photo:
        """Returns the corrupted photo, uint8; `strength` is one of `STRENGTHS`."""
        corrupted = self.operation(image, self.amounts[STRENGTHS.index(strength)], random)
        if corrupted.dtype == np.uint8:
            return corrupted
        return np.clip(np.rint(corrupted), 0, 255).astype(np.uint8)


# The names also seed the draws of `corrupt`. A new name changes the corrupted images and therefore recorded results.
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
    "colour temperature": Corruption((0.1, 0.25, 0.45), corruption_ops.color_temperature),
    "grey": Corruption((0.4, 0.7, 1), corruption_ops.grayscale),
    "light gradient": Corruption((0.3, 0.55, 0.8), corruption_ops.light_gradient),
    "shadow": Corruption((0.25, 0.45, 0.65), corruption_ops.shadow),
    "blur": Corruption((0.6, 1.2, 2), corruption_ops.blur),
    "noise": Corruption((8, 18, 35), corruption_ops.noise),
    "jpeg": Corruption((50, 25, 10), corruption_ops.jpeg),
    "low resolution": Corruption((1.5, 2.2, 3.2), corruption_ops.low_resolution),
    "occlusion": Corruption((0.03, 0.07, 0.13), corruption_ops.occlusion),
    "background": Corruption((0, 1, 2), background),
}


def corrupt(images: np.ndarray, name: str, strength: str, seed: int = 0) -> np.ndarray:
    """Applies one corruption to each photo. The draws depend only on the name, the seed and the photo's index.

    Args:
      images: (n, height, width, 3), uint8.
      name: one of `CORRUPTIONS`.
      strength: one of `STRENGTHS`. The draws are the same for all three; only the amount differs.
      seed: seed of the draws.

    Returns:
      Photos of the same shape, uint8.
    """
    name_seed = zlib.crc32(name.encode())
    corrupted = np.empty_like(images)
    for index, image in enumerate(images):
        random = np.random.default_rng((seed, name_seed, index))
        corrupted[index] = CORRUPTIONS[name].apply(image, strength, random)
    return corrupted


def iter_corruptions(
    images: np.ndarray, strengths: tuple[str, ...] = STRENGTHS, without: tuple[str, ...] = ()
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yields name, strength and corrupted photos for each corruption that is not in `without`."""
    for name in CORRUPTIONS:
        if name not in without:
            for strength in strengths:
                yield name, strength, corrupt(images, name, strength)


def compose_corruptions(images: np.ndarray, count: int, strength: str, seed: int = 0) -> np.ndarray:
    """Applies several random corruptions to each photo, because photos by other people differ in several ways at once.

    Args:
      images: (n, height, width, 3), uint8.
      count: number of different corruptions for each photo, at most the number of `CORRUPTIONS`. Occlusion and
        background come first, because changes of the view, the light and the camera apply to them too.
      strength: one of `STRENGTHS`.
      seed: seed of the draws.

    Returns:
      Photos of the same shape, uint8.
    """
    ordered = sorted(CORRUPTIONS, key=lambda name: name not in ("background", "occlusion"))
    corrupted = np.empty_like(images)
    for index, image in enumerate(images):
        random = np.random.default_rng((seed, count, index))
        for choice in np.sort(random.choice(len(ordered), count, replace=False)):
            image = CORRUPTIONS[ordered[choice]].apply(image, strength, random)
        corrupted[index] = image
    return corrupted
