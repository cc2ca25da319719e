"""Converts images to the network's input: crop, resize, scale. Training and prediction share this module."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Self, get_args

import jax
import jax.numpy as jnp
import numpy as np

from flaxresnet.data.decode import MAX_PIXELS, open_pixels
from flaxresnet.runtime.errors import UserError

if TYPE_CHECKING:
    import PIL.Image

FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")  # Pillow's
MAX_SIDE = 2**16  # pixels
MAX_INPUT_PIXELS = 2**24  # of an image after resizing: 4096 × 4096; a batch of 32 takes 6 GiB as float32
MAX_NUMBER = 1e30  # of scale, mean and std; float32 can represent it
ResizeMode = Literal["stretch", "crop", "pad"]
Box = tuple[float, float, float, float]  # left, upper, right and lower edge in pixels
Part = Callable[[float, float], Box]  # (height, width) of an image → the box to crop


def is_input_size(size: Sequence[Any], max_pixels: int = MAX_INPUT_PIXELS) -> bool:
    """Returns whether a size is a valid (height, width) of a network's input."""
    if len(size) != 2 or not all(type(side) is int and 1 <= side <= MAX_SIDE for side in size):
        return False
    return math.prod(size) <= max_pixels


def is_number(value: Any) -> bool:
    """Returns whether a value from JSON is a finite number in the range of float32."""
    return type(value) in (int, float) and abs(value) <= MAX_NUMBER


@dataclass(frozen=True)
class Preprocessing:
    """Conversion of an image to the network's input. It is stored with the weights.

    Attributes:
      height: height of the network's input in pixels.
      width: width of the network's input in pixels.
      resize: name of the Pillow filter that resizes an image.
      scale: factor of pixel values in [0, 255].
      mean: subtracted from each channel after scaling, in the network's channel order.
      std: divisor of each channel after that; above 0.
      channels: the network's channel order.
      crop_pct: fraction, in (0, 1], of the largest centered box with the input's aspect ratio; the box is cropped
        before resizing. For 224 × 224, 0.875 equals resizing the shorter side to 256 and cropping the center.
        1 with the `resize_mode` "stretch" resizes the full image.
      resize_mode: handling of images with another aspect ratio than the input. "stretch" resizes height and width
        independently, as the tutorials' `load_img` does. "crop" resizes the shorter side and crops the center. "pad"
        resizes the longer side and adds black borders (letterbox).
    """

    height: int
    width: int
    resize: str = "bicubic"
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    channels: Literal["rgb", "bgr"] = "rgb"
    crop_pct: float = 1.0
    resize_mode: ResizeMode = "stretch"

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as a dict for `json.dumps`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Returns the inverse of `to_json`; fields that an older version did not write take their defaults.

        Raises:
          UserError: if a value is out of range.
        """
        tuples: dict[str, Any] = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        result = cls(**(values | tuples))
        has_triples = all(isinstance(triple, tuple) and len(triple) == 3 for triple in (result.mean, result.std))
        checks = {
            "height and width": is_input_size((result.height, result.width), MAX_PIXELS),  # HDF5 images are not resized
            "resize": result.resize in FILTERS,
            "scale, mean and std": has_triples
            and all(map(is_number, (result.scale, *result.mean, *result.std)))
            and min(result.std) > 0,
            "channels": result.channels in ("rgb", "bgr"),
            "crop_pct": is_number(result.crop_pct) and 0 < result.crop_pct <= 1,
            "resize_mode": result.resize_mode in get_args(ResizeMode),
        }
        for name, is_valid in checks.items():
            if not is_valid:
                raise UserError(f"preprocessing has invalid {name}: {values}")
        return result

    def load(
        self, photo: "str | Path | IO[bytes] | PIL.Image.Image | np.ndarray", part: Part | None = None
    ) -> np.ndarray:
        """Crops and resizes an image to the network's input size.

        Args:
          photo: an image file or a Pillow image (see `decode`), or (h, w, 3) uint8 RGB.
          part: returns the box to crop from the image, after the crop or the borders of `resize_mode`; None crops the
            center box of `crop_pct`.

        Returns:
          (height, width, 3) uint8 RGB.

        Raises:
          UserError: if the file cannot be decoded, or the array has another shape or dtype.
        """
        if isinstance(photo, np.ndarray):
            return self._crop_and_resize(photo, part)
        with open_pixels(photo) as image:
            return self._crop_and_resize(image, part)

    def _crop_and_resize(self, image: np.ndarray, part: Part | None) -> np.ndarray:
        from PIL import Image

        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
            raise UserError(f"an image is {image.shape} {image.dtype}; give (height, width, 3) uint8")
        height, width = image.shape[:2]
        box = self._part_box(part, height, width) if part else self._center_box(height, width)
        if (height, width) == (self.height, self.width) and box == (0, 0, width, height):
            return image
        resample = Image.Resampling[self.resize.upper()]
        inside = _intersection(box, height, width)
        size, corner = self._target(box, inside)
        resized = Image.fromarray(image).resize(size, resample, inside)
        if size == (self.width, self.height):
            return np.asarray(resized)
        canvas = Image.new("RGB", (self.width, self.height))
        canvas.paste(resized, corner)
        return np.asarray(canvas)

    def _target(self, box: Box, inside: Box) -> tuple[tuple[int, int], tuple[int, int]]:
        """Returns the position of the part `inside` of a box in the input: (width, height) and (left, upper)."""
        width, left = _scaled_interval((box[0], box[2]), (inside[0], inside[2]), self.width)
        height, upper = _scaled_interval((box[1], box[3]), (inside[1], inside[3]), self.height)
        return (width, height), (left, upper)

    def crop_pixels(self, photo: np.ndarray) -> np.ndarray:
        """Returns the part of an image, (h, w, 3), that `load` uses, with borders if there are any, without resizing.

        If borders make it larger than `MAX_PIXELS`, returns the result of `load`.
        """
        height, width = photo.shape[:2]
        box = self._center_box(height, width)
        if box == (0, 0, width, height):
            return photo
        left, upper, right, lower = map(round, box)
        if (right - left) * (lower - upper) > MAX_PIXELS:  # wide borders around a narrow photo
            return self.load(photo)
        borders = [(max(0, -upper), max(0, lower - height)), (max(0, -left), max(0, right - width)), (0, 0)]
        padded = np.pad(photo, borders) if np.any(borders) else photo
        left = max(0, left)
        upper = max(0, upper)
        right = max(right + borders[1][0], left + 1)
        lower = max(lower + borders[0][0], upper + 1)
        return padded[upper:lower, left:right]

    def _part_box(self, part: Part, height: int, width: int) -> Box:
        """Returns the box of `part` in an image that is cropped or padded as `resize_mode` asks."""
        left, upper, right, lower = replace(self, crop_pct=1.0)._center_box(height, width)
        box = part(lower - upper, right - left)
        return left + box[0], upper + box[1], left + box[2], upper + box[3]

    def _center_box(self, height: int, width: int) -> Box:
        """Returns the box that becomes the input. With the mode "pad" it may extend beyond the image."""
        if self.resize_mode == "stretch" and self.crop_pct == 1:
            return 0, 0, width, height
        limit = max if self.resize_mode == "pad" else min
        # Pixels of the image for a pixel of the input.
        zoom = self.crop_pct * limit(height / self.height, width / self.width)
        box_height = zoom * self.height
        box_width = zoom * self.width
        return (width - box_width) / 2, (height - box_height) / 2, (width + box_width) / 2, (height + box_height) / 2

    def preprocess_uint8(self, images: jax.Array) -> jax.Array:
        """Converts uint8 RGB images, (…, height, width, 3), to the network's float32 input of the same shape."""
        return self.normalize(images.astype(jnp.float32) / 255)

    def normalize(self, images: jax.Array) -> jax.Array:
        """Converts RGB images in [0, 1], such as augmented ones, to the network's float32 input of the same shape."""
        images = images if self.channels == "rgb" else images[..., ::-1]
        return (images * (255 * self.scale) - jnp.asarray(self.mean)) / jnp.asarray(self.std)


def _intersection(box: Box, height: int, width: int) -> Box:
    """Returns the part of a box that is inside an image of (height, width) pixels."""
    return max(box[0], 0), max(box[1], 0), min(box[2], width), min(box[3], height)


def _scaled_interval(outer: tuple[float, float], inner: tuple[float, float], side: int) -> tuple[int, int]:
    """Returns the length and the start of an interval, in pixels, if the interval `outer` gets the length `side`."""
    border = (outer[1] - outer[0]) - (inner[1] - inner[0])
    if border <= 0:
        return side, 0
    length = max(1, round(side * (inner[1] - inner[0]) / (outer[1] - outer[0])))
    return length, round((side - length) * (inner[0] - outer[0]) / border)


@dataclass(frozen=True)
class RandomCrop:
    """Random box in an image; the same distribution as `crop_erase.random_resized_crop` on the device.

    Attributes:
      min_area: smallest fraction of the image's area, in (0, 1]. The area is uniform from there to 1.
      aspects: range of width / height, sampled log-uniformly from the ratios that fit into the image.
    """

    min_area: float
    aspects: tuple[float, float] = (3 / 4, 4 / 3)

    def __call__(self, height: float, width: float, rng: np.random.Generator) -> Box:
        """Returns a box within an image of (height, width) pixels."""
        area = rng.uniform(self.min_area, 1)
        image_aspect = width / height
        low = max(self.aspects[0], area * image_aspect)
        high = min(self.aspects[1], image_aspect / area)
        aspect = math.exp(rng.uniform(math.log(min(low, high)), math.log(max(low, high))))
        # As fractions of the image.
        box_height = min(1.0, math.sqrt(area * image_aspect / aspect))
        box_width = min(1.0, math.sqrt(area * aspect / image_aspect))
        upper = rng.uniform(0, 1 - box_height)
        left = rng.uniform(0, 1 - box_width)
        return left * width, upper * height, (left + box_width) * width, (upper + box_height) * height
