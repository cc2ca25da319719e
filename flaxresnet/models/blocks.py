"""Residual blocks of ResNet-50, as the tutorials write them (He et al. 2015, arXiv:1512.03385, figure 5 right).

A block's layers carry the tutorials' names: block `label="2a"` holds `res2a_branch2a` (1×1 convolution),
`bn2a_branch2a` (its batch norm), `…_branch2b` (the k×k convolution), `…_branch2c` (1×1) and, where the shortcut
has a convolution, `…_branch1`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import flax.linen as nn
import jax

from flaxresnet.models.conv import Conv
from flaxresnet.models.norm import BatchNorm

LayerDef: TypeAlias = Callable[..., Any]

conv_with_glorot = partial(Conv, kernel_init=nn.initializers.glorot_uniform())
batch_norm = partial(BatchNorm, epsilon=1e-3)


class BottleneckBlock(nn.Module):
    """What the two blocks share: three convolutions, the first and last 1×1, each followed by batch norm.

    Attributes:
      filters: features of the three convolutions.
      kernel_size: side of the middle convolution's window, in pixels.
      label: stage and block, such as `"2a"`; part of every layer's name.
      conv: makes a convolution layer: `conv(features, kernel_size, strides=…, padding=…, name=…)`.
      norm: makes a normalisation layer: `norm(name=…)(x, use_running_average=…)`.
      act: the activation.
      residual_scale: where the scale of the last batch norm starts. At 0 the block starts as its shortcut alone, which
        makes deep networks trainable from the first step (Goyal et al. 2017, arXiv:1706.02677, section 5.1).
    """

    filters: tuple[int, int, int]
    kernel_size: int = 3
    label: str = ""
    conv: LayerDef = conv_with_glorot
    norm: LayerDef = batch_norm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    residual_scale: float = 1.0

    def main_path(self, x: jax.Array, strides: int, train: bool) -> jax.Array:
        f1, f2, f3 = self.filters
        y = self.act(self.conv_norm(x, "2a", f1, 1, strides, train))  # (batch, h / strides, w / strides, f1)
        y = self.act(self.conv_norm(y, "2b", f2, self.kernel_size, 1, train))
        return self.conv_norm(y, "2c", f3, 1, 1, train, self.residual_scale)  # (batch, h / strides, w / strides, f3)

    def conv_norm(
        self, x: jax.Array, branch: str, features: int, kernel_size: int, strides: int, train: bool, scale: float = 1.0
    ) -> jax.Array:
        name = f"{self.label}_branch{branch}"
        conv = self.conv(
            features, (kernel_size, kernel_size), strides=(strides, strides), padding="SAME", name="res" + name
        )
        norm = self.norm(scale_init=nn.initializers.constant(scale), name="bn" + name)
        return norm(conv(x), use_running_average=not train)


class IdentityBlock(BottleneckBlock):
    """The tutorials' `identity_block`: relu(x + main path(x)); the shape stays as it is.

    `__call__(x, train=False)` takes and returns (batch, height, width, filters[2]). `train=True` normalises with
    the batch's own statistics and, with `mutable=["batch_stats"]`, updates the running ones.
    """

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        if x.shape[-1] != self.filters[-1]:
            raise ValueError(
                f"IdentityBlock adds its input to its output, so the input's {x.shape[-1]} channels must equal "
                f"filters[2] = {self.filters[-1]}; use ConvolutionalBlock where they differ"
            )
        return self.act(x + self.main_path(x, 1, train))


class ConvolutionalBlock(BottleneckBlock):
    """The tutorials' `convolutional_block`: relu(1×1 convolution of x + main path(x)).

    The stride is in the first 1×1 convolution and in the shortcut's. `__call__(x, train=False)` takes
    (batch, height, width, channels) and returns (batch, ⌈height / strides⌉, ⌈width / strides⌉, filters[2]).

    Attributes:
      strides: the step of the first convolution and of the shortcut, in pixels.
    """

    strides: int = 2

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        y = self.main_path(x, self.strides, train)
        shortcut = self.conv_norm(x, "1", self.filters[-1], 1, self.strides, train)
        return self.act(y + shortcut)
