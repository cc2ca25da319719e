"""From a picture to what the network takes: resize, scale. Training and prediction share this file."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np

from flaxresnet.data.decode import MAX_PIXELS, decoded
from flaxresnet.runtime.errors import UserError

FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")  # Pillow's
MAX_SIDE = 2**16  # pixels
MAX_INPUT_PIXELS = 2**24  # pixels that pictures are brought to: 4096 × 4096, of which a batch of 32 is 6 GiB as floats
MAX_NUMBER = 1e30  # of a scale or a mean; float32 has room for it
Box = tuple[float, float, float, float]  # of a part of a picture: left, upper, right, lower, in pixels
Part = Callable[[int, int], Box]  # what to take of a picture of this height and width


def is_input_size(size: Sequence[Any], most: int = MAX_INPUT_PIXELS) -> bool:
    """Whether it is a height and a width that a network's input may have, of so many pixels at most."""
    return (
        len(size) == 2 and all(type(side) is int and 1 <= side <= MAX_SIDE for side in size) and math.prod(size) <= most
    )


def is_number(value: Any) -> bool:
    """Whether a value from JSON is a number that can be computed with: neither NaN nor infinite nor beyond float32."""
    return type(value) in (int, float) and abs(value) <= MAX_NUMBER


@dataclass(frozen=True)
class Preprocessing:
    """How a photo becomes the network's input; stored with the weights.

    Attributes:
      height, width: pixels of the network's input.
      resize: the filter with which a photo is brought to that size, sides independently, as the tutorials' `load_img`
        does: a filter of Pillow's, by name.
      scale: what pixel values 0–255 are multiplied by.
      mean, std: what is then taken off, and divided by, one a channel in the network's order.
      channels: the order in which the network takes them: "rgb" or "bgr".
      crop_pct: below 1, of a photo only the middle is taken, in the input's proportion and this share of the largest
        that there is: 0.875 is the same as bringing the shorter side to 256 and taking the middle 224 × 224.
    """

    height: int
    width: int
    resize: str = "bicubic"
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    channels: Literal["rgb", "bgr"] = "rgb"
    crop_pct: float = 1.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_json`; of runs before there was a mean, too. Raises UserError for what cannot be."""
        tuples: dict[str, Any] = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        made = cls(**(values | tuples))
        triples = (made.mean, made.std)
        fits = {
            "height and width": is_input_size((made.height, made.width), MAX_PIXELS),  # HDF5 has more
            "resize": made.resize in FILTERS,
            "scale, mean and std": all(isinstance(triple, tuple) and len(triple) == 3 for triple in triples)
            and all(map(is_number, (made.scale, *made.mean, *made.std)))
            and min(made.std) > 0,
            "channels": made.channels in ("rgb", "bgr"),
            "crop_pct": is_number(made.crop_pct) and 0 < made.crop_pct <= 1,
        }
        if wrong := [name for name, is_fit in fits.items() if not is_fit]:
            raise UserError(f"preprocessing with {wrong[0]} that cannot be: {values}")
        return made

    def load(self, photo: str | Path | IO[bytes] | np.ndarray, part: Part | None = None) -> np.ndarray:
        """A photo in the network's size: (height, width, 3), uint8. See `decode.decode` for what is read and raised.

        Args:
          photo: a file, or pixels (h, w, 3) uint8.
          part: of the photo; None for the middle that `crop_pct` says, or the whole.
        """
        if isinstance(photo, np.ndarray):
            return self._fitted(photo, part)
        with decoded(photo) as image:
            return self._fitted(image, part)

    def _fitted(self, image: np.ndarray, part: Part | None) -> np.ndarray:
        from PIL import Image

        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
            raise UserError(f"a photo is (height, width, 3) uint8, not {image.shape} {image.dtype}")
        if part is None and self.crop_pct < 1:
            part = self._middle
        if image.shape[:2] == (self.height, self.width) and part is None:
            return image
        resample = Image.Resampling[self.resize.upper()]
        box = part(*image.shape[:2]) if part else None
        return np.asarray(Image.fromarray(image).resize((self.width, self.height), resample, box))

    def crop_pixels(self, photo: np.ndarray) -> np.ndarray:
        """What `load` takes of a photo's pixels, (h, w, 3), as they are."""
        if self.crop_pct == 1:
            return photo
        left, upper, right, lower = map(round, self._middle(*photo.shape[:2]))
        return photo[upper : max(lower, upper + 1), left : max(right, left + 1)]

    def _middle(self, height: int, width: int) -> Box:
        pixels = self.crop_pct * min(height / self.height, width / self.width)  # of the photo, for one of the input
        tall, wide = pixels * self.height, pixels * self.width
        return (width - wide) / 2, (height - tall) / 2, (width + wide) / 2, (height + tall) / 2

    def scaled(self, images: jax.Array) -> jax.Array:
        """uint8 RGB images (…, height, width, 3) as the float32 that the network takes."""
        return self.normalized(images.astype(jnp.float32) / 255)

    def normalized(self, images: jax.Array) -> jax.Array:
        """RGB images in [0, 1], such as augmentation gives, as the float32 that the network takes."""
        images = images if self.channels == "rgb" else images[..., ::-1]
        return (images * (255 * self.scale) - jnp.asarray(self.mean)) / jnp.asarray(self.std)


@dataclass(frozen=True)
class RandomCrop:
    """A random part of a picture, of a random area and proportion, as `crop_erase.crop_maps` takes them on the device.

    Attributes:
      smallest: the smallest share of the picture's area, in (0, 1].
      aspects: range of the part's width by height, drawn evenly, on a logarithmic scale, from what fits.
    """

    smallest: float
    aspects: tuple[float, float] = (3 / 4, 4 / 3)

    def __call__(self, height: int, width: int, rng: np.random.Generator) -> Box:
        """The part of a picture of (height, width) pixels; it lies within it whatever is drawn."""
        area, shape = rng.uniform(self.smallest, 1), width / height
        low, high = max(self.aspects[0], area * shape), min(self.aspects[1], shape / area)
        aspect = math.exp(rng.uniform(math.log(min(low, high)), math.log(max(low, high))))
        tall, wide = min(1.0, math.sqrt(area * shape / aspect)), min(1.0, math.sqrt(area * aspect / shape))
        upper, left = rng.uniform(0, 1 - tall), rng.uniform(0, 1 - wide)
        return left * width, upper * height, (left + wide) * width, (upper + tall) * height
