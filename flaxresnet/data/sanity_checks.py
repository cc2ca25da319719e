"""Warnings about images and labels that can be read but are probably wrong."""

import hashlib
from collections.abc import Iterator

import numpy as np

from flaxresnet.data.dataset import MAX_HASHED_BYTES, Dataset, Splits
from flaxresnet.data.lazy_images import EncodedImages, LazyImages
from flaxresnet.runtime.errors import listed

Images = np.ndarray | LazyImages

MAX_NAMED = 10  # classes that a warning names
SAMPLE = 256  # images of a split in memory whose pixels are checked
STREAMED_SAMPLE = 16  # images of a streamed split; every start of a run reads them from disk
MAX_PAIRS = 10**9  # of training and test images to compare for near duplicates
CHUNK_IMAGES = 2048  # images read and compared at once
CHUNK_BYTES = 2**28  # bytes of pixels read at once
HASH_SIDE = 16  # a difference hash has 2 · HASH_SIDE² bits
MAX_HASH_DISTANCE = 0.04  # fraction of differing bits of near duplicates; unrelated images differ in about half
MIN_CONTRAST = 2.0  # standard deviation in gray levels; the hash of a flatter image is noise
LEAKAGE_ADVICE = "test accuracy would reward memorization; remove them from one split"


def data_warnings(splits: Splits, thorough: bool = False) -> Iterator[str]:
    """Yields a warning, with its remedy, for each probable mistake in a dataset.

    Args:
      splits: either split may be None.
      thorough: also read all images, and list the test images that equal or resemble training images. Otherwise,
        exact duplicates are counted if the images are in memory and take at most `MAX_HASHED_BYTES`.
    """
    yield from splits.notes
    for name, split in (("training", splits.train), ("test", splits.test)):
        if split is not None:
            yield from check_split(name, split, SAMPLE if thorough or not split.is_streamed else STREAMED_SAMPLE)
    if splits.train is not None and splits.test is not None:
        check_pairs = find_leakage if thorough else count_duplicates
        yield from check_pairs(splits.train, splits.test)


def check_split(name: str, split: Dataset, sample: int) -> Iterator[str]:
    """Yields warnings about classes without images, and about the pixel range of up to `sample` images."""
    counts = split.class_counts()
    present = np.flatnonzero(counts)
    absent = np.flatnonzero(counts == 0)
    if absent.size and present.size == 1:
        yield f"all {len(split)} {name} images are of the class {split.class_names[present[0]]}; check the labels"
    elif absent.size:
        names = [split.class_names[label] for label in absent]
        may_start_at_1 = absent.tolist() == [0] and all(name.isdecimal() for name in split.class_names)
        hint = "; if the labels are numbered from 1, number them from 0" if may_start_at_1 else ""
        yield f"no {name} image is of the class {listed(names, MAX_NAMED)}{hint}"
    sample = min(sample, max(1, CHUNK_BYTES // int(np.prod(split.images.shape[1:]))))
    indices = np.unique(np.linspace(0, len(split) - 1, sample, dtype=int))
    brightest = split.images[indices].max(axis=(1, 2, 3))
    dark = indices[brightest <= 1]
    if dark.size == len(indices):
        yield (
            f"none of {len(indices)} sampled {name} images has a pixel above {brightest.max()}; "
            "if they were divided by 255, store values from 0 to 255"
        )
    elif dark.size:
        yield (
            f"{dark.size} of {len(indices)} sampled {name} images have no pixel above 1, such as "
            f"{_image_name(name, split.images, dark[0])}; remove black images; if they were divided by 255, store "
            "values from 0 to 255"
        )


def count_duplicates(train: Dataset, test: Dataset) -> Iterator[str]:
    """Yields a warning if test images equal training images. Skips streamed images and large datasets."""
    if train.is_streamed or test.is_streamed or train.images.nbytes + test.images.nbytes > MAX_HASHED_BYTES:
        return
    equal, _ = duplicates(train.images, test.images, nearly=False)
    if equal:
        test_index, train_index = equal[0]
        yield (
            f"{len(equal)} of {len(test)} test images are training images too, such as test image {test_index}, which "
            f"is training image {train_index}; {LEAKAGE_ADVICE}; `flaxresnet check-data` lists all"
        )


def find_leakage(train: Dataset, test: Dataset) -> Iterator[str]:
    """Yields a warning that lists the test images that equal a training image, and one that lists similar ones."""
    compares_pairs = len(train) * len(test) <= MAX_PAIRS
    equal, similar = duplicates(train.images, test.images, nearly=compares_pairs)
    for relation, pairs in (("are training images too", equal), ("are nearly training images", similar)):
        if not pairs:
            continue
        lines = [f"{len(pairs)} of {len(test)} test images {relation}; {LEAKAGE_ADVICE}:"]
        for test_index, train_index in pairs:
            test_name = _image_name("test", test.images, test_index)
            lines.append(f"  {test_name}: {_image_name('training', train.images, train_index)}")
        yield "\n".join(lines)
    if not compares_pairs:
        yield (
            f"{len(train):,} training and {len(test):,} test images are too many to compare all pairs; only equal "
            "images were searched, not similar ones"
        )


def _image_name(split: str, images: Images, index: int) -> str:
    return images.name(index) if isinstance(images, EncodedImages) else f"{split} image {index}"


def duplicates(train: Images, test: Images, nearly: bool = True) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Finds test images that equal a training image, or differ only in brightness, contrast or compression.

    Args:
      train: n images, (height, width, 3) uint8 each.
      test: m images of the same shape.
      nearly: also find near duplicates: images whose difference hashes (Krawetz, 2013) differ in at most a fraction
        `MAX_HASH_DISTANCE` of the bits. This compares all n · m pairs.

    Returns:
      Pairs (test index, training index) of equal images, and of near duplicates, both sorted. Each test
      image is in one pair at most, with the first equal, or else the most similar, training image.
    """
    test_digests: list[bytes] = []
    test_hashes = []
    for _, block in _blocks(test):
        test_digests += _digests(block)
        if nearly:
            test_hashes.append(dhash(block))
    hashes = np.concatenate(test_hashes) if nearly else None
    best = np.full(len(test), -np.inf, np.float32)
    best_index = np.zeros(len(test), int)
    train_index: dict[bytes, int] = {}
    for start, block in _blocks(train):  # reads each training image once
        for row, digest in enumerate(_digests(block)):
            train_index.setdefault(digest, start + row)
        if hashes is not None:
            agreement = hashes @ dhash(block).T  # (m, block): equal bits minus different bits
            is_better = agreement.max(axis=1) > best
            best = np.where(is_better, agreement.max(axis=1), best)
            best_index = np.where(is_better, start + agreement.argmax(axis=1), best_index)
    equal = {index: train_index[digest] for index, digest in enumerate(test_digests) if digest in train_index}
    min_agreement = (1 - 2 * MAX_HASH_DISTANCE) * 2 * HASH_SIDE**2
    similar = [int(index) for index in np.flatnonzero(best >= min_agreement) if index not in equal]
    return list(equal.items()), [(index, int(best_index[index])) for index in similar]


def _blocks(images: Images) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the images in blocks that fit in memory, each with the index of its first image."""
    step = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // int(np.prod(images.shape[1:]))))
    for start in range(0, len(images), step):
        yield start, images[start : start + step]


def _digests(images: np.ndarray) -> list[bytes]:
    return [hashlib.sha256(np.ascontiguousarray(image).data).digest() for image in images]


def dhash(images: np.ndarray) -> np.ndarray:
    """Returns difference hashes: the signs of horizontal and vertical slopes of the shrunken image.

    Args:
      images: (n, height, width, 3).

    Returns:
      (n, 2 · HASH_SIDE²) float32, 1 or -1; 0 for an image below `MIN_CONTRAST`.
    """
    hashes = np.zeros((len(images), 2 * HASH_SIDE**2), np.float32)
    for row, image in enumerate(images):
        gray = np.asarray(image, np.float32).mean(axis=-1)
        if gray.std() > MIN_CONTRAST:
            small = _shrink(gray, HASH_SIDE + 1)
            slopes = np.stack([np.diff(small, axis=1)[:HASH_SIDE], np.diff(small, axis=0)[:, :HASH_SIDE]])
            hashes[row] = np.where(slopes > 0, 1, -1).ravel()
    return hashes


def _shrink(gray: np.ndarray, side: int) -> np.ndarray:
    """Resizes (height, width) to (side, side) by the mean of each cell; repeats the pixels of smaller images."""
    for axis in (0, 1):
        edges = np.linspace(0, gray.shape[axis], side + 1)
        starts = np.minimum(edges[:-1].astype(int), gray.shape[axis] - 1)
        widths = np.maximum(1, np.diff(np.append(starts, gray.shape[axis])))
        sums = np.add.reduceat(gray, starts, axis=axis)
        gray = sums / (widths[:, None] if axis == 0 else widths)
    return gray
