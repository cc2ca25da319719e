"""`python -m flaxresnet convert IN OUT`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from flaxresnet.errors import UserError
from flaxresnet.interop.files import WRITERS, write_weights
from flaxresnet.interop.run_folders import write_run
from flaxresnet.interop.sources import open_weights
from flaxresnet.interop.worlds import WORLDS


@dataclass(frozen=True)
class Arguments:
    """Carries weights between worlds: runs' folders, Keras (.h5, .weights.h5, .keras), PyTorch (.safetensors, .pth).

    What a file is, and of which network, is recognised from its contents; the ending of OUT says what to write, and
    without an ending a run's folder is made, for `predict` and `evaluate`.

    Example: python -m flaxresnet convert ResNet50-1.h5 runs/from-keras
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IN")]
    """A file, a run's folder, or a model on the Hugging Face hub (such as microsoft/resnet-18)."""

    target: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """A file that ends in .h5, .weights.h5, .keras, .safetensors or .pth, or a folder."""

    world: Literal["torchvision", "huggingface"] | None = None
    """Whose names a .safetensors or .pth file gets. Left out: torchvision's, which timm shares."""

    checkpoint: Literal["latest", "best"] = "latest"
    """Of a run's folder: the weights after the last epoch, or those that were best on the test images."""

    class_names: str | None = None
    """Names of the classes, divided by commas, for files that do not tell; otherwise a run calls them 0, 1, …."""

    overwrite: bool = False
    """Replace OUT where it is a file that exists."""


def main(arguments: Arguments) -> int:
    target = Path(arguments.target)
    to_file = any(target.name.endswith(kind) for kind in WRITERS)
    if not to_file and target.suffix:
        raise UserError(
            f"{target} does not say what to write; let its name end in {', '.join(WRITERS)}, or name a folder"
        )
    if not to_file and arguments.world:
        raise UserError(f"--world {arguments.world} is for .safetensors and .pth; {target} is a run's folder")
    if to_file and target.exists() and not arguments.overwrite:
        raise UserError(f"{target} exists; give --overwrite to replace it")
    weights = open_weights(arguments.source, arguments.checkpoint)
    if arguments.class_names is not None:
        names = tuple(name.strip() for name in arguments.class_names.split(","))
        if len(names) != weights.num_classes or not all(names):
            raise UserError(
                f"--class-names has {len(names)} names; {arguments.source} has {weights.num_classes} classes"
            )
        weights = replace(weights, class_names=names)
    if to_file:
        write_weights(weights, target, arguments.world)
    else:
        write_run(weights, target, f"weights of {arguments.source}")
    classes = "no last layer" if weights.num_classes is None else f"{weights.num_classes} classes"
    numbers = sum(array.size for array in weights.table.values())
    title = WORLDS[weights.variant].title
    print(f"{weights.size} as in {title}, {classes}, {numbers:,} numbers in {len(weights.table)} arrays: {target}")
    p = weights.preprocessing
    scaling = f"· {p.scale:.4g} - {p.mean} / {p.std}, {p.channels}"
    print(f"images of {p.height}×{p.width}, pixels 0–255 {scaling}")
    return 0
