"""From a picture to the network's input: resize, scale."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

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
    scaled = Preprocessing(height=4, width=32).preprocess_uint8(jnp.asarray(images))
    assert scaled.dtype == jnp.float32
    assert scaled.shape == shape
    np.testing.assert_allclose(scaled, images / 255, rtol=2e-7)
    assert float(scaled.max()) == 1.0


def test_scaled_is_what_pytorch_and_keras_compute():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3)).astype(np.uint8)
    torch = Preprocessing(3, 4, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)).preprocess_uint8(
        jnp.asarray(images)
    )
    expected = (images.astype(np.float64) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(torch, expected, rtol=1e-5, atol=1e-6)
    caffe = Preprocessing(3, 4, scale=1.0, channels="bgr", mean=(103.939, 116.779, 123.68)).preprocess_uint8(
        jnp.asarray(images)
    )
    blue_first = images[..., ::-1].astype(np.float64) - [103.939, 116.779, 123.68]
    np.testing.assert_allclose(caffe, blue_first, rtol=1e-5, atol=1e-4)


def test_scaled_multiplies_by_the_stored_scale_inside_jit():
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
        "crop_pct": 1.0,
    }


@pytest.mark.parametrize(
    ("photo", "message"),
    [
        (RGB / 255, r"an image is \(5, 7, 3\) float64; give \(height, width, 3\) uint8"),
        (GREY, r"an image is \(5, 7\) uint8; give"),
        (RGB[None], r"is \(1, 5, 7, 3\) uint8"),
        (RGB[..., :2], r"is \(5, 7, 2\) uint8"),
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
    mine = Preprocessing(224, 224, crop_pct=0.875).load(photo).astype(int)
    short = 256 / min(height, width)
    whole = Image.fromarray(photo).resize((round(width * short), round(height * short)), Image.Resampling.BICUBIC)
    left, upper = (whole.width - 224) / 2, (whole.height - 224) / 2
    theirs = np.asarray(whole.crop((round(left), round(upper), round(left) + 224, round(upper) + 224))).astype(int)
    assert np.abs(mine - theirs).mean() < 2  # half a pixel of rounding in the published order


def test_a_centre_that_cannot_be_is_refused():
    values = Preprocessing(32, 32).to_json()
    assert Preprocessing.from_json(values | {"crop_pct": 0.5}).crop_pct == 0.5
    with pytest.raises(UserError, match="preprocessing has invalid crop_pct"):
        Preprocessing.from_json(values | {"crop_pct": 1.5})


def test_what_is_shown_of_a_photo_is_what_is_taken_of_it():
    photo = np.random.default_rng(0).integers(0, 256, (64, 128, 3)).astype(np.uint8)
    middle = Preprocessing(48, 48, crop_pct=0.75)
    np.testing.assert_array_equal(middle.crop_pixels(photo), photo[8:56, 40:88])
    np.testing.assert_array_equal(middle.load(photo), photo[8:56, 40:88])
    assert Preprocessing(48, 48).crop_pixels(photo) is photo


def test_a_size_of_more_pixels_than_any_image_has_is_refused():
    values = Preprocessing(32, 32).to_json()
    assert Preprocessing.from_json(values | {"height": 10_000, "width": 10_000}).height == 10_000
    for size in ({"height": 10_000, "width": 10_001}, {"height": 2**16 + 1}, {"width": 0}, {"width": 1.5}):
        with pytest.raises(UserError, match="preprocessing has invalid height and width"):
            Preprocessing.from_json(values | size)
