"""From a picture file to the network's input: decode, resize, scale."""

import io
import json
import struct
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from PIL import Image

from flaxresnet.data.preprocess import Preprocessing, decode
from flaxresnet.errors import UserError

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


def test_load_resizes_with_pillows_bicubic_each_side_on_its_own(tmp_path):
    photo = np.random.default_rng(4).integers(0, 256, (23, 11, 3), np.uint8)
    loaded = Preprocessing(height=8, width=16).load(save(tmp_path / "a.png", photo))
    check(loaded, np.asarray(Image.fromarray(photo).resize((16, 8), Image.Resampling.BICUBIC)))


def test_load_resizes_with_the_stored_filter():
    pixels = Preprocessing(height=10, width=14, resize="nearest").load(RGB)
    check(pixels, RGB.repeat(2, axis=0).repeat(2, axis=1))


def test_load_of_an_array_is_load_of_the_file_with_its_pixels(tmp_path):
    preprocessing = Preprocessing(height=4, width=9)
    check(preprocessing.load(RGB), preprocessing.load(save(tmp_path / "a.png", RGB)))


@pytest.mark.parametrize("resize", ["bicubic", "lanczos"])
def test_load_leaves_an_image_of_the_right_size_untouched(tmp_path, resize):
    preprocessing = Preprocessing(height=5, width=7, resize=resize)
    check(preprocessing.load(RGB), RGB)
    check(preprocessing.load(save(tmp_path / "a.png", RGB)), RGB)


@pytest.mark.parametrize("shape", [(256, 3), (2, 4, 32, 3)], ids=["pixels", "batch"])
def test_scaled_divides_by_255_in_float32(shape):
    images = np.resize(np.arange(256, dtype=np.uint8), shape)
    scaled = Preprocessing(height=4, width=32).scaled(jnp.asarray(images))
    assert scaled.dtype == jnp.float32
    assert scaled.shape == shape
    np.testing.assert_allclose(scaled, images / 255, rtol=2e-7)
    assert float(scaled.max()) == 1.0


def test_scaled_is_what_pytorch_and_keras_compute():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3)).astype(np.uint8)
    torch = Preprocessing(3, 4, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)).scaled(jnp.asarray(images))
    expected = (images.astype(np.float64) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(torch, expected, rtol=1e-5, atol=1e-6)
    caffe = Preprocessing(3, 4, scale=1.0, channels="bgr", mean=(103.939, 116.779, 123.68)).scaled(jnp.asarray(images))
    blue_first = images[..., ::-1].astype(np.float64) - [103.939, 116.779, 123.68]
    np.testing.assert_allclose(caffe, blue_first, rtol=1e-5, atol=1e-4)


def test_scaled_multiplies_by_the_stored_scale_inside_jit():
    preprocessing = Preprocessing(height=2, width=2, scale=0.25)
    images = jnp.arange(12, dtype=jnp.uint8).reshape(1, 2, 2, 3)
    np.testing.assert_array_equal(jax.jit(preprocessing.scaled)(images).ravel(), np.arange(12) / 4)


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(64, 48),
        Preprocessing(height=1, width=2, resize="lanczos", scale=0.1, mean=(1.0, 2.0, 3.0), channels="bgr"),
    ],
)
def test_preprocessing_survives_json(preprocessing):
    assert Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing


def test_preprocessing_is_the_tutorials_by_default():
    assert Preprocessing(64, 32).to_json() == {
        "height": 64,
        "width": 32,
        "resize": "bicubic",
        "scale": 1 / 255,
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "channels": "rgb",
        "centre": 1.0,
    }


def half_a_jpeg(path):
    save(path, np.random.default_rng(5).integers(0, 256, (64, 64, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:2000])


# What is wrong → (the file's name, how it is made, what the error says).
MISTAKES = {
    "missing": ("a.jpg", lambda path: None, r"a\.jpg does not exist; give the path of a picture"),
    "text": (
        "a.jpg",
        lambda path: path.write_text("no picture"),
        r"a\.jpg cannot be read as a picture \(cannot identify image file .*\); give a JPEG, PNG or the like",
    ),
    "empty": ("a.png", lambda path: path.touch(), r"a\.png cannot be read as a picture \(cannot identify image file"),
    "truncated": ("a.jpg", half_a_jpeg, r"a\.jpg cannot be read as a picture \(.*truncated.*\); give a JPEG"),
    "folder": ("a.jpg", lambda path: path.mkdir(), r"a\.jpg cannot be read as a picture \(.*Is a directory.*\)"),
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
    with pytest.raises(UserError, match=r"a\.png cannot be read as a picture \(Image size \(35 pixels\) exceeds limit"):
        decode(path)


def test_an_open_file_that_is_no_picture_is_refused():
    with pytest.raises(UserError, match="cannot be read as a picture"):
        decode(io.BytesIO(b"no picture"))


@pytest.mark.parametrize(
    ("photo", "message"),
    [
        (RGB / 255, r"a photo is \(height, width, 3\) uint8, not \(5, 7, 3\) float64"),
        (GREY, r"a photo is \(height, width, 3\) uint8, not \(5, 7\) uint8"),
        (RGB[None], r"not \(1, 5, 7, 3\) uint8"),
        (RGB[..., :2], r"not \(5, 7, 2\) uint8"),
    ],
    ids=["floats", "grey", "batch", "two channels"],
)
def test_an_array_that_is_no_photo_is_refused(photo, message):
    with pytest.raises(UserError, match=message):
        Preprocessing(5, 7).load(photo)


@pytest.mark.parametrize("size", [(300, 400), (500, 256), (64, 64)])
def test_the_centre_is_the_middle_224_of_256(size):
    photo = np.asarray(
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3)).astype(np.uint8)).resize(size)
    )
    height, width = photo.shape[:2]
    mine = Preprocessing(224, 224, centre=0.875).load(photo).astype(int)
    short = 256 / min(height, width)
    whole = Image.fromarray(photo).resize((round(width * short), round(height * short)), Image.Resampling.BICUBIC)
    left, upper = (whole.width - 224) / 2, (whole.height - 224) / 2
    theirs = np.asarray(whole.crop((round(left), round(upper), round(left) + 224, round(upper) + 224))).astype(int)
    assert np.abs(mine - theirs).mean() < 2  # half a pixel of rounding in the published order


def test_a_centre_that_cannot_be_is_refused():
    values = Preprocessing(32, 32).to_json()
    assert Preprocessing.from_json(values | {"centre": 0.5}).centre == 0.5
    with pytest.raises(UserError, match="preprocessing with centre that cannot be"):
        Preprocessing.from_json(values | {"centre": 1.5})


def test_what_is_shown_of_a_photo_is_what_is_taken_of_it():
    photo = np.random.default_rng(0).integers(0, 256, (64, 128, 3)).astype(np.uint8)
    middle = Preprocessing(48, 48, centre=0.75)
    np.testing.assert_array_equal(middle.seen(photo), photo[8:56, 40:88])
    np.testing.assert_array_equal(middle.load(photo), photo[8:56, 40:88])
    assert Preprocessing(48, 48).seen(photo) is photo


def test_a_picture_that_would_fill_the_memory_is_refused_before_it_is_decoded(tmp_path):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    side = 50_000  # 7.5 GB of pixels, in a file of some bytes
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))
    with pytest.raises(UserError, match=r"bomb\.png cannot be read as a picture \(Image size \(2500000000 pixels\)"):
        decode(path)
