"""From a picture file to its pixels: upright, in sRGB, 8 bits a channel, in memory that is bounded."""

import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from flaxresnet.data.path_checks import require_regular_file
from flaxresnet.runtime.errors import UserError

if TYPE_CHECKING:
    import PIL.Image

# Pillow's names of what cameras, telephones, scanners and browsers make. It knows many more, some of which it hands to
# other programs by what is in the file, such as EPS to Ghostscript. HEIF is there where pillow-heif is installed.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF")
MAX_PIXELS = 10**8  # of a picture that is decoded; telephones' have 12 to 50 million, cameras' up to 100
BYTES_A_PIXEL = 25  # at most, while a picture is decoded: JPEG 2000 takes so much, JPEG and PNG a third of it
PIXELS_A_CORE = 2**24  # of pictures that are decoded at one time, on average
STRIP = 2**20  # pixels that are converted together
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}  # in bytes 8 to 11
SRGB_TOLERANCE = 2  # of 255: a profile that moves no colour further says that the picture is in sRGB


class PixelBudget:
    """Lets so many pixels in at one time; who brings more waits."""

    def __init__(self, pixels: int) -> None:
        self._free, self._changed = pixels, threading.Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()


DECODE_BUDGET = PixelBudget(max(MAX_PIXELS, PIXELS_A_CORE * (os.cpu_count() or 1)))


def decode(photo: str | Path | IO[bytes]) -> np.ndarray:
    """Reads a picture in one of `FORMATS` as (height, width, 3) uint8 RGB.

    EXIF rotation is applied, colours in another profile are brought to sRGB, transparency is laid on white, 16-bit grey
    is brought to 8 bits, its profile ignored; of an animation the first frame is taken. A JPEG of more than
    `MAX_PIXELS` is decoded at half its size, up to Pillow's own limit of 178 million. It takes `BYTES_A_PIXEL` of
    memory at most, and some MiB.

    Raises:
      UserError: there is no such file, it is no picture that can be decoded, or it has more than `MAX_PIXELS`.
    """
    with decoded(photo) as pixels:
        return pixels


@contextmanager
def decoded(photo: str | Path | IO[bytes]) -> Iterator[np.ndarray]:
    """As `decode`; within, the picture counts among those decoded at one time, of which there may be only so many."""
    if isinstance(photo, str | Path):
        require_regular_file(photo)
    with ExitStack() as stack:
        try:
            with warnings.catch_warnings(action="ignore"), _opened(photo) as file:
                stack.enter_context(DECODE_BUDGET.taken(file.width * file.height))
                pixels = _pixels(photo, file)
        except UserError:
            raise
        except FileNotFoundError:
            raise UserError(f"{photo} does not exist; give the path of a picture") from None
        except Exception as error:  # a decoder may raise anything for a damaged file: struct.error, RuntimeError, …
            advice = "give a JPEG, PNG or the like"
            if _is_heif(photo) and "HEIF" not in formats():
                advice = "pip install pillow-heif, which reads HEIC, or give a JPEG or PNG"
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if type(error).__name__ == "UnidentifiedImageError":  # Pillow's, whose text has the path once more
                reason = "of no kind that is known"
            raise UserError(f"{photo} cannot be read as a picture ({reason}); {advice}") from error
        yield pixels


@cache
def formats() -> tuple[str, ...]:
    """Those of `FORMATS` that can be read here."""
    from PIL import Image

    Image.init()
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _opened(photo: str | Path | IO[bytes]) -> "PIL.Image.Image":
    """The file with its header read; raises UserError where it has too many pixels to be decoded."""
    from PIL import Image

    file = Image.open(photo, formats=formats())
    width, height = file.size
    if width * height > MAX_PIXELS and file.format in ("JPEG", "MPO"):
        file.draft(None, (width // 2, height // 2))  # which takes a quarter of the memory
    if file.width * file.height > MAX_PIXELS:
        file.close()
        raise UserError(f"{photo} has {width}×{height} pixels; give a picture of up to {MAX_PIXELS // 10**6} million")
    return file


def _is_heif(photo: str | Path | IO[bytes]) -> bool:
    with suppress(OSError, ValueError):
        if isinstance(photo, str | Path):
            with Path(photo).open("rb") as file:
                start = file.read(12)
        else:
            photo.seek(0)
            start = photo.read(12)
        return start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS
    return False


def _pixels(photo: str | Path | IO[bytes], image: "PIL.Image.Image") -> np.ndarray:
    from PIL import ImageOps

    ImageOps.exif_transpose(image, in_place=True)
    convert = _gray16_converter(photo, image) if image.mode.startswith(("I", "F")) else _rgb_converter(image)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top, strip in _strips(image):
        pixels[top : top + strip.height] = convert(strip)
    return pixels


def _strips(image: "PIL.Image.Image") -> Iterator[tuple[int, "PIL.Image.Image"]]:
    """A picture from above to below, each part with its first row: what is done with one copies no more than that."""
    rows = max(1, STRIP // max(1, image.width))
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _rgb_converter(image: "PIL.Image.Image") -> Callable[["PIL.Image.Image"], np.ndarray]:
    """How strips of a picture of 8 bits a channel become sRGB."""
    from PIL import Image

    see_through = image.has_transparency_data
    mode = "RGBA" if see_through else "RGB" if image.mode in ("P", "PA") else image.mode
    to_srgb = _to_srgb(image.info.get("icc_profile"), mode)

    def convert(strip: "PIL.Image.Image") -> np.ndarray:
        strip = strip.convert(mode)
        if to_srgb is not None:
            strip = to_srgb.apply(strip)
        if see_through:
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
        return np.asarray(strip.convert("RGB"))

    return convert


@lru_cache(maxsize=8)
def _to_srgb(profile: bytes | None, mode: str) -> Any | None:
    """What brings colours of a mode and an ICC profile to sRGB; None where they are there, or the profile is no use."""
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
        steps = np.linspace(0, 255, 9).round().astype(np.uint8)
        some = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(27, 27, 3)
        probe = Image.fromarray(some).convert(mode)
        moved = np.asarray(transform.apply(probe).convert("RGB"), int) - np.asarray(probe.convert("RGB"), int)
    except Exception:  # a damaged profile, one of another kind of colours, Pillow without LittleCMS
        return None
    return transform if np.abs(moved).max() > SRGB_TOLERANCE else None


def _gray16_converter(
    photo: str | Path | IO[bytes], image: "PIL.Image.Image"
) -> Callable[["PIL.Image.Image"], np.ndarray]:
    """How strips of grey of more than 8 bits become RGB: 16 bits are brought to 8, floats in [0, 1] to 0–255.

    Pillow gives 16-bit grey as 32-bit integers at times, so the values, not the type, tell 8 bits from 16.
    """
    largest, kind = 0.0, np.dtype(np.uint8)
    for _, strip in _strips(image):
        values = np.asarray(strip)
        if not np.isfinite(values).all():
            raise UserError(f"{photo} has pixels that are NaN or infinite; store finite ones, from 0 to 1 or to 255")
        largest, kind = max(largest, float(values.max(initial=0))), values.dtype
    if kind.kind == "f":
        full = 1.0 if largest <= 1 else 255.0
    else:
        full = 65535.0 if kind.itemsize == 2 or largest > 255 else 255.0

    def convert(strip: "PIL.Image.Image") -> np.ndarray:
        grey = np.clip(np.rint(np.asarray(strip).astype(np.float64) * (255 / full)), 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)

    return convert
