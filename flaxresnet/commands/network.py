"""What `summary` and `diagram` look at: a run's network, or one by its name."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from flaxresnet.errors import UserError
from flaxresnet.models.resnet import SIZES, SMALLEST_IMAGE, ResNet, resnet
from flaxresnet.training.run_folder import RunFolder

IMAGE_SIZES = {"tutorial": (64, 64), "keras": (224, 224), "torchvision": (224, 224)}  # what each was made for


@dataclass(frozen=True)
class NetworkArguments:
    """Which network."""

    network: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|NAME")] = "resnet50"
    """A run's folder, or a network: resnet18, resnet34, resnet50, resnet101, resnet152, resnext50_32x4d, …."""

    variant: Literal["tutorial", "keras", "torchvision"] = "tutorial"
    """How a network that is given by its name is written."""

    image_size: tuple[int, int] | None = None
    """Height and width of its images. Left out: 64×64 for the tutorials' variant, else 224×224."""

    num_classes: int = 6
    """Its classes."""

    width: int = 64
    """Features of its first convolution."""


@dataclass(frozen=True)
class Subject:
    """A network to look at.

    Attributes:
      title: for people.
      model: the network.
      image_size: height and width of its images, in pixels.
    """

    title: str
    model: ResNet
    image_size: tuple[int, int]


def subject_of(arguments: NetworkArguments) -> Subject:
    """The network that the command line names. Raises UserError where there is none."""
    name = arguments.network
    if name not in SIZES:
        if not RunFolder(name).exists():
            raise UserError(f"{name} is neither a run's folder nor a network; the networks are {', '.join(SIZES)}")
        info = RunFolder(name).read_info()
        image_size = info.preprocessing.height, info.preprocessing.width
        return Subject(f"{info.config.network.model} of {name}", info.model(), image_size)
    image_size = arguments.image_size or IMAGE_SIZES[arguments.variant]
    for option, value, least in (
        ("image-size", min(image_size), SMALLEST_IMAGE),
        ("num-classes", arguments.num_classes, 2),
        ("width", arguments.width, 1),
    ):
        if value < least:
            raise UserError(f"--{option} must be at least {least}, not {value}")
    model = resnet(name, arguments.variant, num_classes=arguments.num_classes, width=arguments.width)
    if model.width * model.widen % model.groups:
        raise UserError(f"--width {arguments.width} cannot be divided into the {model.groups} groups of {name}")
    return Subject(f"{name}, {arguments.variant}", model, image_size)
