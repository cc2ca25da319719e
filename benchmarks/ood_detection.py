"""Which pictures a run calls unlike its training images: `python benchmarks/ood_detection.py RUN`.

The run's test images, the same changed, and pictures of other things. The run needs its report.
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

TILES = 8  # a side, of the shuffled images


def pictures(test: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Sets by name, each (n, height, width, 3) uint8; `test` are the test images."""
    rng = np.random.default_rng(0)
    yield "test images", test
    yield "changed by chance, strength 1", _bytes(augment(jax.random.key(0), test / np.float32(255)))
    yield "mirrored", test[:, :, ::-1]
    yield "moved by a sixth", np.roll(test, test.shape[2] // 6, axis=2)
    yield "a quarter turned", np.rot90(test, axes=(1, 2)) if test.shape[1] == test.shape[2] else test[:0]
    yield "upside down", test[:, ::-1]
    yield "at 40% light", _bytes(test * np.float32(0.4 / 255))
    yield "negative", 255 - test
    yield "tiles shuffled", _shuffled(test, rng)
    if test.shape[1:3] == (64, 64):
        yield "drawn hand signs", hand_signs(seed=1, train=12, test=102).test.images
    yield "noise", rng.integers(0, 256, test.shape, dtype=np.uint8)
    yield "one grey each", np.broadcast_to(rng.integers(0, 256, (len(test), 1, 1, 1), dtype=np.uint8), test.shape)


def _bytes(images: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8)


def _shuffled(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    count, height, width, channels = images.shape
    rows, columns = height // TILES, width // TILES
    tiles = images[:, : rows * TILES, : columns * TILES].reshape(count, TILES, rows, TILES, columns, channels)
    tiles = tiles.transpose(0, 1, 3, 2, 4, 5).reshape(count, TILES * TILES, rows, columns, channels)
    tiles = tiles[:, rng.permutation(TILES * TILES)].reshape(count, TILES, TILES, rows, columns, channels)
    shuffled = np.zeros_like(images)
    joined = tiles.transpose(0, 1, 3, 2, 4, 5).reshape(count, rows * TILES, columns * TILES, channels)
    shuffled[:, : rows * TILES, : columns * TILES] = joined
    return shuffled


@dataclass(frozen=True)
class Arguments:
    """Shows a run pictures that are more and more unlike its own, and counts those that are called so.

    Example: python benchmarks/ood_detection.py runs/default
    """

    run: str = positional("RUN")
    """Folder of the run, with a report."""


def main(arguments: Arguments) -> None:
    run = arguments.run
    use_compilation_cache()
    splits, classifier = load_training_data(run, "test"), Classifier.load(run)
    if not classifier.detects_ood:
        raise UserError(f"{run} cannot tell which photos are unlike its training images; write its report")
    labels = splits.test.labels
    table = Table("pictures", box=box.SIMPLE)
    for name in ("images", "flagged", "median OOD score", "accuracy", "with --tta", "mean confidence"):
        table.add_column(name, justify="right")
    for name, images in pictures(splits.test.images):
        if not len(images):
            continue
        answers = classifier.predict_batch(np.ascontiguousarray(images))
        same = len(images) == len(labels) and name not in ("noise", "one grey each", "drawn hand signs")
        viewed = classifier.predict_batch(np.ascontiguousarray(images), tta=True) if same else answers
        rights = [f"{np.mean(a.probabilities.argmax(1) == labels):.3f}" if same else "–" for a in (answers, viewed)]
        share, middle = f"{answers.is_ood.mean():.3f}", f"{np.median(answers.ood_score):.4f}"
        confidence = f"{answers.probabilities.max(1).mean():.3f}"
        table.add_row(name, str(len(images)), share, middle, *rights, confidence)
    console = Console(width=110)
    console.print(f"flagged above {classifier.calibration.threshold:.4f}")
    console.print(table)


if __name__ == "__main__":
    begin(main, Arguments)
