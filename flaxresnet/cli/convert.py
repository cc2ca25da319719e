"""`flaxresnet convert IN OUT`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from flaxresnet.cli.parser import positional
from flaxresnet.config.train_config import CheckpointChoice
from flaxresnet.data.preprocess import MAX_INPUT_PIXELS, MAX_SIDE, Preprocessing
from flaxresnet.models.resnet import MIN_IMAGE_SIZE
from flaxresnet.runtime.errors import UserError, oserror_as_user_error
from flaxresnet.weights.key_maps import KEY_FORMATS
from flaxresnet.weights.pretrained_weights import SCALING, PretrainedWeights, check_class_names, fits_images
from flaxresnet.weights.resolve import open_weights
from flaxresnet.weights.run_weights import write_run
from flaxresnet.weights.weight_files import WRITERS, write_weights


@dataclass(frozen=True)
class Arguments:
    """Carries weights between worlds: runs' folders, Keras (.h5, .weights.h5, .keras), PyTorch (.safetensors, .pth).

    What a file is, and of which network, is recognised from its contents; the ending of OUT says what to write, and
    without an ending a run's folder is made, for `predict` and `evaluate`.

    Example: flaxresnet convert ResNet50-1.h5 runs/from-keras
    """

    source: str = positional("IN")
    """A file, a run's folder, or a model on the Hugging Face hub (such as microsoft/resnet-18)."""

    target: str = positional("OUT")
    """A file that ends in .h5, .weights.h5, .keras, .safetensors or .pth, or a folder."""

    key_format: Literal["torchvision", "huggingface"] | None = None
    """Whose names a .safetensors or .pth file gets. Left out: torchvision's, which timm shares."""

    checkpoint: CheckpointChoice = "latest"
    """Of a run's folder: the weights after the last epoch, or those that were best on the test images."""

    class_names: str | None = None
    """Names of the classes, divided by commas, for files that do not tell; otherwise a run calls them 0, 1, …."""

    stem_relu: bool | None = None
    """Whether a ReLU follows bn_conv1, for weights of the tutorials that do not tell; otherwise it does."""

    image_size: tuple[int, int] | None = None
    """Height and width of the images, where the file does not tell, or of a network that takes any."""

    scaling: Literal["tutorial", "keras", "torchvision"] | None = None
    """How pixels are scaled, where not as this world's pretrained weights want it: ÷255, Caffe's or ImageNet's."""

    overwrite: bool = False
    """Replace OUT where it is a file that exists."""


def main(arguments: Arguments) -> int:
    target = Path(arguments.target)
    to_file = any(target.name.endswith(kind) for kind in WRITERS)
    if not to_file and target.suffix:
        raise UserError(
            f"{target} does not say what to write; let its name end in {', '.join(WRITERS)}, or name a folder"
        )
    if not to_file and arguments.key_format:
        raise UserError(f"--key-format {arguments.key_format} is for .safetensors and .pth; {target} is a run's folder")
    with oserror_as_user_error(target):  # a name may be too long to look for
        exists = target.exists()
    if to_file and exists and not arguments.overwrite:
        raise UserError(f"{target} exists; give --overwrite to replace it")
    weights = open_weights(arguments.source, arguments.checkpoint)
    weights = told(weights, arguments)
    if to_file:
        write_weights(weights, target, arguments.key_format)
    else:
        write_run(weights, target, f"weights of {arguments.source}")
    classes = "no last layer" if weights.num_classes is None else f"{weights.num_classes} classes"
    numbers = sum(array.size for array in weights.arrays.values())
    network = f"{weights.network.model} as in {KEY_FORMATS[weights.network.variant].title}"
    print(f"{network}, {classes}, {numbers:,} numbers in {len(weights.arrays)} arrays: {target}")
    p = weights.preprocessing
    scaling = f"· {p.scale:.4g} - {p.mean} / {p.std}, {p.channels}"
    given = arguments.image_size and arguments.scaling
    say = "" if given or "preprocessing" not in weights.assumed else "; assumed: --image-size and --scaling tell better"
    print(f"images of {p.height}×{p.width}, pixels 0–255 {scaling}{say}")
    return 0


def told(weights: PretrainedWeights, arguments: Arguments) -> PretrainedWeights:
    """The weights with what the command line says of them; raises UserError where it says what cannot be."""
    source = arguments.source
    if (names := arguments.class_names) is not None:
        listed = tuple(name.strip() for name in names.split(","))
        if len(listed) != weights.num_classes:
            raise UserError(f"--class-names has {len(listed)} names; {source} has {weights.num_classes} classes")
        check_class_names(listed, weights.num_classes)
        weights = replace(weights, class_names=listed)
    if arguments.stem_relu not in (None, weights.network.stem_relu):
        if "stem_relu" not in weights.assumed:
            known = "with" if weights.network.stem_relu else "without"
            raise UserError(f"--stem-relu is for weights that do not tell; {source} is {known} a ReLU there")
        weights = replace(weights, network=replace(weights.network, stem_relu=arguments.stem_relu))
    had = weights.preprocessing
    scaled = Preprocessing(1, 1, had.resize, **SCALING[arguments.scaling]) if arguments.scaling else had
    height, width = arguments.image_size or (had.height, had.width)
    if arguments.image_size and not fits_images(weights, (height, width)):
        limits = (
            f"sides have {MIN_IMAGE_SIZE} to {MAX_SIDE} pixels, an image {MAX_INPUT_PIXELS:,} at most, and the "
            "tutorials' last layer is tied to its own"
        )
        raise UserError(f"--image-size {height} {width} does not fit {source}: {limits}")
    return replace(weights, preprocessing=replace(scaled, height=height, width=width))
