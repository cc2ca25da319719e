"""Decoding of image files: color modes, orientation, ICC profiles, limits, and messages for damaged files."""

import io
import os
import struct
import subprocess
import sys
import threading
import types
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from flaxresnet.data import decode as decoding
from flaxresnet.data.decode import decode
from flaxresnet.data.preprocess import Preprocessing
from flaxresnet.runtime.errors import UserError

RGB = np.random.default_rng(2).integers(0, 256, (5, 7, 3), np.uint8)
GRAY = np.arange(35, dtype=np.uint8).reshape(5, 7) * 7


def save(path, pixels, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def as_rgb(gray):
    return np.repeat(gray[..., None], 3, axis=-1)


def check(decoded, expected, tolerance=0):
    assert decoded.dtype == np.uint8
    assert decoded.shape == expected.shape
    np.testing.assert_allclose(decoded.astype(int), expected.astype(int), rtol=0, atol=tolerance)


def test_png_is_exact(tmp_path):
    check(decode(save(tmp_path / "a.png", RGB)), RGB)


def test_jpeg_is_rgb(tmp_path):
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:, :8] = (200, 30, 60)
    pixels[:, 8:16] = (10, 180, 90)
    pixels[:, 16:] = (40, 70, 220)
    check(decode(save(tmp_path / "a.jpg", pixels, quality=100, subsampling=0)), pixels, tolerance=3)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_gray_becomes_rgb(tmp_path, suffix):
    gray = np.full((8, 8), 77, np.uint8)
    gray[:, 4:] = 200
    check(decode(save(tmp_path / f"a.{suffix}", gray)), as_rgb(gray), tolerance=0 if suffix == "png" else 4)


def test_gray16_becomes_8_bits(tmp_path):
    path = save(tmp_path / "a.png", GRAY.astype(np.uint16) * 257)
    with Image.open(path) as image:
        assert image.mode.startswith("I")
    check(decode(path), as_rgb(GRAY))


def test_gray16_uses_full_range(tmp_path):
    check(
        decode(save(tmp_path / "a.png", np.array([[0, 128, 129, 32768, 65535]], np.uint16))),
        as_rgb(np.array([[0, 0, 1, 128, 255]], np.uint8)),
        tolerance=1,
    )


def test_dark_gray16_stays_dark(tmp_path):
    dark = np.array([[0, 100, 255]], np.uint16)
    check(decode(save(tmp_path / "a.png", dark)), as_rgb(np.array([[0, 0, 1]], np.uint8)))


def test_float_gray_uses_full_range(tmp_path):
    gray = np.array([[0.0, 0.5, 1.0]], np.float32)
    check(decode(save(tmp_path / "a.tiff", gray)), as_rgb(np.array([[0, 128, 255]], np.uint8)), tolerance=1)


def test_bilevel_is_decoded(tmp_path):
    bits = np.array([[True, False, True], [False, False, True]])
    check(decode(save(tmp_path / "a.png", bits)), as_rgb(bits.astype(np.uint8) * 255))


def palette_image():
    """Returns an image with the palette colors red, green and blue in its columns."""
    image = Image.fromarray(np.tile(np.array([0, 1, 2], np.uint8), (2, 1)), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    return image


def test_palette_is_decoded(tmp_path):
    expected = np.tile(np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8), (2, 1, 1))
    check(decode(save(tmp_path / "a.png", palette_image())), expected)


def test_transparent_palette_color_becomes_white(tmp_path):
    expected = np.tile(np.array([[255, 0, 0], [255, 255, 255], [0, 0, 255]], np.uint8), (2, 1, 1))
    check(decode(save(tmp_path / "a.png", palette_image(), transparency=1)), expected)


def test_palette_alpha_is_composited_on_white(tmp_path):
    path = save(tmp_path / "a.png", palette_image(), transparency=bytes([255, 0, 128]))
    expected = np.tile(np.array([[255, 0, 0], [255, 255, 255], [127, 127, 255]], np.uint8), (2, 1, 1))
    check(decode(path), expected, tolerance=1)


def test_alpha_is_composited_on_white(tmp_path):
    alpha = np.linspace(0, 255, 35).astype(np.uint8).reshape(5, 7, 1)
    opacity = alpha / 255
    expected = np.rint(RGB * opacity + 255 * (1 - opacity))
    check(decode(save(tmp_path / "a.png", np.concatenate([RGB, alpha], axis=-1))), expected, tolerance=1)


def test_gray_alpha_is_composited_on_white(tmp_path):
    pixels = np.stack([GRAY, np.full_like(GRAY, 51)], axis=-1)
    expected = as_rgb(np.rint(GRAY * 0.2 + 255 * 0.8))
    check(decode(save(tmp_path / "a.png", Image.fromarray(pixels, "LA"))), expected, tolerance=1)


def test_transparent_rgb_color_becomes_white(tmp_path):
    pixels = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    check(
        decode(save(tmp_path / "a.png", pixels, transparency=(1, 2, 3))),
        np.array([[[255, 255, 255], [4, 5, 6]]], np.uint8),
    )


@pytest.mark.parametrize(
    ("cmyk", "rgb"),
    [((0, 255, 255, 0), (255, 0, 0)), ((255, 0, 0, 0), (0, 255, 255)), ((0, 0, 0, 102), (153, 153, 153))],
    ids=["red", "cyan", "gray"],
)
def test_cmyk_jpeg_becomes_rgb(tmp_path, cmyk, rgb):
    path = save(tmp_path / "a.jpg", Image.new("CMYK", (16, 8), cmyk), quality=100)
    with Image.open(path) as image:
        assert image.mode == "CMYK"
    check(decode(path), np.tile(np.array(rgb, np.uint8), (8, 16, 1)), tolerance=3)


def test_animation_gives_first_frame(tmp_path):
    first = Image.new("RGB", (4, 3), (255, 0, 0))
    second = Image.new("RGB", (4, 3), (0, 0, 255))
    path = save(tmp_path / "a.gif", first, save_all=True, append_images=[second], duration=100)
    with Image.open(path) as image:
        assert image.n_frames == 2
    check(decode(path), np.tile(np.array([255, 0, 0], np.uint8), (3, 4, 1)))


# EXIF 2.3, tag 0x0112: the side of the upright image at which the stored row 0 and column 0 are.
STORED_PIXEL = {
    1: lambda up, row, column: up[row, column],  # top, left
    2: lambda up, row, column: up[row, -1 - column],  # top, right
    3: lambda up, row, column: up[-1 - row, -1 - column],  # bottom, right
    4: lambda up, row, column: up[-1 - row, column],  # bottom, left
    5: lambda up, row, column: up[column, row],  # left, top
    6: lambda up, row, column: up[column, -1 - row],  # right, top
    7: lambda up, row, column: up[-1 - column, -1 - row],  # right, bottom
    8: lambda up, row, column: up[-1 - column, row],  # left, bottom
}


def stored_as(upright, orientation):
    height, width = upright.shape[:2] if orientation < 5 else upright.shape[1::-1]
    rows = [[STORED_PIXEL[orientation](upright, row, column) for column in range(width)] for row in range(height)]
    return np.array(rows, np.uint8)


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_png(tmp_path, orientation):
    check(decode(save(tmp_path / "a.png", stored_as(RGB, orientation), exif=exif(orientation))), RGB)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_jpeg(tmp_path, orientation):
    colors = np.random.default_rng(3).integers(0, 256, (2, 3, 3), np.uint8)
    upright = colors.repeat(8, axis=0).repeat(8, axis=1)  # JPEG preserves uniform 8×8 blocks
    path = save(tmp_path / "a.jpg", stored_as(upright, orientation), exif=exif(orientation), quality=100, subsampling=0)
    check(decode(path), upright, tolerance=3)


def test_orientation_of_rgba_and_gray16(tmp_path):
    rgba = np.concatenate([RGB, np.zeros((5, 7, 1), np.uint8)], axis=-1)
    rgba[0, 0, 3] = 255
    expected = np.full((5, 7, 3), 255)
    expected[0, 0] = RGB[0, 0]
    check(decode(save(tmp_path / "a.png", stored_as(rgba, 6), exif=exif(6))), expected)
    wide = stored_as(as_rgb(GRAY), 6)[..., 0].astype(np.uint16) * 257
    check(decode(save(tmp_path / "b.png", wide, exif=exif(6))), as_rgb(GRAY))


def test_decode_takes_path_or_file(tmp_path):
    path = save(tmp_path / "a.png", RGB)
    check(decode(str(path)), RGB)
    check(decode(path), RGB)
    check(decode(io.BytesIO(path.read_bytes())), RGB)
    with path.open("rb") as file:
        check(decode(file), RGB)


def half_a_jpeg(path):
    save(path, np.random.default_rng(5).integers(0, 256, (64, 64, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:2000])


# Damage → (file name, function that writes the file, message).
MISTAKES = {
    "missing": ("a.jpg", lambda path: None, r"a\.jpg does not exist; give the path of an image"),
    "text": (
        "a.jpg",
        lambda path: path.write_text("not an image"),
        r"a\.jpg cannot be read as an image \(unknown format\); give a JPEG or PNG",
    ),
    "empty": ("a.png", lambda path: path.touch(), r"a\.png cannot be read as an image \(unknown format"),
    "truncated": ("a.jpg", half_a_jpeg, r"a\.jpg cannot be read as an image \(.*truncated.*\); give a JPEG"),
    "folder": ("a.jpg", lambda path: path.mkdir(), r"a\.jpg cannot be read as an image \(.*Is a directory.*\)"),
}


@pytest.mark.parametrize(("name", "make", "message"), MISTAKES.values(), ids=MISTAKES.keys())
@pytest.mark.parametrize("read", [decode, Preprocessing(4, 4).load], ids=["decode", "load"])
def test_damaged_file_is_named(tmp_path, name, make, message, read):
    make(tmp_path / name)
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_pillow_limit_is_reported(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", RGB)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 17)  # Pillow refuses more than twice as many
    with pytest.raises(UserError, match=r"a\.png cannot be read as an image \(Image size \(35 pixels\) exceeds limit"):
        decode(path)


def test_damaged_open_file_is_rejected():
    with pytest.raises(UserError, match="cannot be read as an image"):
        decode(io.BytesIO(b"not an image"))


def test_decompression_bomb_is_rejected(tmp_path):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    side = 50_000  # 7.5 GB of pixels in a small file
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))
    with pytest.raises(UserError, match=r"bomb\.png cannot be read as an image \(Image size \(2500000000 pixels\)"):
        decode(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_pixels_are_rejected(tmp_path, value):
    gray = np.full((1500, 1000), 0.5, np.float32)  # more than one strip
    gray[-1, -1] = value
    with pytest.raises(UserError, match=r"a\.tiff has pixels that are NaN or infinite; store values from 0 to 1"):
        decode(save(tmp_path / "a.tiff", gray))


def test_postscript_starts_no_program(tmp_path, monkeypatch):
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(UserError, match=r"a\.jpg cannot be read as an image \(unknown format"):
        decode(tmp_path / "a.jpg")
    assert not (tmp_path / "started").exists()


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


@pytest.fixture
def fresh_formats():
    decoding.formats.cache_clear()
    yield
    decoding.formats.cache_clear()


@pytest.mark.parametrize("opened", [False, True])
def test_heic_names_missing_package(tmp_path, monkeypatch, fresh_formats, opened):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    (tmp_path / "a.heic").write_bytes(HEIC)
    message = r"cannot be read as an image \(.*\); pip install pillow-heif to read HEIC, or give a JPEG or PNG"
    with pytest.raises(UserError, match=message):
        decode(io.BytesIO(HEIC) if opened else tmp_path / "a.heic")


def test_heic_opener_is_registered(tmp_path, monkeypatch, fresh_formats):
    from PIL import PngImagePlugin

    def register():
        monkeypatch.setitem(Image.OPEN, "HEIF", (PngImagePlugin.PngImageFile, None))
        monkeypatch.setattr(Image, "ID", [*Image.ID, "HEIF"])

    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
    assert "HEIF" in decoding.formats()
    monkeypatch.delitem(Image.OPEN, "PNG")  # so that the HEIF opener reads it
    decoding.formats.cache_clear()
    check(decode(io.BytesIO(png_of(RGB))), RGB)


def png_of(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_heic_is_decoded(tmp_path):
    heif = pytest.importorskip("pillow_heif", reason="install pillow-heif to read HEIC")
    colors = np.full((64, 64, 3), (200, 30, 60), np.uint8)
    heif.from_pillow(Image.fromarray(colors)).save(tmp_path / "a.heic", quality=95)
    check(decode(tmp_path / "a.heic"), colors, tolerance=6)


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# A profile whose red and green primaries are swapped.
SWAPPED = SRGB.replace(b"rXYZ", b"????", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"????", b"gXYZ", 1)
COLORS = np.array([[[200, 30, 60], [10, 180, 90], [255, 255, 255]]], np.uint8)


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
def test_profile_converts_to_srgb(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(tmp_path / f"a.{suffix}", COLORS, icc_profile=SWAPPED, **options)
    check(decode(path), COLORS[..., [1, 0, 2]], tolerance=2)


def test_profile_applies_to_alpha_and_palette(tmp_path):
    rgba = np.dstack([COLORS, np.array([[255, 0, 255]], np.uint8)])
    expected = COLORS[..., [1, 0, 2]].copy()
    expected[:, 1] = 255
    check(decode(save(tmp_path / "a.png", rgba, icc_profile=SWAPPED)), expected, tolerance=2)
    green_first = np.tile(np.array([[0, 255, 0], [255, 0, 0], [0, 0, 255]], np.uint8), (2, 1, 1))
    check(decode(save(tmp_path / "b.png", palette_image(), icc_profile=SWAPPED)), green_first, tolerance=2)


@pytest.mark.parametrize(
    "profile", [SRGB, b"no profile", SWAPPED[:200], b""], ids=["sRGB", "text", "truncated", "empty"]
)
def test_useless_profile_is_ignored(tmp_path, profile):
    noise = np.random.default_rng(6).integers(0, 256, (300, 300, 3), np.uint8)
    check(decode(save(tmp_path / "a.png", noise, icc_profile=profile)), noise)


def test_rgb_profile_of_gray_is_ignored(tmp_path):
    check(decode(save(tmp_path / "a.png", GRAY, icc_profile=SWAPPED)), as_rgb(GRAY))
    wide = GRAY.astype(np.uint16) * 257
    check(decode(save(tmp_path / "b.png", wide, icc_profile=SWAPPED)), as_rgb(GRAY))


def test_strips_are_joined(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "STRIP_PIXELS", 14)  # two rows
    check(decode(save(tmp_path / "a.png", RGB)), RGB)
    check(decode(save(tmp_path / "b.png", GRAY.astype(np.uint16) * 257)), as_rgb(GRAY))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16", "P"])
def test_large_image_is_rejected(tmp_path, monkeypatch, mode):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 34)
    path = save(tmp_path / "a.png", Image.new(mode, (7, 5)))
    with pytest.raises(UserError, match=r"a\.png has 7×5 pixels; give an image of up to 0 million"):
        decode(path)


def test_large_jpeg_is_decoded_at_half_size(tmp_path, monkeypatch):
    colors = np.full((64, 96, 3), (200, 30, 60), np.uint8)
    path = save(tmp_path / "a.jpg", colors, quality=100, subsampling=0, exif=exif(6))
    monkeypatch.setattr(decoding, "MAX_PIXELS", 64 * 96 - 1)
    check(decode(path), colors[:48, :32].reshape(48, 32, 3), tolerance=3)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 64 * 96 // 4 - 1)
    with pytest.raises(UserError, match=r"a\.jpg has 96×64 pixels; give an image of up to"):
        decode(path)


# Prints the peak memory of decoding each image, in a process that resets its peak before each one.
PEAK_MEMORY_SCRIPT = """
import sys
from pathlib import Path
from flaxresnet.data.decode import decode, formats

def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])

formats()
for path in sys.argv[1:]:
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    decode(path)
    print((peak() - before) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not report peak memory")
def test_decoding_memory_is_bounded(tmp_path):
    side = 3000
    cases = [
        ("grey.png", "I;16", {}),
        ("alpha.png", "RGBA", {}),
        ("a.tiff", "F", {"compression": "tiff_deflate"}),
        ("a.gif", "P", {}),
        ("a.jpg", "RGB", {"exif": exif(6)}),
        ("a.webp", "RGBA", {"lossless": True}),
    ]
    paths = []
    for name, mode, options in cases:
        paths.append(save(tmp_path / name, Image.new(mode, (side, side - 8)), **options))
    done = subprocess.run(
        [sys.executable, "-c", PEAK_MEMORY_SCRIPT, *paths], capture_output=True, text=True, check=True
    )
    for path, peak in zip(paths, done.stdout.split(), strict=True):
        assert side**2 < int(peak) < decoding.BYTES_PER_PIXEL * side**2 + 2**26, path.name


def test_pixel_budget_blocks_threads():
    budget = decoding.PixelBudget(10)
    acquired = threading.Event()

    def acquire():
        with budget.acquire(6):
            acquired.set()

    with budget.acquire(5):
        thread = threading.Thread(target=acquire)
        thread.start()
        assert not acquired.wait(0.2)
    assert acquired.wait(10)
    thread.join()
    with pytest.raises(KeyError), budget.acquire(10):
        raise KeyError  # releases the pixels
    with budget.acquire(10):
        pass


def test_decoding_acquires_pixel_budget(tmp_path, monkeypatch):
    acquired = []

    class RecordingBudget(decoding.PixelBudget):
        def acquire(self, pixels):
            acquired.append(pixels)
            return super().acquire(pixels)

    monkeypatch.setattr(decoding, "DECODE_BUDGET", RecordingBudget(100))
    path = save(tmp_path / "a.png", RGB)
    decode(path)
    Preprocessing(4, 4).load(path)
    with decoding.open_pixels(path):
        assert decoding.DECODE_BUDGET._free == 65
    assert acquired == [35, 35, 35]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_pipe_is_rejected(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(UserError, match=r"a\.jpg is a pipe or a device"):
        decode(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="/dev/zero is a pipe or a device"):
        decode("/dev/zero")


OPAQUE = {"png": {}, "tiff": {}, "webp": {"lossless": True, "exact": True}}


def test_zero_alpha_of_bmp_is_ignored(tmp_path):
    """Version 4 of a BMP's header names the bits of alpha, which Pillow writes without names."""
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, 7, -5, 1, 32, 3, 4 * 35, 0, 0, 0, 0) + masks + bytes(52)
    pixels = np.concatenate([RGB[..., ::-1], np.zeros_like(RGB[..., :1])], axis=-1).tobytes()
    path = tmp_path / "a.bmp"
    path.write_bytes(struct.pack("<2sIHHI", b"BM", 122 + len(pixels), 0, 0, 122) + header + pixels)
    with Image.open(path) as image:
        assert image.mode == "RGBA"
    check(decode(path), RGB)


@pytest.mark.parametrize(("suffix", "options"), OPAQUE.items())
def test_zero_alpha_is_ignored(tmp_path, capsys, monkeypatch, suffix, options):
    monkeypatch.setattr(decoding, "_alpha_warnings", set())
    pixels = np.concatenate([RGB, np.zeros_like(RGB[..., :1])], axis=-1)
    path = save(tmp_path / f"a.{suffix}", pixels, **options)
    check(decode(path), RGB)
    check(decode(path), RGB)
    assert (
        capsys.readouterr().err
        == f"warning: {path} has an alpha channel that is 0 in all pixels, so its alpha is ignored\n"
    )


def test_transparent_palette_is_ignored(tmp_path, capsys):
    path = save(tmp_path / "a.png", palette_image(), transparency=bytes(3))
    check(decode(path), np.asarray(palette_image().convert("RGB")))
    gray = save(tmp_path / "b.png", Image.fromarray(np.stack([GRAY, np.zeros_like(GRAY)], axis=-1), "LA"))
    check(decode(gray), as_rgb(GRAY))
    assert "alpha channel that is 0" in capsys.readouterr().err


def test_alpha_warnings_are_limited(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(decoding, "_alpha_warnings", set())
    for number in range(decoding.MAX_ALPHA_WARNINGS + 2):
        decode(save(tmp_path / f"{number}.png", np.zeros((4, 4, 4), np.uint8)))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == decoding.MAX_ALPHA_WARNINGS
    assert lines[-1].endswith("; further images are not named")


def png_with(**metadata):
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "png", **metadata)
    return buffer.getvalue()


def png_texts():
    """Yields PNGs of `RGB` with more text, or a larger ICC profile, than Pillow reads."""
    text = PngImagePlugin.PngInfo()
    text.add_text("prompt", "x" * 2_000_000, zip=True)
    yield png_with(pnginfo=text)
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", "x" * 2_000_000, zip=True)
    yield png_with(pnginfo=text, icc_profile=b"not a profile")
    yield png_with(icc_profile=bytes(2_000_000))
    body = b"prompt\0\0" + zlib.compress(b"x" * 2_000_000)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    yield png_with()[:-12] + chunk + png_with()[-12:]  # after the pixels


def test_png_with_large_text_is_read(tmp_path):
    path = tmp_path / "a.png"
    for content in png_texts():
        path.write_bytes(content)
        check(decode(path), RGB)
        check(decode(io.BytesIO(content)), RGB)


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_damaged_exif_is_ignored(tmp_path, suffix):
    path = save(tmp_path / f"a.{suffix}", RGB, exif=b"Exif\0\0garbage", **OPAQUE[suffix])
    check(decode(path), RGB)


def test_decode_takes_pillow_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(save(tmp_path / "a.png", RGB, exif=exif)) as image:
        check(decode(image), decode(tmp_path / "a.png"))
        assert image.size == (7, 5)
