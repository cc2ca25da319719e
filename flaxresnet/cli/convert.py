"""`flaxresnet convert IN OUT`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from flaxresnet.cli.parser import positional
from flaxresnet.config.train_config import CheckpointChoice
from flaxresnet.data.preprocess import MAX_INPUT_PIXELS, MAX_SIDE, Preprocessing
from flaxresnet.models.resnet import MIN_IMAGE_SIZE
from flaxresnet.runtime.errors import UserError, oserror_as_user_error
from flaxresnet.runtime.local_path import require_local
from flaxresnet.runtime.terminal import next_command, status
from flaxresnet.weights.key_maps import KEY_FORMATS
from flaxresnet.weights.pretrained_weights import SCALING, PretrainedWeights, check_class_names, fits_images
from flaxresnet.weights.resolve import open_weights
from flaxresnet.weights.run_weights import write_run
from flaxresnet.weights.weight_files import WRITERS, write_weights

SCALING_TEXT = {
    "tutorial": "pixels divided by 255",
    "keras": "pixels as BGR minus the ImageNet means, as in Caffe",
    "torchvision": "pixels divided by 255, then normalized with the ImageNet means and standard deviations",
}


@dataclass(frozen=True)
class Arguments:
    """Converts weights between run folders, Keras (.h5, .weights.h5, .keras) and PyTorch (.safetensors, .pth).

    The contents of IN determine its format and its network. The suffix of OUT determines the format to write; without
    a suffix, OUT becomes a run folder for `predict` and `evaluate`.

    Example: flaxresnet convert ResNet50-1.h5 runs/from-keras
    """

    source: str = positional("IN")
    """A file, a run folder, or a model on the Hugging Face Hub (such as microsoft/resnet-18)."""

    target: str = positional("OUT")
    """A file that ends in .h5, .weights.h5, .keras, .safetensors or .pth, or a folder."""

    key_format: Literal["torchvision", "huggingface"] | None = None
    """Convention for parameter names in a .safetensors or .pth file. Default: torchvision, which timm also uses."""

    checkpoint: CheckpointChoice = "latest"
    """Weights to read from a run folder. latest: from the last epoch; best: from the epoch with the highest test
    accuracy."""

    class_names: str | None = None
    """Class names, separated by commas, if the file stores none. Default: 0, 1, …."""

    stem_relu: bool | None = None
    """Whether a ReLU follows bn_conv1, for tutorial weights that do not store this. Default: on."""

    image_size: tuple[int, int] | None = None
    """Height and width of the network's input in pixels. Give it if IN does not store the size, or to choose another
    size for a network that accepts any."""

    scaling: Literal["tutorial", "keras", "torchvision"] | None = None
    """Pixel scaling, if it differs from that of the pretrained weights in IN's format. tutorial: divide by 255. keras:
    subtract Caffe's BGR means. torchvision: divide by 255, then normalize with the ImageNet means and standard
    deviations."""

    overwrite: bool = False
    """Replace OUT if it is an existing file."""

    verbose: bool = False
    """Also print the number of arrays and the scaling's numbers."""


def main(arguments: Arguments) -> int:
    require_local(arguments.target)
    target = Path(arguments.target)
    to_file = any(target.name.endswith(suffix) for suffix in WRITERS)
    if not to_file and target.suffix:
        raise UserError(
            f"{target} has no suffix of a weight file; end the name with {', '.join(WRITERS)}, or name a folder"
        )
    if not to_file and arguments.key_format:
        raise UserError(
            f"--key-format {arguments.key_format} applies to .safetensors and .pth files; {target} is a run folder"
        )
    with oserror_as_user_error(target):  # the name may be too long
        exists = target.exists()
    if to_file and exists and not arguments.overwrite:
        raise UserError(f"{target} exists; give --overwrite to replace it")
    with status("Converting the weights…"):
        weights = apply_overrides(open_weights(arguments.source, arguments.checkpoint), arguments)
        if to_file:
            write_weights(weights, target, arguments.key_format)
        else:
            write_run(weights, target, f"weights of {arguments.source}")
    for line in _describe(weights, arguments):
        print(line)
    if to_file:
        print(next_command("flaxresnet", "convert", target, "FOLDER"), "(to a run folder)")
    else:
        print(next_command("flaxresnet", "evaluate", target, "--data", "PATH"))
    return 0


def _describe(weights: PretrainedWeights, arguments: Arguments) -> list[str]:
    """Returns lines about the written weights."""
    classes = "no last layer" if weights.num_classes is None else f"{weights.num_classes} classes"
    network = f"{weights.network.model} as in {KEY_FORMATS[weights.network.variant].title}"
    preprocessing = weights.preprocessing
    size = f"{preprocessing.height}×{preprocessing.width}"
    lines = [
        f"wrote {arguments.target}: {network}, {classes}",
        f"input: images of {size}, {describe_scaling(preprocessing)}",
    ]
    if "preprocessing" in weights.assumed and not (arguments.image_size and arguments.scaling):
        lines.append(
            f"note: {arguments.source} stores no preprocessing, so size and scaling are assumed; give --image-size and "
            "--scaling if they differ"
        )
    if arguments.verbose:
        numbers = sum(array.size for array in weights.arrays.values())
        lines.append(f"{numbers:,} numbers in {len(weights.arrays)} arrays")
        lines.append(_scaling_numbers(preprocessing))
    return lines


def describe_scaling(preprocessing: Preprocessing) -> str:
    """Returns the pixel scaling in words, such as "pixels divided by 255"; in numbers if it is unusual."""
    for name, values in SCALING.items():
        usual = Preprocessing(1, 1, **values)
        if all(getattr(preprocessing, key) == getattr(usual, key) for key in ("scale", "mean", "std", "channels")):
            return SCALING_TEXT[name]
    return _scaling_numbers(preprocessing)


def _scaling_numbers(preprocessing: Preprocessing) -> str:
    order = preprocessing.channels.upper()
    return f"{order} pixels times {preprocessing.scale:.4g}, minus {preprocessing.mean}, divided by {preprocessing.std}"


def apply_overrides(weights: PretrainedWeights, arguments: Arguments) -> PretrainedWeights:
    """Returns the weights with the metadata that the command line gives.

    Raises:
      UserError: an option contradicts the weights.
    """
    source = arguments.source
    if arguments.class_names is not None:
        names = tuple(name.strip() for name in arguments.class_names.split(","))
        if len(names) != weights.num_classes:
            raise UserError(f"--class-names has {len(names)} names; {source} has {weights.num_classes} classes")
        check_class_names(names, weights.num_classes)
        weights = replace(weights, class_names=names)
    if arguments.stem_relu not in (None, weights.network.stem_relu):
        if "stem_relu" not in weights.assumed:
            actual = "has a" if weights.network.stem_relu else "has no"
            raise UserError(
                f"--stem-relu applies to weights that do not store whether a ReLU follows bn_conv1; {source} does, and "
                f"{actual} ReLU there"
            )
        weights = replace(weights, network=replace(weights.network, stem_relu=arguments.stem_relu))
    stored = weights.preprocessing
    scaling = stored
    if arguments.scaling:
        scaling = Preprocessing(
            1,
            1,
            stored.resize,
            crop_pct=stored.crop_pct,
            resize_mode=stored.resize_mode,
            **SCALING[arguments.scaling],
        )
    height, width = arguments.image_size or (stored.height, stored.width)
    if arguments.image_size and not fits_images(weights, (height, width)):
        raise UserError(
            f"--image-size {height} {width} does not fit {source}: sides have {MIN_IMAGE_SIZE} to {MAX_SIDE} pixels, "
            f"an image has at most {MAX_INPUT_PIXELS:,}, and the last layer of the tutorials' network fits one size"
        )
    return replace(weights, preprocessing=replace(scaling, height=height, width=width))
