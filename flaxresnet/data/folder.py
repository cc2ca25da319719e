"""Pictures in folders, one a class: `cat/1.jpg`, or `train/cat/1.jpg` and `test/cat/2.jpg`.

Splits may be folders named train and test (or val, valid, validation). Where there are none, a picture's name decides:
one in five goes to test, by a hash of its class and name, whatever other pictures there are.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from flaxresnet.data.dataset import Dataset, Splits
from flaxresnet.data.preprocess import LARGEST_SIDE, Preprocessing
from flaxresnet.errors import UserError, listed

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".jp2"}
TEST_NAMES = ("test", "val", "valid", "validation")  # the first that is there is the test split
TEST_SHARE = 0.2
LARGEST = 0.5  # of the machine's memory, that the images may take
MOST_NAMED = 5  # unreadable pictures in a sentence


def holds_classes(folder: Path) -> bool:
    """Whether a folder has folders of pictures, or of folders of pictures, one a class."""
    return any(_classes(part) for part in (folder, *(folder / name for name in ("train", *TEST_NAMES))))


def read_folder(folder: Path, image_size: tuple[int, int], skip_bad: float = 0.0) -> Splits:
    """Reads every picture, in the size given, into memory.

    Args:
      folder: see above.
      image_size: height and width, in pixels, that pictures are brought to as photos are in prediction.
      skip_bad: the largest share of pictures that may be unreadable and are then left out, in [0, 1).

    Raises:
      UserError: the size or the share cannot be, there is no picture, the splits differ in their classes, pictures
        cannot be read, or they would not fit into memory.
    """
    if not all(1 <= side <= LARGEST_SIDE for side in image_size):
        raise UserError(f"--image-size must be two numbers from 1 to {LARGEST_SIDE}, not {image_size}")
    if not 0 <= skip_bad < 1:
        raise UserError(f"--skip-bad must be at least 0 and below 1, not {skip_bad}")
    parts = {name: folder / name for name in ("train", *TEST_NAMES) if _classes(folder / name)}
    if parts:
        tests = [name for name in TEST_NAMES if name in parts]
        train, test = _files(folder / "train"), _files(folder / tests[0]) if tests else []
        how = " and ".join(name for name in ("train", *tests[:1]) if name in parts)
        if len(tests) > 1:
            how += f"; {', '.join(tests[1:])} is not used"
    else:
        every = _files(folder)
        train, test = ([pair for pair in every if in_test(*pair) is wanted] for wanted in (False, True))
        how = f"split by the hash of each name, {TEST_SHARE:.0%} for test"
    names = _class_names(folder, train, test)
    _check_memory(folder, len(train) + len(test), image_size)
    splits, bad = list[Dataset | None](), list[str]()
    for files in (train, test):
        images, labels, wrong = _read(files, names, image_size)
        bad += wrong
        splits.append(Dataset(images, labels, names) if len(labels) else None)
    if len(bad) > skip_bad * (len(train) + len(test)):
        share = f"{len(bad)} of {len(train) + len(test)} pictures in {folder}"
        advice = "mend or remove them, or give --skip-bad with the share that may be left out"
        raise UserError(f"{share} cannot be read; {advice}: {listed(bad, MOST_NAMED)}")
    source = f"{folder} ({how})" + (f"; left out {len(bad)} unreadable: {listed(bad, MOST_NAMED)}" if bad else "")
    return Splits(train=splits[0], test=splits[1], source=source)


def in_test(label: str, path: Path) -> bool:
    """Whether a picture goes to test, where nobody has said so; it depends on its class and file name alone."""
    digest = hashlib.sha256(f"{label}/{path.name}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") < TEST_SHARE * 2**64


def _classes(folder: Path) -> list[Path]:
    """Folders in a folder that hold a picture, at any depth; those named like splits are none."""
    if not folder.is_dir():
        return []
    inside = (path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith("."))
    return [path for path in inside if path.name not in ("train", *TEST_NAMES) and next(_pictures(path), None)]


def _pictures(folder: Path) -> Iterator[Path]:
    """Every picture in a folder and below it, in the order of their names."""
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if Path(name).suffix.lower() in ENDINGS and not name.startswith("."):
                yield Path(parent) / name


def _files(folder: Path) -> list[tuple[str, Path]]:
    """(class, picture), in the order of their names."""
    return [(path.name, picture) for path in _classes(folder) for picture in _pictures(path)]


def _class_names(folder: Path, train: Sequence[tuple[str, Path]], test: Sequence[tuple[str, Path]]) -> tuple[str, ...]:
    ours, theirs = (sorted({label for label, _ in files}) for files in (train, test))
    if ours and (strange := sorted(set(theirs) - set(ours))):
        raise UserError(f"{folder} has test pictures of classes that training has not: {listed(strange)}")
    return tuple(ours or theirs)


def _check_memory(folder: Path, count: int, image_size: tuple[int, int]) -> None:
    needed = 3 * count * image_size[0] * image_size[1]
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    if have and needed > LARGEST * have:
        raise UserError(
            f"{count:,} pictures of {image_size[0]}×{image_size[1]} in {folder} take {needed / 2**30:.1f} GiB, more "
            f"than half of this machine's {have / 2**30:.1f}; give a smaller --image-size, or fewer pictures"
        )


def _read(
    files: Sequence[tuple[str, Path]], names: tuple[str, ...], image_size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Images (n, height, width, 3) and labels (n,) of the readable ones, and what is wrong with the others."""
    load: Callable[[Path], np.ndarray] = Preprocessing(*image_size).load
    images = np.empty((len(files), *image_size, 3), np.uint8)
    bad = {}

    def read(place: int) -> None:
        try:
            images[place] = load(files[place][1])
        except UserError as error:
            bad[place] = str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without holding Python's lock
        list(pool.map(read, range(len(files))))
    good = np.array([place for place in range(len(files)) if place not in bad], int)
    number = {name: index for index, name in enumerate(names)}
    labels = np.array([number[files[place][0]] for place in good], np.int32)
    return images[good] if bad else images, labels, [bad[place] for place in sorted(bad)]
