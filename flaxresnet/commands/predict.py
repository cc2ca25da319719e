"""`python -m flaxresnet predict RUN PHOTO…`."""

import json
import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from flaxresnet.classifier import Classifier
from flaxresnet.compilation_cache import use_compilation_cache
from flaxresnet.errors import UserError


@dataclass(frozen=True)
class Arguments:
    """Classifies photos: a line each with file, label and probability.

    Example: python -m flaxresnet predict runs/default photo.jpg
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run (train.py's --workdir)."""

    photos: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PHOTO…")]
    """Pictures of any format that Pillow reads, and of any size."""

    checkpoint: Literal["latest", "best"] = "latest"
    """The weights after the last epoch, or those that were best on the test images."""

    json: bool = False
    """Print one JSON object a photo, with the probabilities of all classes."""


def main(arguments: Arguments) -> int:
    if not arguments.photos:
        raise UserError("no photo given; name one or more pictures after the run's folder")
    use_compilation_cache()
    classifier = Classifier.load(arguments.run, arguments.checkpoint)
    unread = 0
    for photo in arguments.photos:
        try:
            answer = classifier.predict(photo)
        except UserError as error:  # the other photos still get their answer
            print(f"error: {error}", file=sys.stderr)
            unread += 1
            continue
        if arguments.json:
            row = {"file": photo, "label": answer.label, "probability": answer.probability}
            print(json.dumps(row | {"probabilities": answer.probabilities}), flush=True)
        else:
            print(f"{photo}  {answer.label}  {answer.probability:.4f}", flush=True)
    # All unreadable is the user's mistake; some unreadable is a job partly done.
    return 0 if not unread else 2 if unread == len(arguments.photos) else 1
