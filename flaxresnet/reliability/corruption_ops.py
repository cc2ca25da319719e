"""Kinds of change of a test photo: where things are, its light, the camera, and what covers the thing.

A change takes a photo (height, width, 3) of uint8, an amount in its own units, and random numbers (which way, where);
it returns a photo of the same shape, whose values need not be rounded or within range yet.
"""

import io

import numpy as np

Photo = np.ndarray  # (height, width, 3), uint8
Random = np.random.Generator
MARGIN = 1.0  # of a side, by which the edge is repeated before a picture is moved


def axes(image: Photo) -> tuple[np.ndarray, np.ndarray]:
    """Places y (height, 1, 1) and x (1, width, 1) of the pixels from the centre, in sides, -0.5 to 0.5."""
    height, width = image.shape[:2]
    y, x = ((np.arange(side) + 0.5) / side - 0.5 for side in (height, width))
    return y[:, None, None], x[None, :, None]


def random_inverse(random: Random, factor: float) -> float:
    """The factor or its inverse."""
    return factor if random.random() < 0.5 else 1 / factor


def _sign(random: Random) -> int:
    return 1 if random.random() < 0.5 else -1


# Where things are. A map is (3, 3): from places in the new photo to places in the old one, (x, y, 1) in sides from the
# centre, up to a factor.


def warp_perspective(image: Photo, matrix: np.ndarray) -> Photo:
    from PIL import Image

    height, width = image.shape[:2]
    top, left = round(MARGIN * height), round(MARGIN * width)
    wide = Image.fromarray(np.pad(image, ((top, top), (left, left), (0, 0)), mode="edge"))
    to_sides = np.array([[1 / width, 0, -0.5], [0, 1 / height, -0.5], [0, 0, 1]])
    to_wide = np.array([[width, 0, width / 2 + left], [0, height, height / 2 + top], [0, 0, 1]])
    whole = to_wide @ matrix @ to_sides
    numbers = (whole / whole[2, 2]).ravel()[:8]
    moved = wide.transform((width, height), Image.Transform.PERSPECTIVE, numbers, Image.Resampling.BICUBIC)
    return np.asarray(moved)


def rotation(image: Photo, degrees: float, random: Random) -> Photo:
    angle = np.radians(degrees * _sign(random))
    aspect = image.shape[0] / image.shape[1]  # sides are of different lengths: a turn is one in pixels
    cos, sin = np.cos(angle), np.sin(angle)
    return warp_perspective(image, np.array([[cos, -sin * aspect, 0], [sin / aspect, cos, 0], [0, 0, 1]]))


def scale(image: Photo, factor: float, random: Random) -> Photo:
    """Nearer or farther."""
    size = random_inverse(random, factor)
    return warp_perspective(image, np.diag([1 / size, 1 / size, 1]))


def shift(image: Photo, share: float, random: Random) -> Photo:
    """Moved by this share of the side in any direction."""
    angle = random.uniform(0, 2 * np.pi)
    return warp_perspective(image, np.array([[1, 0, share * np.cos(angle)], [0, 1, share * np.sin(angle)], [0, 0, 1]]))


def shear(image: Photo, share: float, random: Random) -> Photo:
    """Rows, or columns, slide over each other."""
    matrix = np.eye(3)
    matrix[(0, 1) if random.random() < 0.5 else (1, 0)] = share * _sign(random)
    return warp_perspective(image, matrix)


def perspective(image: Photo, tilt: float, random: Random) -> Photo:
    """The camera is tilted: one side of the photo is (1 + tilt / 2) / (1 - tilt / 2) times as near as the other."""
    angle = random.uniform(0, 2 * np.pi)
    matrix = np.eye(3)
    matrix[2, :2] = tilt * np.cos(angle), tilt * np.sin(angle)
    return warp_perspective(image, matrix)


def mirror(image: Photo, amount: float, random: Random) -> Photo:
    return image[:, ::-1]


# Light.


def brightness(image: Photo, factor: float, random: Random) -> np.ndarray:
    return image * random_inverse(random, factor)


def contrast(image: Photo, factor: float, random: Random) -> np.ndarray:
    mean = image.mean()
    return mean + (image - mean) * random_inverse(random, factor)


def gamma(image: Photo, exponent: float, random: Random) -> np.ndarray:
    return 255 * (image / 255) ** random_inverse(random, exponent)


def colour_temperature(image: Photo, share: float, random: Random) -> np.ndarray:
    """Red up and blue down, or the other way round."""
    gain = random_inverse(random, 1 + share)
    return image * np.array([gain, 1, 1 / gain])


def grey(image: Photo, share: float, random: Random) -> np.ndarray:
    """Colour taken away (luma of ITU-R 601 is left)."""
    luma = image @ np.array([0.299, 0.587, 0.114])
    return (1 - share) * image + share * luma[..., None]


def light_gradient(image: Photo, share: float, random: Random) -> np.ndarray:
    """The light falls by this share from one side to the opposite one."""
    y, x = axes(image)
    angle = random.uniform(0, 2 * np.pi)
    along = np.cos(angle) * x + np.sin(angle) * y
    along = (along - along.min()) / (along.max() - along.min())
    return image * (1 - share * along)


def shadow(image: Photo, share: float, random: Random) -> np.ndarray:
    """A straight shadow with a soft edge over about half of the photo takes this share of the light."""
    y, x = axes(image)
    angle, place = random.uniform(0, 2 * np.pi), random.uniform(-0.2, 0.2)
    along = np.cos(angle) * x + np.sin(angle) * y - place
    return image * (1 - share * np.clip(along / 0.06 + 0.5, 0, 1))


# The camera.


def blur(image: Photo, sigma: float, random: Random) -> np.ndarray:
    """Gaussian, with this deviation in 64ths of the side."""
    from PIL import Image, ImageFilter

    radius = sigma * max(image.shape[:2]) / 64
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def noise(image: Photo, deviation: float, random: Random) -> np.ndarray:
    """Gaussian, with this deviation in levels of 256."""
    return image + deviation * random.standard_normal(image.shape)


def jpeg(image: Photo, quality: float, random: Random) -> np.ndarray:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=int(quality))
    return np.asarray(Image.open(file))


def low_resolution(image: Photo, factor: float, random: Random) -> np.ndarray:
    """Made smaller by this factor and enlarged again."""
    from PIL import Image

    photo = Image.fromarray(image)
    small = photo.resize([max(1, round(side / factor)) for side in photo.size], Image.Resampling.BOX)
    return np.asarray(small.resize(photo.size, Image.Resampling.BICUBIC))


# What else is in the picture.


def occlusion(image: Photo, share: float, random: Random) -> np.ndarray:
    """Something of one colour lies over this share of the photo, a box of random proportions."""
    height, width = image.shape[:2]
    stretch = np.exp(random.uniform(-0.7, 0.7))
    tall, wide = min(1, np.sqrt(share * stretch)) * height, min(1, np.sqrt(share / stretch)) * width
    top, left = random.uniform(0, height - tall), random.uniform(0, width - wide)
    covered = image.copy()
    covered[round(top) : round(top + tall), round(left) : round(left + wide)] = random.integers(0, 256, 3)
    return covered
