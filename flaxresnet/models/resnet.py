"""Residual networks: a stem, stages of blocks, pooling and one dense layer; `SIZES` and `VARIANTS` describe them.

He et al. 2015, "Deep Residual Learning for Image Recognition", arXiv:1512.03385. Wide ResNets are from Zagoruyko &
Komodakis 2016, arXiv:1605.07146, and channel groups (ResNeXt) from Xie et al. 2016, arXiv:1611.05431.
"""

import math
from collections.abc import Callable
from functools import partial
from string import ascii_lowercase
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxresnet.config.recipes import CIFAR_WIDTH
from flaxresnet.models.batch_norm import BatchNorm
from flaxresnet.models.blocks import (
    ConvolutionalBlock,
    ConvSpec,
    IdentityBlock,
    LayerDef,
    PaddedBlock,
    conv_with_glorot,
)
from flaxresnet.models.pool import max_pool
from flaxresnet.runtime.errors import UserError

# Fields of the CIFAR networks of the paper's section 4.2.
CIFAR: dict[str, Any] = {
    "width": CIFAR_WIDTH,
    "bottleneck": False,
    "stem": "small",
    "shortcut": "pad",
    "head": "average",
    "conv_bias": False,
}

# Fields of `ResNet` by size. He et al. list depths 18 to 152 in table 1 and 20 to 110 in table 6. Depths 14 and 26 are
# additions for small data sets.
SIZES: dict[str, dict[str, Any]] = {
    "resnet14": {"stage_sizes": (1, 1, 1, 1)},
    "resnet18": {"stage_sizes": (2, 2, 2, 2), "bottleneck": False},
    "resnet26": {"stage_sizes": (2, 2, 2, 2)},
    "resnet34": {"stage_sizes": (3, 4, 6, 3), "bottleneck": False},
    "resnet50": {"stage_sizes": (3, 4, 6, 3)},
    "resnet101": {"stage_sizes": (3, 4, 23, 3)},
    "resnet152": {"stage_sizes": (3, 8, 36, 3)},
    "resnext50_32x4d": {"stage_sizes": (3, 4, 6, 3), "widen": 2, "groups": 32},
    "wide_resnet50_2": {"stage_sizes": (3, 4, 6, 3), "widen": 2},
    "resnet20": CIFAR | {"stage_sizes": (3, 3, 3)},
    "resnet32": CIFAR | {"stage_sizes": (5, 5, 5)},
    "resnet44": CIFAR | {"stage_sizes": (7, 7, 7)},
    "resnet56": CIFAR | {"stage_sizes": (9, 9, 9)},
    "resnet110": CIFAR | {"stage_sizes": (18, 18, 18)},
}

# Fields of `ResNet` that match the pretrained weights of each framework.
VARIANTS: dict[str, dict[str, Any]] = {
    "tutorial": {},
    "keras": {"pool_padding": 1, "head": "average", "epsilon": 1.001e-5},
    "torchvision": {"pool_padding": 1, "head": "average", "epsilon": 1e-5, "strided": 1, "conv_bias": False},
}

# The values of the fields of `ResNet` that select a part of the architecture.
CHOICES = {"stem": ("imagenet", "small"), "shortcut": ("projection", "pad"), "head": ("flatten", "average")}

MIN_IMAGE_SIZE = 32  # pixels; a network with the ImageNet stem and four stages divides height and width by 32


class ResNet(nn.Module):
    """A residual network for image classification.

    `__call__(images, train=False, features=False)` takes float images (batch, height, width, 3), scaled as in training
    (the tutorials scale to [0, 1]). Height and width are at least 32. It returns logits (batch, num_classes), float32,
    without a softmax.

    `train=True` normalizes with the batch's own statistics and updates the running statistics. `apply` then needs
    `mutable=["batch_stats"]`; without it, Flax raises ModifyScopeVariableError.

    `features=True` returns a dict of intermediate results instead: `"stem"`, `"stage2"`, `"stage3"`, … (each
    (batch, h, w, channels), in `dtype`), `"embedding"` (the last layer's input, (batch, n), float32), and `"logits"`.

    `__call__` raises ValueError if the images have another shape or dtype, `num_classes` is below 2, `groups` does not
    divide `width · widen`, or `stem`, `shortcut` or `head` has a value that is not listed below. It raises UserError if
    the images' size gives the last layer another number of inputs than its parameters have.

    Attributes:
      num_classes: number of classes, at least 2. The last layer is named `fc{num_classes}`.
      stage_sizes: number of blocks in each stage, from stage 2 on. The first block of a stage is a
        `ConvolutionalBlock` or a `PaddedBlock` if it changes the shape.
      width: output channels of the stem. Stage `s` has `planes = width · 2^(s-2)`.
      bottleneck: whether blocks are bottlenecks (1×1, 3×3, 1×1 with 4 · planes output channels) or basic blocks (3×3,
        3×3 with planes).
      widen: factor by which the inner convolutions of a bottleneck are wider than planes.
      groups: channel groups of a bottleneck's 3×3 convolution.
      strided: index of the bottleneck's convolution that has the stride: 0, the first 1×1, or 1, the 3×3.
      conv_bias: whether convolutions have biases.
      stem: `"imagenet"`, a 7×7 convolution of stride 2 and 3×3 max pooling of stride 2, or `"small"`, a 3×3 convolution
        of stride 1 without pooling, for images of about 32×32 pixels (section 4.2 of the paper).
      shortcut: shortcut of a block that changes the shape: `"projection"`, a 1×1 convolution, or `"pad"`, subsampling
        and zero-padded channels; see `PaddedBlock`.
      pool_padding: padding of the stem's max pooling, in pixels.
      head: `"flatten"`, the tutorials' 2×2 average pooling followed by flattening, which ties the dense layer to one
        image size, or `"average"`, global average pooling.
      stem_relu: whether a ReLU follows `bn_conv1`. One of the two tutorials leaves it out.
      momentum: decay of the running statistics: new = momentum · old + (1 - momentum) · batch statistics.
      epsilon: number added to the variance in batch norm.
      conv: creates a convolution layer, as `flax.linen.Conv` and its partials do.
      norm: creates a normalization layer, as `flax.linen.BatchNorm` and its partials do.
      act: activation function.
      zero_init_residual: whether each block starts as its shortcut alone (zero-init); see `ResidualBlock`.
      dtype: dtype of the computation from the first convolution to the last block. Parameters, statistics, the last
        pooling and the logits are always float32.
      ghost_batch_size: number of images that share batch statistics with `train=True`; see `BatchNorm.group`. None
        takes the full batch.
      frozen: stages (`"stem"`, `"stage2"`, …, as `stage_of` names them) whose batch norm uses its running statistics
        and does not update them, even with `train=True`.
      freeze_bn_stats: whether batch norm in all stages uses its running statistics and does not update them.
    """

    num_classes: int
    stage_sizes: tuple[int, ...] = SIZES["resnet50"]["stage_sizes"]
    width: int = 64
    bottleneck: bool = True
    widen: int = 1
    groups: int = 1
    strided: int = 0
    conv_bias: bool = True
    stem: Literal["imagenet", "small"] = "imagenet"
    shortcut: Literal["projection", "pad"] = "projection"
    pool_padding: int = 0
    head: Literal["flatten", "average"] = "flatten"
    stem_relu: bool = True
    momentum: float = 0.99
    epsilon: float = 1e-3
    conv: LayerDef = conv_with_glorot
    norm: LayerDef = BatchNorm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    zero_init_residual: bool = False
    dtype: Any = jnp.float32
    ghost_batch_size: int | None = None
    frozen: tuple[str, ...] = ()
    freeze_bn_stats: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, features: bool = False) -> Any:
        check_images(images)
        if self.num_classes < 2:
            raise ValueError(f"num_classes is {self.num_classes}; a classifier needs two or more")
        if self.width * self.widen % self.groups:
            raise ValueError(f"width {self.width} · widen {self.widen} cannot be divided into {self.groups} groups")
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"{name} is {value!r}; give one of {', '.join(choices)}")
        conv = partial(self.conv, use_bias=self.conv_bias, dtype=self.dtype)
        # `flax.linen.BatchNorm` has no field `group`.
        grouped = {} if self.ghost_batch_size is None else {"group": self.ghost_batch_size}
        norm = partial(self.norm, momentum=self.momentum, epsilon=self.epsilon, dtype=self.dtype, **grouped)

        # Shapes in the comments are those of ResNet-50 for 64×64 images, without padding in the pooling.
        spec = stem_conv(self)
        padding = [(spec.size // 2, spec.size // 2)] * 2
        size = (spec.size, spec.size)
        strides = (spec.strides, spec.strides)
        x = conv(self.width, size, strides=strides, padding=padding, name="conv1")(images)
        x = norm(name="bn_conv1")(x, use_running_average=not (train and self.updates_bn("stem")))
        x = self.act(x) if self.stem_relu else x  # (batch, 32, 32, 64)
        if self.stem == "imagenet":
            x = max_pool(x, 3, 2, self.pool_padding)  # (batch, 15, 15, 64)
        outputs = {"stem": x}

        layers = {"conv": conv, "norm": norm, "act": self.act, "zero_init_residual": self.zero_init_residual}
        for block_spec in block_specs(self):
            options = layers | {"strided": self.strided, "groups": self.groups, "label": block_spec.label}
            name = f"res{block_spec.label}"
            if block_spec.projects or block_spec.pads:
                block_class = ConvolutionalBlock if block_spec.projects else PaddedBlock
                block: Any = block_class(block_spec.filters, strides=block_spec.strides, name=name, **options)
            else:
                block = IdentityBlock(block_spec.filters, name=name, **options)
            x = block(x, train=train and self.updates_bn(block_spec.stage))
            outputs[block_spec.stage] = x  # of the last block: (batch, 15, 15, 256), …, (batch, 2, 2, 2048)

        x = x.astype(jnp.float32)
        x = x.mean((1, 2)) if self.head == "average" else avg_pool_flatten(x)  # (batch, 2048)
        name = f"fc{self.num_classes}"
        if self.has_variable("params", name):
            check_inputs(name, self.get_variable("params", name)["kernel"].shape[0], x.shape[1], images.shape)
        logits = nn.Dense(self.num_classes, kernel_init=nn.initializers.glorot_uniform(), name=name)(x)
        return outputs | {"embedding": x, "logits": logits} if features else logits

    def updates_bn(self, stage: str) -> bool:
        """Returns whether a stage's batch norm uses the batch's statistics and updates the running ones in training."""
        return not self.freeze_bn_stats and stage not in self.frozen


class BlockSpec(NamedTuple):
    """A block of a network.

    Attributes:
      label: stage and block, such as `"2a"`.
      stage: the stage's name, such as `"stage2"`.
      filters: output channels of the main path's convolutions.
      strides: stride of the block, in pixels.
      projects: whether the shortcut has a convolution, because the block changes the shape.
      pads: whether the shortcut subsamples and pads with zero channels, because the block changes the shape.
    """

    label: str
    stage: str
    filters: tuple[int, ...]
    strides: int
    projects: bool
    pads: bool


def stem_conv(model: ResNet) -> ConvSpec:
    """Returns the first convolution of a network."""
    if model.stem == "small":
        return ConvSpec("", model.width, 3)
    return ConvSpec("", model.width, 7, 2)


def block_specs(model: ResNet) -> list[BlockSpec]:
    """Returns the blocks of a network, in order."""
    specs = []
    channels = model.width
    for stage, count in enumerate(model.stage_sizes, start=2):
        planes = model.width * 2 ** (stage - 2)
        inner = planes * model.widen
        filters = (inner, inner, 4 * planes) if model.bottleneck else (planes, planes)
        for index, name in enumerate(block_names(count)):
            strides = 2 if stage > 2 and index == 0 else 1
            reshapes = strides > 1 or channels != filters[-1]
            projects = reshapes and model.shortcut == "projection"
            pads = reshapes and model.shortcut == "pad"
            specs.append(BlockSpec(f"{stage}{name}", f"stage{stage}", filters, strides, projects, pads))
            channels = filters[-1]
    return specs


def resnet(size: str, variant: str = "tutorial", **fields: Any) -> ResNet:
    """Returns a network by name, for example `resnet("resnet18", "torchvision", num_classes=1000)`.

    Args:
      size: a key of `SIZES`.
      variant: `"tutorial"`, `"keras"` (Keras Applications) or `"torchvision"` (also timm and Hugging Face).
      **fields: fields of `ResNet`. `num_classes` is required.

    Raises:
      ValueError: the size or variant does not exist.
    """
    for name, choices in ((size, SIZES), (variant, VARIANTS)):
        if name not in choices:
            raise ValueError(f"there is no {name!r}; choose from {', '.join(choices)}")
    return ResNet(**(SIZES[size] | VARIANTS[variant] | fields))


def ResNet18(variant: str = "tutorial", **fields: Any) -> ResNet:  # noqa: N802 - named like the network
    """Returns ResNet-18: 8 basic blocks (arXiv:1512.03385, table 1). Arguments are as in `ResNet50`."""
    return resnet("resnet18", variant, **fields)


def ResNet34(variant: str = "tutorial", **fields: Any) -> ResNet:  # noqa: N802
    """Returns ResNet-34: 16 basic blocks (arXiv:1512.03385, table 1). Arguments are as in `ResNet50`."""
    return resnet("resnet34", variant, **fields)


def ResNet50(variant: str = "tutorial", **fields: Any) -> ResNet:  # noqa: N802
    """Returns ResNet-50: a stem, 16 bottleneck blocks in four stages, and one dense layer.

    He et al. 2015, "Deep Residual Learning for Image Recognition", arXiv:1512.03385, table 1.

    The module takes float images (batch, height, width, 3), height and width at least 32, and returns float32 logits
    (batch, num_classes). The default variant is the network of the Keras tutorials. Its dense layer
    depends on the image size: images that give it another number of inputs raise UserError. The other two variants take
    images of any size from 32×32 on.

        model = ResNet50(num_classes=6)
        variables = model.init(jax.random.key(0), images)  # {"params": …, "batch_stats": …}
        logits = model.apply(variables, images)

    Args:
      variant: `"tutorial"`, `"keras"` (Keras Applications) or `"torchvision"` (also timm and Hugging Face, with the
        stride in the 3×3 convolution).
      **fields: fields of `ResNet`. `num_classes` is required.

    Raises:
      ValueError: the variant does not exist.
    """
    return resnet("resnet50", variant, **fields)


def ResNet101(variant: str = "tutorial", **fields: Any) -> ResNet:  # noqa: N802
    """Returns ResNet-101: 33 bottleneck blocks (arXiv:1512.03385, table 1). Arguments are as in `ResNet50`."""
    return resnet("resnet101", variant, **fields)


def ResNet152(variant: str = "tutorial", **fields: Any) -> ResNet:  # noqa: N802
    """Returns ResNet-152: 50 bottleneck blocks (arXiv:1512.03385, table 1). Arguments are as in `ResNet50`."""
    return resnet("resnet152", variant, **fields)


def ResNet20(variant: str = "tutorial", **fields: Any) -> ResNet:  # noqa: N802
    """Returns the CIFAR network ResNet-20: a 3×3 convolution, 9 basic blocks in three stages, and one dense layer.

    He et al. 2015, arXiv:1512.03385, section 4.2: 16, 32 and 64 channels, shortcuts without parameters (option A),
    global average pooling and no biases in convolutions. It takes images of any size from 32×32 on.

    Args:
      variant: as in `ResNet50`. For this network, the variants differ only in batch norm's epsilon.
      **fields: fields of `ResNet`. `num_classes` is required.

    Raises:
      ValueError: the variant does not exist.
    """
    return resnet("resnet20", variant, **fields)


def ResNet32(variant: str = "tutorial", **fields: Any) -> ResNet:  # noqa: N802
    """Returns the CIFAR network ResNet-32: 15 basic blocks (section 4.2). Arguments are as in `ResNet20`."""
    return resnet("resnet32", variant, **fields)


def ResNet44(variant: str = "tutorial", **fields: Any) -> ResNet:  # noqa: N802
    """Returns the CIFAR network ResNet-44: 21 basic blocks (section 4.2). Arguments are as in `ResNet20`."""
    return resnet("resnet44", variant, **fields)


def ResNet56(variant: str = "tutorial", **fields: Any) -> ResNet:  # noqa: N802
    """Returns the CIFAR network ResNet-56: 27 basic blocks (section 4.2). Arguments are as in `ResNet20`."""
    return resnet("resnet56", variant, **fields)


def ResNet110(variant: str = "tutorial", **fields: Any) -> ResNet:  # noqa: N802
    """Returns the CIFAR network ResNet-110: 54 basic blocks (section 4.2). Arguments are as in `ResNet20`."""
    return resnet("resnet110", variant, **fields)


def width_step(size: str) -> int:
    """Returns the smallest valid width of a size. Its multiples are valid, because their channel groups are equal."""
    groups = SIZES[size].get("groups", 1)
    return groups // math.gcd(groups, SIZES[size].get("widen", 1))


def stage_of(layer: str) -> str:
    """Returns the stage of a top-level layer or block in the parameters: `"stem"`, `"stage2"`, …, or `"head"`."""
    if layer in ("conv1", "bn_conv1"):
        return "stem"
    return f"stage{layer[3]}" if layer.startswith("res") else "head"


def block_names(count: int) -> list[str]:
    """Returns the names of a stage's blocks: a, b, c, …; or, for more than 26 blocks, a, b1, b2, …, as He et al. do."""
    if count <= 26:
        return list(ascii_lowercase[:count])
    return ["a", *(f"b{index}" for index in range(1, count))]


def avg_pool_flatten(x: jax.Array) -> jax.Array:
    """Applies 2×2 average pooling and flattens each image in Keras's order: rows, columns, channels."""
    window = (min(2, x.shape[1]), min(2, x.shape[2]))  # with the ImageNet stem, a 32×32 image is 1×1 here
    return nn.avg_pool(x, window_shape=window, strides=window).reshape(x.shape[0], -1)


def check_images(images: jax.Array) -> None:
    """Raises ValueError unless `images` is a float array (batch, height, width, 3) of at least 32×32 pixels."""
    if images.ndim != 4 or images.shape[-1] != 3 or min(images.shape[1:3]) < MIN_IMAGE_SIZE:
        raise ValueError(
            f"images have shape {tuple(images.shape)}; the network takes (batch, height, width, 3) "
            f"with height and width at least {MIN_IMAGE_SIZE}"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images are {images.dtype}; scale them to floats in [0, 1] first: images / 255")


def check_inputs(layer: str, expected: int, count: int, shape: tuple[int, ...]) -> None:
    """Raises UserError unless the dense layer takes as many inputs as images of this shape give."""
    if count != expected:
        raise UserError(
            f"images of shape {tuple(shape)} give {count} inputs to {layer}, whose parameters take {expected}; resize "
            'the images to the training size, or use the variant "keras" or "torchvision", which takes any size'
        )
