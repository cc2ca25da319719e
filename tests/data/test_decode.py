"""From a picture file to its pixels: every kind, turned upright, and what is refused."""

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
from PIL import Image, ImageCms

from flaxresnet.data import decode as decoding
from flaxresnet.data.decode import decode
from flaxresnet.data.preprocess import Preprocessing
from flaxresnet.runtime.errors import UserError

RGB = np.random.default_rng(2).integers(0, 256, (5, 7, 3), np.uint8)
GREY = np.arange(35, dtype=np.uint8).reshape(5, 7) * 7


def save(path, pixels, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def as_rgb(grey):
    return np.repeat(grey[..., None], 3, axis=-1)


def check(decoded, expected, tolerance=0):
    assert decoded.dtype == np.uint8
    assert decoded.shape == expected.shape
    np.testing.assert_allclose(decoded.astype(int), expected.astype(int), rtol=0, atol=tolerance)


def test_rgb_png_is_decoded_exactly(tmp_path):
    check(decode(save(tmp_path / "a.png", RGB)), RGB)


def test_rgb_jpeg_is_decoded_as_rgb(tmp_path):
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:, :8], pixels[:, 8:16], pixels[:, 16:] = (200, 30, 60), (10, 180, 90), (40, 70, 220)
    check(decode(save(tmp_path / "a.jpg", pixels, quality=100, subsampling=0)), pixels, tolerance=3)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_grey_becomes_three_equal_channels(tmp_path, suffix):
    grey = np.full((8, 8), 77, np.uint8)
    grey[:, 4:] = 200
    check(decode(save(tmp_path / f"a.{suffix}", grey)), as_rgb(grey), tolerance=0 if suffix == "png" else 4)


def test_grey_of_16_bits_is_brought_to_8(tmp_path):
    path = save(tmp_path / "a.png", GREY.astype(np.uint16) * 257)
    with Image.open(path) as image:
        assert image.mode.startswith("I")
    check(decode(path), as_rgb(GREY))


def test_grey_of_16_bits_spans_black_to_white(tmp_path):
    check(
        decode(save(tmp_path / "a.png", np.array([[0, 128, 129, 32768, 65535]], np.uint16))),
        as_rgb(np.array([[0, 0, 1, 128, 255]], np.uint8)),
        tolerance=1,
    )


def test_grey_of_16_bits_stays_dark_where_all_of_it_is_dark(tmp_path):
    dark = np.array([[0, 100, 255]], np.uint16)
    check(decode(save(tmp_path / "a.png", dark)), as_rgb(np.array([[0, 0, 1]], np.uint8)))


def test_floats_in_0_to_1_span_black_to_white(tmp_path):
    grey = np.array([[0.0, 0.5, 1.0]], np.float32)
    check(decode(save(tmp_path / "a.tiff", grey)), as_rgb(np.array([[0, 128, 255]], np.uint8)), tolerance=1)


def test_bilevel_becomes_black_and_white(tmp_path):
    bits = np.array([[True, False, True], [False, False, True]])
    check(decode(save(tmp_path / "a.png", bits)), as_rgb(bits.astype(np.uint8) * 255))


def palette_image():
    """Colours 0, 1, 2 in columns: red, green, blue."""
    image = Image.fromarray(np.tile(np.array([0, 1, 2], np.uint8), (2, 1)), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    return image


def test_palette_indices_become_their_colours(tmp_path):
    expected = np.tile(np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8), (2, 1, 1))
    check(decode(save(tmp_path / "a.png", palette_image())), expected)


def test_a_transparent_palette_colour_becomes_white(tmp_path):
    expected = np.tile(np.array([[255, 0, 0], [255, 255, 255], [0, 0, 255]], np.uint8), (2, 1, 1))
    check(decode(save(tmp_path / "a.png", palette_image(), transparency=1)), expected)


def test_palette_colours_with_alpha_are_laid_on_white(tmp_path):
    path = save(tmp_path / "a.png", palette_image(), transparency=bytes([255, 0, 128]))
    expected = np.tile(np.array([[255, 0, 0], [255, 255, 255], [127, 127, 255]], np.uint8), (2, 1, 1))
    check(decode(path), expected, tolerance=1)


def test_alpha_is_laid_on_white(tmp_path):
    alpha = np.linspace(0, 255, 35).astype(np.uint8).reshape(5, 7, 1)
    share = alpha / 255
    expected = np.rint(RGB * share + 255 * (1 - share))
    check(decode(save(tmp_path / "a.png", np.concatenate([RGB, alpha], axis=-1))), expected, tolerance=1)


def test_grey_with_alpha_is_laid_on_white(tmp_path):
    pixels = np.stack([GREY, np.full_like(GREY, 51)], axis=-1)
    expected = as_rgb(np.rint(GREY * 0.2 + 255 * 0.8))
    check(decode(save(tmp_path / "a.png", Image.fromarray(pixels, "LA"))), expected, tolerance=1)


def test_a_transparent_rgb_colour_becomes_white(tmp_path):
    pixels = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    check(
        decode(save(tmp_path / "a.png", pixels, transparency=(1, 2, 3))),
        np.array([[[255, 255, 255], [4, 5, 6]]], np.uint8),
    )


@pytest.mark.parametrize(
    ("cmyk", "rgb"),
    [((0, 255, 255, 0), (255, 0, 0)), ((255, 0, 0, 0), (0, 255, 255)), ((0, 0, 0, 102), (153, 153, 153))],
    ids=["red", "cyan", "grey"],
)
def test_cmyk_jpeg_becomes_rgb(tmp_path, cmyk, rgb):
    path = save(tmp_path / "a.jpg", Image.new("CMYK", (16, 8), cmyk), quality=100)
    with Image.open(path) as image:
        assert image.mode == "CMYK"
    check(decode(path), np.tile(np.array(rgb, np.uint8), (8, 16, 1)), tolerance=3)


def test_the_first_frame_of_an_animation_is_taken(tmp_path):
    first, second = Image.new("RGB", (4, 3), (255, 0, 0)), Image.new("RGB", (4, 3), (0, 0, 255))
    path = save(tmp_path / "a.gif", first, save_all=True, append_images=[second], duration=100)
    with Image.open(path) as image:
        assert image.n_frames == 2
    check(decode(path), np.tile(np.array([255, 0, 0], np.uint8), (3, 4, 1)))


# EXIF 2.3, tag 0x0112: where the stored row 0 and column 0 lie in the upright picture, undone index by index.
STORED = {
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
    rows = [[STORED[orientation](upright, row, column) for column in range(width)] for row in range(height)]
    return np.array(rows, np.uint8)


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_png(tmp_path, orientation):
    check(decode(save(tmp_path / "a.png", stored_as(RGB, orientation), exif=exif(orientation))), RGB)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_jpeg(tmp_path, orientation):
    colours = np.random.default_rng(3).integers(0, 256, (2, 3, 3), np.uint8)
    upright = colours.repeat(8, axis=0).repeat(8, axis=1)  # flat 8×8 blocks, which JPEG keeps
    path = save(tmp_path / "a.jpg", stored_as(upright, orientation), exif=exif(orientation), quality=100, subsampling=0)
    check(decode(path), upright, tolerance=3)


def test_exif_orientation_goes_together_with_alpha_and_with_16_bits(tmp_path):
    rgba = np.concatenate([RGB, np.zeros((5, 7, 1), np.uint8)], axis=-1)
    check(decode(save(tmp_path / "a.png", stored_as(rgba, 6), exif=exif(6))), np.full((5, 7, 3), 255))
    wide = stored_as(as_rgb(GREY), 6)[..., 0].astype(np.uint16) * 257
    check(decode(save(tmp_path / "b.png", wide, exif=exif(6))), as_rgb(GREY))


def test_a_photo_may_be_text_a_path_or_an_open_file(tmp_path):
    path = save(tmp_path / "a.png", RGB)
    check(decode(str(path)), RGB)
    check(decode(path), RGB)
    check(decode(io.BytesIO(path.read_bytes())), RGB)
    with path.open("rb") as file:
        check(decode(file), RGB)


def half_a_jpeg(path):
    save(path, np.random.default_rng(5).integers(0, 256, (64, 64, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:2000])


# What is wrong → (the file's name, how it is made, what the error says).
MISTAKES = {
    "missing": ("a.jpg", lambda path: None, r"a\.jpg does not exist; give the path of an image"),
    "text": (
        "a.jpg",
        lambda path: path.write_text("no picture"),
        r"a\.jpg cannot be read as an image \(unknown format\); give a JPEG or PNG",
    ),
    "empty": ("a.png", lambda path: path.touch(), r"a\.png cannot be read as an image \(unknown format"),
    "truncated": ("a.jpg", half_a_jpeg, r"a\.jpg cannot be read as an image \(.*truncated.*\); give a JPEG"),
    "folder": ("a.jpg", lambda path: path.mkdir(), r"a\.jpg cannot be read as an image \(.*Is a directory.*\)"),
}


@pytest.mark.parametrize(("name", "make", "message"), MISTAKES.values(), ids=MISTAKES.keys())
@pytest.mark.parametrize("read", [decode, Preprocessing(4, 4).load], ids=["decode", "load"])
def test_a_file_that_is_no_picture_is_named(tmp_path, name, make, message, read):
    make(tmp_path / name)
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_picture_too_large_to_be_meant_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", RGB)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 17)  # Pillow refuses more than twice as many
    with pytest.raises(UserError, match=r"a\.png cannot be read as an image \(Image size \(35 pixels\) exceeds limit"):
        decode(path)


def test_an_open_file_that_is_no_picture_is_refused():
    with pytest.raises(UserError, match="cannot be read as an image"):
        decode(io.BytesIO(b"no picture"))


def test_a_picture_that_would_fill_the_memory_is_refused_before_it_is_decoded(tmp_path):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    side = 50_000  # 7.5 GB of pixels, in a file of some bytes
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))
    with pytest.raises(UserError, match=r"bomb\.png cannot be read as an image \(Image size \(2500000000 pixels\)"):
        decode(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_no_numbers_are_refused(tmp_path, value):
    grey = np.full((1500, 1000), 0.5, np.float32)  # of more than one strip
    grey[-1, -1] = value
    with pytest.raises(UserError, match=r"a\.tiff has pixels that are NaN or infinite; store values from 0 to 1"):
        decode(save(tmp_path / "a.tiff", grey))


def test_what_is_in_a_picture_starts_no_other_program(tmp_path, monkeypatch):
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
def test_a_telephones_heic_says_what_to_install(tmp_path, monkeypatch, fresh_formats, opened):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    (tmp_path / "a.heic").write_bytes(HEIC)
    message = r"cannot be read as an image \(.*\); pip install pillow-heif to read HEIC, or give a JPEG or PNG"
    with pytest.raises(UserError, match=message):
        decode(io.BytesIO(HEIC) if opened else tmp_path / "a.heic")


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path, monkeypatch, fresh_formats):
    from PIL import PngImagePlugin

    def register():
        monkeypatch.setitem(Image.OPEN, "HEIF", (PngImagePlugin.PngImageFile, None))
        monkeypatch.setattr(Image, "ID", [*Image.ID, "HEIF"])

    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
    assert "HEIF" in decoding.formats()
    monkeypatch.delitem(Image.OPEN, "PNG")  # so that the other one reads it
    decoding.formats.cache_clear()
    check(decode(io.BytesIO(png_of(RGB))), RGB)


def png_of(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_heic_is_decoded(tmp_path):
    heif = pytest.importorskip("pillow_heif", reason="install pillow-heif to read HEIC")
    colours = np.full((64, 64, 3), (200, 30, 60), np.uint8)
    heif.from_pillow(Image.fromarray(colours)).save(tmp_path / "a.heic", quality=95)
    check(decode(tmp_path / "a.heic"), colours, tolerance=6)


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# In which what is stored as red is green, and green red.
SWAPPED = SRGB.replace(b"rXYZ", b"????", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"????", b"gXYZ", 1)
COLOURS = np.array([[[200, 30, 60], [10, 180, 90], [255, 255, 255]]], np.uint8)


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
def test_colours_of_another_profile_are_brought_to_srgb(tmp_path, suffix):
    more = {"lossless": True} if suffix == "webp" else {}
    path = save(tmp_path / f"a.{suffix}", COLOURS, icc_profile=SWAPPED, **more)
    check(decode(path), COLOURS[..., [1, 0, 2]], tolerance=2)


def test_colours_of_another_profile_may_be_transparent_or_in_a_palette(tmp_path):
    rgba = np.dstack([COLOURS, np.array([[255, 0, 255]], np.uint8)])
    expected = COLOURS[..., [1, 0, 2]].copy()
    expected[:, 1] = 255
    check(decode(save(tmp_path / "a.png", rgba, icc_profile=SWAPPED)), expected, tolerance=2)
    green_first = np.tile(np.array([[0, 255, 0], [255, 0, 0], [0, 0, 255]], np.uint8), (2, 1, 1))
    check(decode(save(tmp_path / "b.png", palette_image(), icc_profile=SWAPPED)), green_first, tolerance=2)


@pytest.mark.parametrize("profile", [SRGB, b"no profile", SWAPPED[:200], b""], ids=["sRGB", "text", "cut", "empty"])
def test_a_profile_of_srgb_or_of_no_use_changes_nothing(tmp_path, profile):
    every = np.random.default_rng(6).integers(0, 256, (300, 300, 3), np.uint8)
    check(decode(save(tmp_path / "a.png", every, icc_profile=profile)), every)


def test_a_profile_of_another_kind_of_colours_changes_nothing(tmp_path):
    check(decode(save(tmp_path / "a.png", GREY, icc_profile=SWAPPED)), as_rgb(GREY))
    wide = GREY.astype(np.uint16) * 257
    check(decode(save(tmp_path / "b.png", wide, icc_profile=SWAPPED)), as_rgb(GREY))


def test_a_picture_of_many_strips_is_put_together_again(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "STRIP_PIXELS", 14)  # two rows
    check(decode(save(tmp_path / "a.png", RGB)), RGB)
    check(decode(save(tmp_path / "b.png", GREY.astype(np.uint16) * 257)), as_rgb(GREY))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16", "P"])
def test_a_picture_of_more_pixels_than_are_decoded_is_refused(tmp_path, monkeypatch, mode):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 34)
    path = save(tmp_path / "a.png", Image.new(mode, (7, 5)))
    with pytest.raises(UserError, match=r"a\.png has 7×5 pixels; give an image of up to 0 million"):
        decode(path)


def test_a_jpeg_of_too_many_pixels_is_decoded_at_half_its_size(tmp_path, monkeypatch):
    colours = np.full((64, 96, 3), (200, 30, 60), np.uint8)
    path = save(tmp_path / "a.jpg", colours, quality=100, subsampling=0, exif=exif(6))
    monkeypatch.setattr(decoding, "MAX_PIXELS", 64 * 96 - 1)
    check(decode(path), colours[:48, :32].reshape(48, 32, 3), tolerance=3)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 64 * 96 // 4 - 1)
    with pytest.raises(UserError, match=r"a\.jpg has 96×64 pixels; give an image of up to"):
        decode(path)


# Memory that each of the pictures takes at most while it is decoded, in one process that counts anew for each.
MEASURED = """
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


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell of a process's memory")
def test_decoding_keeps_within_the_memory_that_is_stated(tmp_path):
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
    done = subprocess.run([sys.executable, "-c", MEASURED, *paths], capture_output=True, text=True, check=True)
    for path, taken in zip(paths, done.stdout.split(), strict=True):
        assert side**2 < int(taken) < decoding.BYTES_PER_PIXEL * side**2 + 2**26, path.name


def test_pictures_wait_for_room():
    room, let_in = decoding.PixelBudget(10), threading.Event()

    def wait():
        with room.acquire(6):
            let_in.set()

    with room.acquire(5):
        other = threading.Thread(target=wait)
        other.start()
        assert not let_in.wait(0.2)
    assert let_in.wait(10)
    other.join()
    with pytest.raises(KeyError), room.acquire(10):
        raise KeyError  # and the room is free again
    with room.acquire(10):
        pass


def test_room_is_taken_while_a_picture_is_decoded_and_resized(tmp_path, monkeypatch):
    taken = []

    class Told(decoding.PixelBudget):
        def acquire(self, pixels):
            taken.append(pixels)
            return super().acquire(pixels)

    monkeypatch.setattr(decoding, "DECODE_BUDGET", Told(100))
    path = save(tmp_path / "a.png", RGB)
    decode(path)
    Preprocessing(4, 4).load(path)
    with decoding.decoded(path):
        assert decoding.DECODE_BUDGET._free == 65
    assert taken == [35, 35, 35]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(UserError, match=r"a\.jpg is a pipe or a device; give a file that is stored on disk"):
        decode(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="/dev/zero is a pipe or a device"):
        decode("/dev/zero")
