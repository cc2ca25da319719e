"""What is most likely wrong with labelled images that can be read: said by name, before a network learns it."""

import hashlib
from collections.abc import Iterator

import numpy as np

from flaxresnet.data.dataset import MAX_HASHED_BYTES, Dataset, Splits
from flaxresnet.data.lazy_images import EncodedImages, LazyImages
from flaxresnet.runtime.errors import listed

Images = np.ndarray | LazyImages

MAX_NAMED = 10  # classes in a sentence
SAMPLE = 256  # images of a split whose pixels are looked at
STREAMED_SAMPLE = 16  # of those on disk, where each has to be read for it at every start
MAX_PAIRS = 10**9  # of training and test images that are compared; equal ones are found without
CHUNK_IMAGES = 2048  # training images that are compared together
CHUNK_BYTES = 2**28  # bytes of pixels
SIDE = 16  # of the picture that a near duplicate is told by: SIDE × SIDE signs of its slopes
NEAR = 0.04  # the largest share of differing signs between near duplicates; other pictures differ in about half
ADVICE = "the test accuracy would be of what was learned by heart; remove them from one side"
FLAT = 2.0  # grey levels; of a picture whose pixels spread less there are no signs to compare


def suspicions(splits: Splits, thorough: bool = False) -> Iterator[str]:
    """Sentences, each with what to do; none where nothing is suspicious.

    Args:
      splits: any may be missing.
      thorough: also read all images and list those for test that are for training too, or nearly. Else equal ones
        are counted where looking through them takes as long as their fingerprint does.
    """
    present = {"training": splits.train, "test": splits.test}
    for name, split in present.items():
        if split is not None:
            yield from check_split(name, split, SAMPLE if thorough or not split.is_streamed else STREAMED_SAMPLE)
    if splits.train is not None and splits.test is not None:
        yield from find_leakage(splits.train, splits.test) if thorough else count_duplicates(splits.train, splits.test)


def check_split(name: str, split: Dataset, sample: int) -> Iterator[str]:
    counts, classes = split.class_counts(), split.class_names
    if (there := np.flatnonzero(counts)).size == 1 and len(classes) > 1:
        yield f"all {len(split)} {name} images are of the class {classes[there[0]]}; look at the labels"
    elif (empty := np.flatnonzero(counts == 0)).size:
        shifted = "; are the labels numbered from 1? they begin with 0" if empty[0] == 0 and empty.size == 1 else ""
        yield f"no {name} image is of the class {listed([classes[i] for i in empty], MAX_NAMED)}{shifted}"
    sample = min(sample, max(1, CHUNK_BYTES // int(np.prod(split.images.shape[1:]))))
    places = np.unique(np.linspace(0, len(split) - 1, sample, dtype=int))
    brightest = split.images[places].max(axis=(1, 2, 3))
    if brightest.max() <= 1:
        none = f"no {name} image of {len(places)} looked at has a pixel above {brightest.max()}"
        yield f"{none}; were they divided by 255? store 0 to 255"
    elif (dark := places[brightest <= 1]).size:
        example = _called(name, split.images, dark[0])
        some = f"of {len(places)} {name} images looked at {dark.size} have no pixel above 1, such as {example}"
        yield f"{some}; are they black, or were they divided by 255? store 0 to 255"


def count_duplicates(train: Dataset, test: Dataset) -> Iterator[str]:
    """Of images in memory, if these are not too many to look at each."""
    if train.is_streamed or test.is_streamed or train.images.nbytes + test.images.nbytes > MAX_HASHED_BYTES:
        return
    same, _ = duplicates(train.images, test.images, nearly=False)
    if same:
        mine, theirs = same[0]
        yield (
            f"{len(same)} of {len(test)} test images are training images too, such as test image {mine}, which is "
            f"training image {theirs}; {ADVICE}, as `flaxresnet check-data` lists them"
        )


def find_leakage(train: Dataset, test: Dataset) -> Iterator[str]:
    """With a line for each pair."""
    few = len(train) * len(test) <= MAX_PAIRS
    same, near = duplicates(train.images, test.images, nearly=few)
    for what, pairs in (("are training images too", same), ("are nearly training images", near)):
        if pairs:
            lines = [
                f"  {_called('test', test.images, mine)}: {_called('training', train.images, theirs)}"
                for mine, theirs in pairs
            ]
            yield "\n".join([f"{len(pairs)} of {len(test)} test images {what}; {ADVICE}:", *lines])
    if not few:
        many = f"{len(train):,} training and {len(test):,} test images are too many to compare each two"
        yield f"{many}; equal ones were looked for, nearly equal ones not"


def _called(split: str, images: Images, place: int) -> str:
    return images.name(place) if isinstance(images, EncodedImages) else f"{split} image {place}"


def duplicates(train: Images, test: Images, nearly: bool = True) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Pairs (test image, training image), counted from 0, that are equal in every pixel, and that are nearly.

    Nearly equal are pictures that differ in brightness, contrast or compression: shrunk, their slopes to the right and
    downwards have the same signs but for `NEAR` of them ("difference hash", Krawetz 2013). Without `nearly` these are
    not looked for, which takes a comparison of each two.
    """
    tested = [(_digests(block), dhash(block) if nearly else None) for _, block in _blocks(test)]
    signs = np.concatenate([some for _, some in tested if some is not None]) if nearly else None
    best, where = np.full(len(test), -np.inf, np.float32), np.zeros(len(test), int)
    place = dict[bytes, int]()
    for start, block in _blocks(train):  # each is read once
        for row, digest in enumerate(_digests(block)):
            place.setdefault(digest, start + row)
        if signs is not None:
            alike = signs @ dhash(block).T  # (test, training): signs that agree less those that do not
            better = alike.max(axis=1) > best
            best = np.where(better, alike.max(axis=1), best)
            where = np.where(better, start + alike.argmax(axis=1), where)
    digests = (digest for some, _ in tested for digest in some)
    same = {i: place[digest] for i, digest in enumerate(digests) if digest in place}
    enough = (1 - 2 * NEAR) * 2 * SIDE * SIDE
    near = [(i, int(where[i])) for i in range(len(test)) if best[i] >= enough and i not in same]
    return sorted(same.items()), near


def _blocks(images: Images) -> Iterator[tuple[int, np.ndarray]]:
    """All images, some at once, each time with the place of the first."""
    step = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // int(np.prod(images.shape[1:]))))
    for start in range(0, len(images), step):
        yield start, images[start : start + step]


def _digests(images: np.ndarray) -> list[bytes]:
    return [hashlib.sha256(np.ascontiguousarray(image).data).digest() for image in images]


def dhash(images: np.ndarray) -> np.ndarray:
    """(n, 2 · SIDE²) float32, 1 or -1, of images (n, height, width, 3); 0 for those that are flat."""
    made = np.zeros((len(images), 2 * SIDE * SIDE), np.float32)
    for row in range(len(images)):
        grey = np.asarray(images[row], np.float32).mean(axis=-1)
        small = _shrunk(grey, SIDE + 1)
        if grey.std() > FLAT:
            slopes = np.stack([np.diff(small, axis=1)[:SIDE], np.diff(small, axis=0)[:, :SIDE]])
            made[row] = np.where(slopes > 0, 1, -1).ravel()
    return made


def _shrunk(grey: np.ndarray, side: int) -> np.ndarray:
    """(height, width) → (side, side), each the mean of its part; smaller pictures repeat pixels."""
    for axis in (0, 1):
        edges = np.linspace(0, grey.shape[axis], side + 1)
        starts = np.minimum(edges[:-1].astype(int), grey.shape[axis] - 1)
        widths = np.maximum(1, np.diff(np.append(starts, grey.shape[axis])))
        sums = np.add.reduceat(grey, starts, axis=axis)
        grey = sums / (widths[:, None] if axis == 0 else widths)
    return grey
