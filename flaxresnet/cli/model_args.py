"""What `summary` and `diagram` look at: a run's network, or one by its name."""

from dataclasses import dataclass
from typing import Any, cast

from flaxresnet.cli.parser import positional
from flaxresnet.config.recipes import Variant
from flaxresnet.config.train_config import TrainConfig
from flaxresnet.config.validation import at_least, at_most, check_value, flag
from flaxresnet.data.preprocess import MAX_SIDE
from flaxresnet.models.resnet import MIN_IMAGE_SIZE, SIZES, ResNet, resnet
from flaxresnet.runs.metadata import check_network
from flaxresnet.runs.run_dir import RunDir
from flaxresnet.runtime.errors import UserError

MAX_CLASSES = 1_000_000
IMAGE_SIZES = {"tutorial": (64, 64), "keras": (224, 224), "torchvision": (224, 224)}  # what each was made for


@dataclass(frozen=True)
class ModelArguments:
    """Which network."""

    network: str = positional("RUN|NAME", default="resnet50")
    """A run's folder, or a network: resnet18, resnet34, resnet50, resnet101, resnet152, resnext50_32x4d, …."""

    variant: Variant | None = None
    """How a network that is given by its name is written. Left out: tutorial."""

    image_size: tuple[int, int] | None = None
    """Height and width of its images. Left out: 64×64 for the tutorials' variant, else 224×224."""

    num_classes: int | None = None
    """Its classes. Left out: 6, as in the tutorials."""

    width: int | None = None
    """Features of its first convolution. Left out: 64."""


@dataclass(frozen=True)
class ModelSpec:
    """A network to look at.

    Attributes:
      title: for people.
      model: the network.
      image_size: height and width of its images, in pixels.
    """

    title: str
    model: ResNet
    image_size: tuple[int, int]


def model_spec(arguments: ModelArguments) -> ModelSpec:
    """The network that the command line names. Raises UserError where there is none."""
    name = arguments.network
    given = [
        option for option in ("variant", "image_size", "num_classes", "width") if getattr(arguments, option) is not None
    ]
    if name not in SIZES:
        if not RunDir(name).exists():
            raise UserError(f"{name} is neither a run's folder nor a network; the networks are {', '.join(SIZES)}")
        if given:
            raise UserError(
                f"{flag(given[0])} is for a network that is given by its name; {name} is a run and has its own"
            )
        info = RunDir(name).read_metadata()
        image_size = info.preprocessing.height, info.preprocessing.width
        return ModelSpec(f"{info.config.network.model} of {name}", info.model(), image_size)
    config = TrainConfig(model=cast(Any, name), variant=arguments.variant, width=arguments.width)
    check_network(config)
    network = config.network
    image_size = arguments.image_size or IMAGE_SIZES[network.variant]
    for side in image_size:
        check_value("image_size", side, int, (at_least(MIN_IMAGE_SIZE), at_most(MAX_SIDE)))
    classes = 6 if arguments.num_classes is None else arguments.num_classes
    check_value("num_classes", classes, int, (at_least(2), at_most(MAX_CLASSES)))
    model = resnet(network.model, network.variant, num_classes=classes, width=network.width)
    return ModelSpec(f"{name}, {network.variant}", model, image_size)
