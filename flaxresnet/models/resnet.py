"""Residual networks: stem, four stages of blocks, pooling, one dense layer; sizes and variants are data.

He et al. 2015, "Deep Residual Learning for Image Recognition", arXiv:1512.03385; wide ones by Zagoruyko & Komodakis
2016, arXiv:1605.07146, and with groups (ResNeXt) by Xie et al. 2016, arXiv:1611.05431.
"""

import math
from collections.abc import Callable
from functools import partial
from string import ascii_lowercase
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxresnet.models.batch_norm import BatchNorm
from flaxresnet.models.blocks import ConvolutionalBlock, IdentityBlock, LayerDef, conv_with_glorot
from flaxresnet.models.pool import max_pool

# The networks by name, as fields of `ResNet`. Table 1 of the paper has 18 to 152; 14 and 26 are ours, for little data.
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
}

# How the worlds that have weights for these networks write them, as fields of `ResNet`.
VARIANTS: dict[str, dict[str, Any]] = {
    "tutorial": {},
    "keras": {"pool_padding": 1, "head": "average", "epsilon": 1.001e-5},
    "torchvision": {"pool_padding": 1, "head": "average", "epsilon": 1e-5, "strided": 1, "conv_bias": False},
}

MIN_IMAGE_SIZE = 32  # pixels; below it the last stage has nothing left to look at


class ResNet(nn.Module):
    """A residual network for image classification.

    `__call__(images, train=False)` takes float images (batch, height, width, 3), height and width at least 32,
    scaled as in training (the tutorials: to [0, 1]), and returns logits (batch, num_classes), float32, not softmaxed.
    `train=True` normalises with the batch's own statistics and, with `mutable=["batch_stats"]`, updates the running
    ones. `features=True` returns a dict of what the network sees on the way: `"stem"`, `"stage2"`, …, `"stage5"` (each
    (batch, h, w, channels), in `dtype`), `"embedding"` (batch, n), which the last layer weights, and `"logits"`.

    Attributes:
      num_classes: width of the last layer, which is named `fc{num_classes}`.
      stage_sizes: blocks a stage, from stage 2 on. The first block of a stage is a `ConvolutionalBlock` wherever the
        shape changes.
      width: features of the stem; stage `s` has `planes = width · 2^(s-2)`.
      bottleneck: whether blocks are 1×1, 3×3, 1×1 with 4 · planes outside, or 3×3, 3×3 with planes.
      widen: how many times planes a bottleneck is wide inside.
      groups: parts into which the channels of a bottleneck's 3×3 convolution are divided.
      strided: the convolution of a bottleneck that takes the stride: 0, the first 1×1, or 1, the 3×3.
      conv_bias: whether convolutions have biases.
      pool_padding: pixels around the image in the stem's max pooling.
      head: `"flatten"`, the tutorials' 2×2 average pooling whose results are all weighted by the dense layer, which
        ties it to one size of images, or `"average"`, the average of all pixels.
      stem_relu: whether a ReLU follows `bn_conv1`; one of the two tutorials leaves it out.
      momentum: decay of the running statistics: new = momentum · old + (1 - momentum) · batch's.
      epsilon: added to the variance in batch norm.
      conv: makes a convolution layer; `flax.linen.Conv` and its partials fit.
      norm: makes a normalisation layer; `flax.linen.BatchNorm` and its partials fit.
      act: the activation.
      dtype: of the arithmetic between the first convolution and the last pooling. Parameters, statistics and logits are
        float32 in any case.
      zero_init_residual: whether each block starts as its shortcut alone (zero-init); see the blocks.
      ghost_batch_size: images that batch norm takes its statistics over with `train=True`, as `BatchNorm.group`; None:
      all.
      frozen: parts (`"stem"`, `"stage2"`, …, as `stage_of` names them) whose batch norm is not in training with
        `train=True`: it uses its running statistics and leaves them as they are.
      freeze_bn_stats: the same of all parts' batch norm, while the parameters learn.
    """

    num_classes: int
    stage_sizes: tuple[int, ...] = SIZES["resnet50"]["stage_sizes"]
    width: int = 64
    bottleneck: bool = True
    widen: int = 1
    groups: int = 1
    strided: int = 0
    conv_bias: bool = True
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
        conv = partial(self.conv, use_bias=self.conv_bias, dtype=self.dtype)
        # flax's layer, which fits too, has no groups.
        grouped = {} if self.ghost_batch_size is None else {"group": self.ghost_batch_size}
        norm = partial(self.norm, momentum=self.momentum, epsilon=self.epsilon, dtype=self.dtype, **grouped)

        x = conv(self.width, (7, 7), strides=(2, 2), padding=[(3, 3), (3, 3)], name="conv1")(images)
        x = norm(name="bn_conv1")(x, use_running_average=not (train and self.updates_bn("stem")))
        x = self.act(x) if self.stem_relu else x
        x = max_pool(x, 3, 2, self.pool_padding)  # (batch, 15, 15, width) for 64×64 images, 16 with padding

        seen = {"stem": x}

        layers = {"conv": conv, "norm": norm, "act": self.act, "zero_init_residual": self.zero_init_residual}
        for stage, blocks in enumerate(self.stage_sizes, start=2):
            planes, first = self.width * 2 ** (stage - 2), 1 if stage == 2 else 2
            for index, name in enumerate(block_names(blocks)):
                block = self.block(planes, 1 if index else first, x.shape[-1])
                updates_stats = train and self.updates_bn(f"stage{stage}")
                x = block(label=f"{stage}{name}", name=f"res{stage}{name}", **layers)(x, train=updates_stats)
            seen[f"stage{stage}"] = x

        x = x.astype(jnp.float32)
        x = x.mean((1, 2)) if self.head == "average" else avg_pool_flatten(x)
        dense = nn.Dense(self.num_classes, kernel_init=nn.initializers.glorot_uniform(), name=f"fc{self.num_classes}")
        logits = dense(x)
        return seen | {"embedding": x, "logits": logits} if features else logits

    def updates_bn(self, part: str) -> bool:
        """Whether a part's batch norm takes the batch's own statistics in training."""
        return not self.freeze_bn_stats and part not in self.frozen

    def block(self, planes: int, strides: int, channels: int) -> Callable[..., nn.Module]:
        """The kind of block that brings (…, channels) to a stage's shape."""
        inside = planes * self.widen
        filters = (inside, inside, 4 * planes) if self.bottleneck else (planes, planes)
        kind: Any = (
            IdentityBlock if (strides, channels) == (1, filters[-1]) else partial(ConvolutionalBlock, strides=strides)
        )
        options = {"strided": self.strided, "groups": self.groups} if self.bottleneck else {}
        return partial(kind, filters, **options)


def resnet(size: str, variant: str = "tutorial", **fields: Any) -> ResNet:
    """A network by its name: `resnet("resnet18", "torchvision", num_classes=1000)`.

    Args:
      size: a name in `SIZES`.
      variant: `"tutorial"`, `"keras"` (Keras Applications) or `"torchvision"` (timm and Hugging Face share it).
      **fields: fields of `ResNet`, `num_classes` among them.

    Raises:
      ValueError: there is no such size or variant.
    """
    for name, known in ((size, SIZES), (variant, VARIANTS)):
        if name not in known:
            raise ValueError(f"there is no {name!r}; choose from {', '.join(known)}")
    return ResNet(**(SIZES[size] | VARIANTS[variant] | fields))


ResNet18 = partial(resnet, "resnet18")
ResNet34 = partial(resnet, "resnet34")
ResNet50 = partial(resnet, "resnet50")
ResNet101 = partial(resnet, "resnet101")
ResNet152 = partial(resnet, "resnet152")


def width_step(size: str) -> int:
    """A network's width is a multiple of this, so that its groups are of one size."""
    groups, widen = (SIZES[size].get(field, 1) for field in ("groups", "widen"))
    return groups // math.gcd(groups, widen)


def stage_of(layer: str) -> str:
    """The part of the network that a layer or block at the top of the parameters belongs to: stem, stage2, …, head."""
    if layer in ("conv1", "bn_conv1"):
        return "stem"
    return f"stage{layer[3]}" if layer.startswith("res") else "head"


def block_names(count: int) -> list[str]:
    """Names of a stage's blocks: a, b, c, …, or where the letters do not suffice a, b1, b2, …, as the authors do."""
    return list(ascii_lowercase[:count]) if count <= 26 else ["a", *(f"b{index}" for index in range(1, count))]


def avg_pool_flatten(x: jax.Array) -> jax.Array:
    """2×2 average pooling, then one row an image: rows, columns, channels, as Keras flattens."""
    window = (min(2, x.shape[1]), min(2, x.shape[2]))  # a 32×32 image has shrunk to 1×1 here
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
