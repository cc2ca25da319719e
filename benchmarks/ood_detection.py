"""Which images does a run flag as out-of-distribution?

    python benchmarks/ood_detection.py RUN

RUN needs its report, which fits the OOD threshold. The table has one row for each set of images: the run's test images,
changed versions of them, and images of other subjects. Its columns are the number of images, the fraction flagged, the
median OOD score, the accuracy without and with test-time augmentation, and the mean confidence of the predictions.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import numpy as np
from bench_cli import begin
from rich import box
from rich.console import Console
from rich.table import Table

from flaxresnet.augment.geometric import augment
from flaxresnet.classifier import Classifier
from flaxresnet.cli.parser import positional
from flaxresnet.data.hand_signs.render import hand_signs
from flaxresnet.evaluation import load_training_data
from flaxresnet.runtime.compilation_cache import use_compilation_cache
from flaxresnet.runtime.errors import UserError

TILES = 8  # along each side of the shuffled images
UNLABELED = ("drawn hand signs", "noise", "one gray level each")  # sets without the labels of the test images


def image_sets(test: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yields names and images, (n, height, width, 3) uint8, made from the test images; n may be 0."""
    rng = np.random.default_rng(0)
    yield "test images", test
    yield "augmented, strength 1", _to_uint8(augment(jax.random.key(0), test / np.float32(255)))
    yield "mirrored", test[:, :, ::-1]
    yield "moved by a sixth", np.roll(test, test.shape[2] // 6, axis=2)
    yield "rotated by 90°", np.rot90(test, axes=(1, 2)) if test.shape[1] == test.shape[2] else test[:0]
    yield "upside down", test[:, ::-1]
    yield "at 40% brightness", _to_uint8(test * np.float32(0.4 / 255))
    yield "negative", 255 - test
    yield "tiles shuffled", _shuffle_tiles(test, rng)
    if test.shape[1:3] == (64, 64):
        yield "drawn hand signs", hand_signs(seed=1, train=12, test=102).test.images
    yield "noise", rng.integers(0, 256, test.shape, dtype=np.uint8)
    levels = rng.integers(0, 256, (len(test), 1, 1, 1), dtype=np.uint8)
    yield "one gray level each", np.broadcast_to(levels, test.shape)


def _to_uint8(images: np.ndarray) -> np.ndarray:
    """Converts values from 0 to 1."""
    return np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8)


def _shuffle_tiles(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shuffles TILES × TILES tiles of each image in one random order; pixels beyond the last full tile turn black."""
    _, height, width, _ = images.shape
    rows = height // TILES
    columns = width // TILES
    shuffled = np.zeros_like(images)
    for target, source in enumerate(rng.permutation(TILES * TILES)):
        shuffled[_tile(target, rows, columns)] = images[_tile(source, rows, columns)]
    return shuffled


def _tile(number: int, rows: int, columns: int) -> tuple[slice, slice, slice]:
    """Returns the index of a tile of rows × columns pixels in a batch of images."""
    top = number // TILES * rows
    left = number % TILES * columns
    return slice(None), slice(top, top + rows), slice(left, left + columns)


@dataclass(frozen=True)
class Arguments:
    """Counts the images that a run flags as out-of-distribution, in sets more and more unlike its training images.

    Example: python benchmarks/ood_detection.py runs/default
    """

    run: str = positional("RUN")
    """Folder of the run, with a report."""


def main(arguments: Arguments) -> None:
    run = arguments.run
    use_compilation_cache()
    test = load_training_data(run, "test").test
    classifier = Classifier.load(run)
    if not classifier.detects_ood:
        raise UserError(f"{run} has no OOD threshold; write its report with `flaxresnet report {run}`")
    table = Table("set", box=box.SIMPLE)
    for name in ("images", "flagged", "median OOD score", "accuracy", "with --tta", "mean confidence"):
        table.add_column(name, justify="right")
    for name, images in image_sets(test.images):
        if not len(images):
            continue
        images = np.ascontiguousarray(images)
        predictions = classifier.predict_batch(images)
        accuracy = tta_accuracy = "–"
        if name not in UNLABELED:
            with_tta = classifier.predict_batch(images, tta=True)
            accuracy = f"{np.mean(predictions.probabilities.argmax(1) == test.labels):.3f}"
            tta_accuracy = f"{np.mean(with_tta.probabilities.argmax(1) == test.labels):.3f}"
        table.add_row(
            name,
            str(len(images)),
            f"{predictions.is_ood.mean():.3f}",
            f"{np.median(predictions.ood_score):.4f}",
            accuracy,
            tta_accuracy,
            f"{predictions.probabilities.max(1).mean():.3f}",
        )
    console = Console(width=110)
    console.print(f"flagged above {classifier.calibration.threshold:.4f}")
    console.print(table)


if __name__ == "__main__":
    begin(main, Arguments)
