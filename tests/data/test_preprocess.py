"""Preprocessing: crop, resize, scale, and the stored form."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps

from flaxresnet.data.preprocess import Preprocessing
from flaxresnet.runtime.errors import UserError

RGB = np.random.default_rng(2).integers(0, 256, (5, 7, 3), np.uint8)
GRAY = np.arange(35, dtype=np.uint8).reshape(5, 7) * 7


def save(path, pixels):
    Image.fromarray(pixels).save(path)
    return path


def check(pixels, expected):
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, expected)


def test_load_resizes_sides_independently(tmp_path):
    photo = np.random.default_rng(4).integers(0, 256, (23, 11, 3), np.uint8)
    loaded = Preprocessing(height=8, width=16).load(save(tmp_path / "a.png", photo))
    check(loaded, np.asarray(Image.fromarray(photo).resize((16, 8), Image.Resampling.BICUBIC)))


def test_load_uses_the_filter():
    pixels = Preprocessing(height=10, width=14, resize="nearest").load(RGB)
    check(pixels, RGB.repeat(2, axis=0).repeat(2, axis=1))


def test_load_takes_file_or_array(tmp_path):
    preprocessing = Preprocessing(height=4, width=9)
    check(preprocessing.load(RGB), preprocessing.load(save(tmp_path / "a.png", RGB)))


@pytest.mark.parametrize("resize", ["bicubic", "lanczos"])
def test_load_skips_resizing(tmp_path, resize):
    preprocessing = Preprocessing(height=5, width=7, resize=resize)
    check(preprocessing.load(RGB), RGB)
    check(preprocessing.load(save(tmp_path / "a.png", RGB)), RGB)


@pytest.mark.parametrize("shape", [(256, 3), (2, 4, 32, 3)], ids=["pixels", "batch"])
def test_preprocess_uint8_divides_by_255(shape):
    images = np.resize(np.arange(256, dtype=np.uint8), shape)
    scaled = Preprocessing(height=4, width=32).preprocess_uint8(jnp.asarray(images))
    assert scaled.dtype == jnp.float32
    assert scaled.shape == shape
    np.testing.assert_allclose(scaled, images / 255, rtol=2e-7)
    assert float(scaled.max()) == 1.0


def test_preprocess_uint8_matches_pytorch_and_keras():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3)).astype(np.uint8)
    torch = Preprocessing(3, 4, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    expected = (images.astype(np.float64) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(torch.preprocess_uint8(jnp.asarray(images)), expected, rtol=1e-5, atol=1e-6)
    caffe = Preprocessing(3, 4, scale=1.0, channels="bgr", mean=(103.939, 116.779, 123.68))
    expected = images[..., ::-1].astype(np.float64) - [103.939, 116.779, 123.68]
    np.testing.assert_allclose(caffe.preprocess_uint8(jnp.asarray(images)), expected, rtol=1e-5, atol=1e-4)


def test_preprocess_uint8_works_in_jit():
    preprocessing = Preprocessing(height=2, width=2, scale=0.25)
    images = jnp.arange(12, dtype=jnp.uint8).reshape(1, 2, 2, 3)
    scaled = jax.jit(preprocessing.preprocess_uint8)(images).ravel()
    np.testing.assert_allclose(scaled, np.arange(12) / 4, rtol=2**-22)  # a division and a product, each rounded once


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(64, 48),
        Preprocessing(height=1, width=2, resize="lanczos", scale=0.1, mean=(1.0, 2.0, 3.0), channels="bgr"),
    ],
)
def test_json_round_trip(preprocessing):
    assert Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing


def test_defaults_match_tutorials():
    assert Preprocessing(64, 32).to_json() == {
        "height": 64,
        "width": 32,
        "resize": "bicubic",
        "scale": 1 / 255,
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "channels": "rgb",
        "crop_pct": 1.0,
        "resize_mode": "stretch",
    }


@pytest.mark.parametrize(
    ("photo", "message"),
    [
        (RGB / 255, r"an image is \(5, 7, 3\) float64; give \(height, width, 3\) uint8"),
        (GRAY, r"an image is \(5, 7\) uint8; give"),
        (RGB[None], r"is \(1, 5, 7, 3\) uint8"),
        (RGB[..., :2], r"is \(5, 7, 2\) uint8"),
    ],
    ids=["floats", "gray", "batch", "two channels"],
)
def test_load_rejects_other_arrays(photo, message):
    with pytest.raises(UserError, match=message):
        Preprocessing(5, 7).load(photo)


@pytest.mark.parametrize("size", [(300, 400), (500, 256), (64, 64)])
def test_crop_pct_equals_resize_then_crop(size):
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    photo = Image.fromarray(noise).resize(size)
    loaded = Preprocessing(224, 224, crop_pct=0.875).load(np.asarray(photo)).astype(int)
    zoom = 256 / min(size)
    resized = photo.resize((round(photo.width * zoom), round(photo.height * zoom)), Image.Resampling.BICUBIC)
    left = round((resized.width - 224) / 2)
    upper = round((resized.height - 224) / 2)
    expected = np.asarray(resized.crop((left, upper, left + 224, upper + 224))).astype(int)
    assert np.abs(loaded - expected).mean() < 2  # the published order rounds by half a pixel


PHOTO_SIZES = [(300, 400), (500, 256), (96, 64), (64, 700)]


def full_box(height, width):
    return 0, 0, width, height


def left_half(height, width):
    return 0, 0, width / 2, height


def noise_photo(size):
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize(size)


@pytest.mark.parametrize("size", PHOTO_SIZES)
@pytest.mark.parametrize(("mode", "reference"), [("crop", ImageOps.fit), ("pad", ImageOps.pad)])
def test_resize_mode_agrees_with_pillow(size, mode, reference):
    photo = noise_photo(size)
    loaded = Preprocessing(64, 96, resize_mode=mode).load(np.asarray(photo)).astype(int)
    expected = np.asarray(reference(photo, (96, 64), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(loaded - expected).max() <= 1


def test_pad_reduces_with_crop_pct():
    photo = np.full((100, 200, 3), 255, np.uint8)
    full = Preprocessing(40, 40, resize_mode="pad").load(photo)
    np.testing.assert_array_equal(full[:, 0, 0], np.repeat([0, 255, 0], [10, 20, 10]))
    cropped = Preprocessing(40, 40, resize_mode="pad", crop_pct=0.8).load(photo)
    np.testing.assert_array_equal(cropped[:, 0, 0], np.repeat([0, 255, 0], [8, 25, 7]))


@pytest.mark.parametrize("size", PHOTO_SIZES)
@pytest.mark.parametrize("mode", ["stretch", "crop", "pad"])
def test_part_is_taken_after_resize_mode(size, mode):
    """Random crops of streamed photos come from the same pixels as those of images in memory."""
    photo = np.asarray(noise_photo(size))
    preprocessing = Preprocessing(64, 96, resize_mode=mode)
    expected = preprocessing.load(photo)
    np.testing.assert_array_equal(preprocessing.load(photo, full_box), expected)
    resized = Image.fromarray(expected).resize((96, 64), Image.Resampling.BICUBIC, (0, 0, 48, 64))
    difference = np.abs(preprocessing.load(photo, left_half).astype(int) - np.asarray(resized).astype(int))
    assert difference.mean() < 6  # the reference has lost detail


def test_crop_pixels_of_resize_modes():
    photo = np.random.default_rng(0).integers(0, 256, (64, 128, 3)).astype(np.uint8)
    crop = Preprocessing(32, 32, resize_mode="crop")
    np.testing.assert_array_equal(crop.crop_pixels(photo), photo[:, 32:96])
    pad = Preprocessing(32, 32, resize_mode="pad")
    np.testing.assert_array_equal(pad.crop_pixels(photo), np.pad(photo, ((32, 32), (0, 0), (0, 0))))
    tall = photo.swapaxes(0, 1)
    np.testing.assert_array_equal(pad.crop_pixels(tall), np.pad(tall, ((0, 0), (32, 32), (0, 0))))
    narrow = np.ones((1, 20_000, 3), np.uint8)  # with borders, it would take 1.2 GB
    assert pad.crop_pixels(narrow).shape == (32, 32, 3)


def test_from_json_rejects_resize_mode():
    values = Preprocessing(32, 32).to_json()
    assert Preprocessing.from_json(values | {"resize_mode": "pad"}).resize_mode == "pad"
    assert Preprocessing.from_json({"height": 32, "width": 32}).resize_mode == "stretch"
    with pytest.raises(UserError, match="preprocessing has invalid resize_mode"):
        Preprocessing.from_json(values | {"resize_mode": "fill"})


def test_from_json_rejects_crop_pct():
    values = Preprocessing(32, 32).to_json()
    assert Preprocessing.from_json(values | {"crop_pct": 0.5}).crop_pct == 0.5
    with pytest.raises(UserError, match="preprocessing has invalid crop_pct"):
        Preprocessing.from_json(values | {"crop_pct": 1.5})


def test_crop_pixels_matches_load():
    photo = np.random.default_rng(0).integers(0, 256, (64, 128, 3)).astype(np.uint8)
    preprocessing = Preprocessing(48, 48, crop_pct=0.75)
    np.testing.assert_array_equal(preprocessing.crop_pixels(photo), photo[8:56, 40:88])
    np.testing.assert_array_equal(preprocessing.load(photo), photo[8:56, 40:88])
    assert Preprocessing(48, 48).crop_pixels(photo) is photo


def test_from_json_rejects_size():
    values = Preprocessing(32, 32).to_json()
    assert Preprocessing.from_json(values | {"height": 10_000, "width": 10_000}).height == 10_000
    for size in ({"height": 10_000, "width": 10_001}, {"height": 2**16 + 1}, {"width": 0}, {"width": 1.5}):
        with pytest.raises(UserError, match="preprocessing has invalid height and width"):
            Preprocessing.from_json(values | size)
