"""The network argument of `summary` and `diagram`: a run folder or the name of a network."""

from dataclasses import dataclass
from typing import Any, cast

from flaxresnet.cli.parser import positional
from flaxresnet.config.recipes import CIFAR_MODELS, Stem, Variant
from flaxresnet.config.train_config import TrainConfig
from flaxresnet.config.validation import at_least, at_most, check_value, flag
from flaxresnet.data.preprocess import MAX_SIDE
from flaxresnet.models.resnet import MIN_IMAGE_SIZE, SIZES, ResNet, resnet
from flaxresnet.runs.metadata import check_network
from flaxresnet.runs.run_dir import RunDir
from flaxresnet.runtime.errors import UserError

MAX_CLASSES = 1_000_000
IMAGE_SIZES = {"tutorial": (64, 64), "keras": (224, 224), "torchvision": (224, 224)}  # default, by variant
CIFAR_IMAGE_SIZE = (32, 32)
NETWORK_OPTIONS = ("variant", "image_size", "num_classes", "width", "stem")


@dataclass(frozen=True)
class ModelArguments:
    """A network."""

    network: str = positional("RUN|NAME", default="resnet50")
    """Run folder, or name of a network, such as resnet18, resnet34, resnet50, resnet101 or resnext50_32x4d."""

    variant: Variant | None = None
    """Variant of a named network. Default: tutorial."""

    image_size: tuple[int, int] | None = None
    """Height and width of the input in pixels. Default: 32×32 for the CIFAR networks (resnet20 to resnet110), 64×64 for
    the variant tutorial, else 224×224."""

    num_classes: int | None = None
    """Number of classes. Default: 6, as in the tutorials."""

    width: int | None = None
    """Number of channels of the first convolution. Default: 64, and 16 for the CIFAR networks."""

    stem: Stem | None = None
    """First layers. imagenet: 7×7 convolution and max pooling; small: 3×3 convolution. Default: small for the CIFAR
    networks, else imagenet."""


@dataclass(frozen=True)
class ModelSpec:
    """A network and the size of its input.

    Attributes:
      title: the name to display.
      model: the network.
      image_size: height and width of the input, in pixels.
    """

    title: str
    model: ResNet
    image_size: tuple[int, int]


def model_spec(arguments: ModelArguments) -> ModelSpec:
    """Returns the network that the command line names.

    Raises:
      UserError: there is no such run or network, or an option is invalid.
    """
    if arguments.network not in SIZES:
        return _run_spec(arguments)
    config = TrainConfig(
        model=cast(Any, arguments.network),
        variant=arguments.variant,
        width=arguments.width,
        stem=arguments.stem,
    )
    check_network(config)
    network = config.network
    default_size = CIFAR_IMAGE_SIZE if network.model in CIFAR_MODELS else IMAGE_SIZES[network.variant]
    image_size = arguments.image_size or default_size
    for side in image_size:
        check_value("image_size", side, int, (at_least(MIN_IMAGE_SIZE), at_most(MAX_SIDE)))
    num_classes = 6 if arguments.num_classes is None else arguments.num_classes
    check_value("num_classes", num_classes, int, (at_least(2), at_most(MAX_CLASSES)))
    model = resnet(
        network.model,
        network.variant,
        num_classes=num_classes,
        width=network.width,
        stem=network.stem,
    )
    return ModelSpec(f"{arguments.network}, {network.variant}", model, image_size)


def _run_spec(arguments: ModelArguments) -> ModelSpec:
    """Returns the network of a run."""
    name = arguments.network
    run = RunDir(name)
    if not run.exists():
        raise UserError(f"{name} is neither a run folder nor a network; the networks are {', '.join(SIZES)}")
    for option in NETWORK_OPTIONS:
        if getattr(arguments, option) is not None:
            raise UserError(f"{flag(option)} applies to a named network; {name} is a run, which determines it")
    info = run.read_metadata()
    image_size = (info.preprocessing.height, info.preprocessing.width)
    return ModelSpec(f"{info.config.network.model} of {name}", info.model(), image_size)
