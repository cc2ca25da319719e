"""Decodes image files to upright 8-bit sRGB pixels, in bounded memory."""

import io
import multiprocessing
import os
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from flaxresnet.data.path_checks import require_regular_file
from flaxresnet.runtime.errors import UserError
from flaxresnet.runtime.local_path import require_local

if TYPE_CHECKING:
    import PIL.Image

# Pillow's names of the formats that cameras, phones, scanners and browsers write. Pillow ignores a file's
# suffix, and starts another program for some other formats, such as Ghostscript for EPS. HEIF needs pillow-heif.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF")
MAX_PIXELS = 10**8  # in an image; most phones take photos of 12 to 50 million pixels, and cameras of up to 100 million
BYTES_PER_PIXEL = 25  # most memory while decoding: JPEG 2000 takes this much, JPEG and PNG take a third of it
PIXELS_PER_CORE = 2**24  # pixels decoded at the same time for each core, on average
STRIP_PIXELS = 2**20  # pixels converted at once
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}  # in bytes 8 to 11
SRGB_TOLERANCE = 2  # of 255; a profile that changes no color by more is treated as sRGB
MAX_ALPHA_WARNINGS = 5  # images that a process names in warnings
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")

_alpha_warnings: set[str] = set()  # names of the images in earlier warnings


class PixelBudget:
    """Limits the pixels that all threads decode at the same time."""

    def __init__(self, pixels: int) -> None:
        self._free = pixels
        self._changed = threading.Condition()

    @contextmanager
    def acquire(self, pixels: int) -> Iterator[None]:
        """Waits until `pixels` pixels are free, and reserves them until the context ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()


DECODE_BUDGET = PixelBudget(max(MAX_PIXELS, PIXELS_PER_CORE * (os.cpu_count() or 1)))


def decode(photo: "str | Path | IO[bytes] | PIL.Image.Image") -> np.ndarray:
    """Decodes an image in one of `FORMATS`.

    Applies the EXIF orientation, converts images with a non-sRGB ICC profile to sRGB, composites transparent pixels on
    white, scales 16-bit gray to 8 bits (and ignores its profile), and takes the first frame of an animation. Ignores
    damaged or oversized metadata, and, with a warning, an alpha channel that is 0 in all pixels. Decodes a JPEG of more
    than `MAX_PIXELS` pixels at half its width and height. Takes at most `BYTES_PER_PIXEL` bytes of memory for each
    decoded pixel, plus some MiB.

    Args:
      photo: a path, a binary file that supports seeking, or a Pillow image, which stays unchanged.

    Returns:
      (height, width, 3) uint8 sRGB.

    Raises:
      UserError: if the file does not exist, cannot be decoded as an image, or has more than `MAX_PIXELS` pixels; for a
        JPEG file, if it has more than Pillow's limit of 178 million.
    """
    with open_pixels(photo) as pixels:
        return pixels


@contextmanager
def open_pixels(photo: "str | Path | IO[bytes] | PIL.Image.Image") -> Iterator[np.ndarray]:
    """Yields the pixels that `decode` returns. They count against `DECODE_BUDGET` until the context ends."""
    if isinstance(photo, str | Path):
        require_regular_file(photo)
    with ExitStack() as stack:
        try:
            with warnings.catch_warnings(action="ignore"):
                pixels = _read_pixels(photo, stack)
        except UserError:
            raise
        except FileNotFoundError:
            require_local(str(photo))
            raise UserError(f"{photo} does not exist; give the path of an image") from None
        except Exception as error:  # a decoder may raise anything for a damaged file: struct.error, RuntimeError, …
            advice = "give a JPEG or PNG"
            if _is_heif(photo) and "HEIF" not in formats():
                advice = "pip install pillow-heif to read HEIC, or give a JPEG or PNG"
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if type(error).__name__ == "UnidentifiedImageError":  # Pillow's text repeats the path
                reason = "unknown format"
            raise UserError(f"{photo} cannot be read as an image ({reason}); {advice}") from error
        yield pixels


def image_size_of(photo: str | Path | IO[bytes]) -> tuple[int, int]:
    """Returns (height, width) in pixels from an image file's header, without regard to its EXIF orientation.

    Raises:
      UserError: if the header cannot be read.
    """
    if isinstance(photo, str | Path):
        require_regular_file(photo)
    try:
        with warnings.catch_warnings(action="ignore"), open_image(photo) as file:
            return file.height, file.width
    except Exception as error:  # a decoder may raise anything for a damaged file
        raise UserError(f"{photo} has no header of an image; give a JPEG or PNG") from error


@cache
def formats() -> tuple[str, ...]:
    """Returns the formats of `FORMATS` that the installed packages can read."""
    from PIL import Image

    Image.init()
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _read_pixels(photo: "str | Path | IO[bytes] | PIL.Image.Image", stack: ExitStack) -> np.ndarray:
    """Decodes an image. Its pixels count against `DECODE_BUDGET` until `stack` ends."""
    from PIL import Image

    if isinstance(photo, Image.Image):
        return _decode_opened(photo, photo.copy(), stack)
    try:
        return _decode_opened(photo, open_image(photo), stack)
    except ValueError as error:
        if not _is_text_limit(error):
            raise
    return _decode_opened(photo, Image.open(_without_text(photo), formats=["PNG"]), stack)


def _decode_opened(photo: object, file: "PIL.Image.Image", stack: ExitStack) -> np.ndarray:
    with file, ExitStack() as budget:
        _check_size(photo, file)
        budget.enter_context(DECODE_BUDGET.acquire(file.width * file.height))
        pixels = _pixels(photo, file)
        stack.enter_context(budget.pop_all())
    return pixels


def open_image(photo: str | Path | IO[bytes]) -> "PIL.Image.Image":
    """Opens an image with Pillow and reads its header."""
    from PIL import Image

    try:
        return Image.open(photo, formats=formats())
    except ValueError as error:
        if not _is_text_limit(error):
            raise
    return Image.open(_without_text(photo), formats=["PNG"])


def _is_text_limit(error: ValueError) -> bool:
    """Returns whether Pillow refuses a PNG because its text chunks or its ICC profile are too large."""
    return "MAX_TEXT_" in str(error)


def _without_text(photo: str | Path | IO[bytes]) -> io.BytesIO:
    """Returns a PNG file without its text chunks, and without an ICC profile that is larger than Pillow allows."""
    from PIL import PngImagePlugin

    result = io.BytesIO()
    with ExitStack() as stack:
        file = stack.enter_context(Path(photo).open("rb")) if isinstance(photo, str | Path) else photo
        file.seek(0)
        result.write(file.read(len(PNG_SIGNATURE)))
        while len(header := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", header)
            if kind in PNG_TEXT_CHUNKS:
                file.seek(length + 4, os.SEEK_CUR)
                continue
            body = file.read(length + 4)  # with its checksum
            if kind == b"iCCP":
                inflate = zlib.decompressobj()
                inflate.decompress(body[body.find(0) + 2 : -4], PngImagePlugin.MAX_TEXT_CHUNK)
                if inflate.unconsumed_tail:
                    continue
            result.write(header + body)
    result.seek(0)
    return result


def _check_size(photo: object, file: "PIL.Image.Image") -> None:
    """Has Pillow decode a large JPEG at half its width and height; raises UserError if an image is too large."""
    width, height = file.size
    if width * height > MAX_PIXELS and file.format in ("JPEG", "MPO"):
        file.draft(None, (width // 2, height // 2))  # takes a quarter of the memory
    if file.width * file.height > MAX_PIXELS:
        raise UserError(f"{photo} has {width}×{height} pixels; give an image of up to {MAX_PIXELS // 10**6} million")


def _is_heif(photo: "str | Path | IO[bytes] | PIL.Image.Image") -> bool:
    with suppress(OSError, ValueError, AttributeError):  # AttributeError: not a file
        if isinstance(photo, str | Path):
            with Path(photo).open("rb") as file:
                start = file.read(12)
        else:
            photo.seek(0)
            start = photo.read(12)  # type: ignore[union-attr]
        return start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS
    return False


def _pixels(photo: object, image: "PIL.Image.Image") -> np.ndarray:
    from PIL import ImageOps

    image.load()  # first, so that the errors below come from the metadata
    with suppress(SyntaxError, ValueError, TypeError, KeyError, OverflowError, ZeroDivisionError, struct.error):
        ImageOps.exif_transpose(image, in_place=True)
    convert = _gray16_converter(photo, image) if image.mode.startswith(("I", "F")) else _rgb_converter(photo, image)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top, strip in _strips(image):
        pixels[top : top + strip.height] = convert(strip)
    return pixels


def _strips(image: "PIL.Image.Image") -> Iterator[tuple[int, "PIL.Image.Image"]]:
    """Yields horizontal strips with the number of their first row, so that a conversion copies one strip at a time."""
    rows = max(1, STRIP_PIXELS // max(1, image.width))
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _rgb_converter(photo: object, image: "PIL.Image.Image") -> Callable[["PIL.Image.Image"], np.ndarray]:
    """Returns a function that converts strips of an image with 8 bits a channel to sRGB."""
    from PIL import Image

    has_alpha = image.has_transparency_data
    is_transparent = has_alpha and not _has_zero_alpha(image)
    mode = image.mode
    if is_transparent:
        mode = "RGBA"
    elif has_alpha:
        mode = "RGB"
        _warn_of_zero_alpha(photo)
    elif mode in ("P", "PA"):
        mode = "RGB"
    to_srgb = _to_srgb(image.info.get("icc_profile"), mode)

    def convert(strip: "PIL.Image.Image") -> np.ndarray:
        if has_alpha:
            strip = strip.convert("RGBA")
        strip = strip.convert(mode)
        if to_srgb is not None:
            strip = to_srgb.apply(strip)
        if is_transparent:
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
        return np.asarray(strip.convert("RGB"))

    return convert


def _has_zero_alpha(image: "PIL.Image.Image") -> bool:
    """Returns whether all pixels are fully transparent. Some programs write 32-bit images with an unused alpha."""
    return all(strip.convert("RGBA").getchannel("A").getextrema() == (0, 0) for _, strip in _strips(image))


def _warn_of_zero_alpha(photo: object) -> None:
    """Prints a warning, for at most `MAX_ALPHA_WARNINGS` images. Worker processes print none."""
    name = str(photo) if isinstance(photo, str | Path) else "an image"
    if multiprocessing.parent_process() or name in _alpha_warnings or len(_alpha_warnings) == MAX_ALPHA_WARNINGS:
        return
    _alpha_warnings.add(name)
    ending = "; further images are not named" if len(_alpha_warnings) == MAX_ALPHA_WARNINGS else ""
    print(
        f"warning: {name} has an alpha channel that is 0 in all pixels, so its alpha is ignored{ending}",
        file=sys.stderr,
        flush=True,
    )


@lru_cache(maxsize=8)
def _to_srgb(profile: bytes | None, mode: str) -> Any | None:
    """Returns the transform from a mode and an ICC profile to sRGB; None if it changes nothing or is invalid."""
    from PIL import Image, ImageCms

    if not profile:
        return None
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGBA" if mode == "RGBA" else "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
        )
        levels = np.linspace(0, 255, 9).round().astype(np.uint8)
        colors = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(27, 27, 3)
        probe = Image.fromarray(colors).convert(mode)
        change = np.asarray(transform.apply(probe).convert("RGB"), int) - np.asarray(probe.convert("RGB"), int)
    except Exception:  # a damaged profile, one of another color space, or Pillow without LittleCMS
        return None
    return transform if np.abs(change).max() > SRGB_TOLERANCE else None


def _gray16_converter(photo: object, image: "PIL.Image.Image") -> Callable[["PIL.Image.Image"], np.ndarray]:
    """Returns a function that converts strips of an image in 16-bit, 32-bit or float gray to 8-bit RGB.

    White is 65535 for 16-bit integers. For 32-bit integers, as which Pillow reads some 16-bit files, it is 65535 if a
    pixel of the image exceeds 255, and 255 otherwise. For floats, it is 255 if a pixel exceeds 1, and 1 otherwise.

    Raises:
      UserError: if a pixel is NaN or infinite.
    """
    largest = 0.0
    dtype = np.dtype(np.uint8)
    for _, strip in _strips(image):
        values = np.asarray(strip)
        if not np.isfinite(values).all():
            raise UserError(f"{photo} has pixels that are NaN or infinite; store values from 0 to 1, or from 0 to 255")
        largest = max(largest, float(values.max(initial=0)))
        dtype = values.dtype
    if dtype.kind == "f":
        white = 1.0 if largest <= 1 else 255.0
    else:
        white = 65535.0 if dtype.itemsize == 2 or largest > 255 else 255.0

    def convert(strip: "PIL.Image.Image") -> np.ndarray:
        values = np.asarray(strip).astype(np.float64) * (255 / white)
        gray = np.clip(np.rint(values), 0, 255).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=-1)

    return convert
