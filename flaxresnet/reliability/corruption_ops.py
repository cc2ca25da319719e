"""The operations behind the corruptions of test photos: geometry, light, camera and occlusion.

An operation takes a photo (height, width, 3) uint8, an amount in its own units, and a random generator, which draws
directions and positions. It returns a photo of the same shape, whose values may be fractional and out of range.
"""

import io

import numpy as np

Photo = np.ndarray  # (height, width, 3), uint8
Random = np.random.Generator
MARGIN = 1.0  # width of the padding with edge pixels before a geometric operation, as a fraction of the side


def axes(image: Photo) -> tuple[np.ndarray, np.ndarray]:
    """Returns pixel positions y (height, 1, 1) and x (1, width, 1) from the center, from -0.5 to 0.5 of a side."""
    height, width = image.shape[:2]
    y = (np.arange(height) + 0.5) / height - 0.5
    x = (np.arange(width) + 0.5) / width - 0.5
    return y[:, None, None], x[None, :, None]


def random_inverse(random: Random, factor: float) -> float:
    """Returns the factor or its inverse, each with probability 1/2."""
    return factor if random.random() < 0.5 else 1 / factor


def _random_sign(random: Random) -> int:
    return 1 if random.random() < 0.5 else -1


def _directional_ramp(image: Photo, random: Random) -> np.ndarray:
    """Returns (height, width, 1): positions along a random direction, from the center, in sides."""
    y, x = axes(image)
    angle = random.uniform(0, 2 * np.pi)
    return np.cos(angle) * x + np.sin(angle) * y


# Geometry. Each matrix (3, 3) maps homogeneous coordinates (x, y, 1) in the new photo to those in the old photo. The
# origin is the center, and the units of x and y are the photo's width and height.


def warp_perspective(image: Photo, matrix: np.ndarray) -> Photo:
    """Applies a projective map with bicubic interpolation; pixels outside the photo repeat its edge."""
    from PIL import Image

    height, width = image.shape[:2]
    top = round(MARGIN * height)
    left = round(MARGIN * width)
    padded = Image.fromarray(np.pad(image, ((top, top), (left, left), (0, 0)), mode="edge"))
    to_sides = np.array([[1 / width, 0, -0.5], [0, 1 / height, -0.5], [0, 0, 1]])
    to_padded = np.array([[width, 0, width / 2 + left], [0, height, height / 2 + top], [0, 0, 1]])
    pixel_map = to_padded @ matrix @ to_sides
    coefficients = (pixel_map / pixel_map[2, 2]).ravel()[:8]
    size = (width, height)
    return np.asarray(padded.transform(size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC))


def rotation(image: Photo, degrees: float, random: Random) -> Photo:
    """Rotates by this angle, clockwise or counterclockwise."""
    angle = np.radians(degrees * _random_sign(random))
    aspect = image.shape[0] / image.shape[1]  # x and y have different units if the photo is not square
    cos = np.cos(angle)
    sin = np.sin(angle)
    return warp_perspective(image, np.array([[cos, -sin * aspect, 0], [sin / aspect, cos, 0], [0, 0, 1]]))


def scale(image: Photo, factor: float, random: Random) -> Photo:
    """Enlarges or shrinks the content by this factor."""
    size = random_inverse(random, factor)
    return warp_perspective(image, np.diag([1 / size, 1 / size, 1]))


def shift(image: Photo, fraction: float, random: Random) -> Photo:
    """Shifts by this fraction of the width and height, in a random direction."""
    angle = random.uniform(0, 2 * np.pi)
    x = fraction * np.cos(angle)
    y = fraction * np.sin(angle)
    return warp_perspective(image, np.array([[1, 0, x], [0, 1, y], [0, 0, 1]]))


def shear(image: Photo, fraction: float, random: Random) -> Photo:
    """Shears rows or columns, by this fraction of their distance from the center."""
    amount = fraction * _random_sign(random)
    matrix = np.eye(3)
    matrix[(0, 1) if random.random() < 0.5 else (1, 0)] = amount
    return warp_perspective(image, matrix)


def perspective(image: Photo, tilt: float, random: Random) -> Photo:
    """Tilts the camera: one side of the photo is (1 + tilt / 2) / (1 - tilt / 2) times as near as the other."""
    angle = random.uniform(0, 2 * np.pi)
    matrix = np.eye(3)
    matrix[2, :2] = tilt * np.cos(angle), tilt * np.sin(angle)
    return warp_perspective(image, matrix)


def mirror(image: Photo, amount: float, random: Random) -> Photo:
    """Mirrors left to right; the amount has no effect."""
    return image[:, ::-1]


# Light.


def brightness(image: Photo, factor: float, random: Random) -> np.ndarray:
    """Multiplies or divides the pixels by this factor."""
    return image * random_inverse(random, factor)


def contrast(image: Photo, factor: float, random: Random) -> np.ndarray:
    """Multiplies or divides the difference from the photo's mean by this factor."""
    mean = image.mean()
    return mean + (image - mean) * random_inverse(random, factor)


def gamma(image: Photo, exponent: float, random: Random) -> np.ndarray:
    """Applies a gamma curve with this exponent or its inverse."""
    return 255 * (image / 255) ** random_inverse(random, exponent)


def color_temperature(image: Photo, fraction: float, random: Random) -> np.ndarray:
    """Raises red and lowers blue by the factor 1 + fraction, or the reverse."""
    gain = random_inverse(random, 1 + fraction)
    return image * np.array([gain, 1, 1 / gain])


def grayscale(image: Photo, fraction: float, random: Random) -> np.ndarray:
    """Replaces this fraction of the color by the luma (ITU-R BT.601); 1 leaves no color."""
    luma = image @ np.array([0.299, 0.587, 0.114])
    return (1 - fraction) * image + fraction * luma[..., None]


def light_gradient(image: Photo, fraction: float, random: Random) -> np.ndarray:
    """Darkens linearly from one side to the opposite one, by up to this fraction of the light."""
    ramp = _directional_ramp(image, random)
    ramp = (ramp - ramp.min()) / (ramp.max() - ramp.min())
    return image * (1 - fraction * ramp)


def shadow(image: Photo, fraction: float, random: Random) -> np.ndarray:
    """Darkens about half of the photo by this fraction of the light, with a straight, soft edge."""
    ramp = _directional_ramp(image, random) - random.uniform(-0.2, 0.2)
    return image * (1 - fraction * np.clip(ramp / 0.06 + 0.5, 0, 1))


# Camera.


def blur(image: Photo, sigma: float, random: Random) -> np.ndarray:
    """Applies a Gaussian blur with this standard deviation, in units of 1/64 of the longer side."""
    from PIL import Image, ImageFilter

    radius = sigma * max(image.shape[:2]) / 64
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def noise(image: Photo, deviation: float, random: Random) -> np.ndarray:
    """Adds Gaussian noise with this standard deviation, in pixel values of 0 to 255."""
    return image + deviation * random.standard_normal(image.shape)


def jpeg(image: Photo, quality: float, random: Random) -> np.ndarray:
    """Compresses as JPEG with this quality, from 1 to 95."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=int(quality))
    return np.asarray(Image.open(file))


def low_resolution(image: Photo, factor: float, random: Random) -> np.ndarray:
    """Downsamples by this factor and upsamples to the original size."""
    from PIL import Image

    photo = Image.fromarray(image)
    small = photo.resize([max(1, round(side / factor)) for side in photo.size], Image.Resampling.BOX)
    return np.asarray(small.resize(photo.size, Image.Resampling.BICUBIC))


# Occlusion.


def occlusion(image: Photo, fraction: float, random: Random) -> np.ndarray:
    """Covers this fraction of the photo with a box of random position, color and proportions."""
    height, width = image.shape[:2]
    stretch = np.exp(random.uniform(-0.7, 0.7))
    box_height = min(1, np.sqrt(fraction * stretch)) * height
    box_width = min(1, np.sqrt(fraction / stretch)) * width
    top = random.uniform(0, height - box_height)
    left = random.uniform(0, width - box_width)
    covered = image.copy()
    covered[round(top) : round(top + box_height), round(left) : round(left + box_width)] = random.integers(0, 256, 3)
    return covered
