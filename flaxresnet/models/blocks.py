"""Residual blocks (He et al. 2015, arXiv:1512.03385, figure 5), written and named as in the tutorials.

A block's layers carry the tutorials' names: block `label="2a"` holds `res2a_branch2a` (the first convolution),
`bn2a_branch2a` (its batch norm), `…_branch2b`, in bottleneck blocks `…_branch2c` and, where the shortcut has a
convolution, `…_branch1`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import flax.linen as nn
import jax

from flaxresnet.models.batch_norm import BatchNorm
from flaxresnet.models.conv import Conv

LayerDef: TypeAlias = Callable[..., Any]

conv_with_glorot = partial(Conv, kernel_init=nn.initializers.glorot_uniform())
batch_norm = partial(BatchNorm, epsilon=1e-3)


class ResidualBlock(nn.Module):
    """What the blocks share: a main path of convolutions, each followed by batch norm.

    Attributes:
      filters: features of the main path's convolutions. Three make a bottleneck: 1×1, k×k, 1×1, as in ResNet-50 and
        deeper (figure 5 right); two make a basic block: k×k, k×k, as in ResNet-18 and 34 (figure 5 left).
      kernel_size: k, in pixels.
      label: stage and block, such as `"2a"`; part of every layer's name.
      strided: which convolution of the main path takes the stride: 0, as in the paper and the tutorials, or in a
        bottleneck 1, as in PyTorch ("v1.5").
      groups: parts into which the channels of a bottleneck's k×k convolution are divided (Xie et al. 2016,
        arXiv:1611.05431, figure 3c).
      conv: makes a convolution layer: `conv(features, kernel_size, strides=…, padding=…, name=…)`, and
        `feature_group_count=…` where there are groups.
      norm: makes a normalisation layer: `norm(name=…)(x, use_running_average=…)`.
      act: the activation.
      zero_init_residual: whether the scale (gamma) of the last batch norm starts at 0 (zero-init), so that the block
        starts as its shortcut alone (Goyal et al. 2017, arXiv:1706.02677, section 5.1).
    """

    filters: tuple[int, ...]
    kernel_size: int = 3
    label: str = ""
    strided: int = 0
    groups: int = 1
    conv: LayerDef = conv_with_glorot
    norm: LayerDef = batch_norm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    zero_init_residual: bool = False

    def main_path(self, x: jax.Array, strides: int, train: bool) -> jax.Array:
        """(batch, h, w, channels) → (batch, ⌈h / strides⌉, ⌈w / strides⌉, filters[-1]), without the last activation."""
        k, last = self.kernel_size, len(self.filters) - 1
        sizes = {2: (k, k), 3: (1, k, 1)}.get(len(self.filters))
        if sizes is None:
            raise ValueError(f"filters is {self.filters}; a block has two convolutions (basic) or three (bottleneck)")
        for index, (features, size) in enumerate(zip(self.filters, sizes, strict=True)):
            step = strides if index == self.strided else 1
            groups = self.groups if (index, last) == (1, 2) else 1
            scale = 0.0 if self.zero_init_residual and index == last else 1.0
            x = self.conv_norm(x, f"2{'abc'[index]}", features, size, step, train, groups, scale)
            x = x if index == last else self.act(x)
        return x

    def conv_norm(
        self,
        x: jax.Array,
        branch: str,
        features: int,
        size: int,
        strides: int,
        train: bool,
        groups: int = 1,
        scale: float = 1.0,
    ) -> jax.Array:
        name = f"{self.label}_branch{branch}"
        # Zeros on both sides, also where the window is strided and "SAME" would put them behind the image alone.
        padding = [((size - 1) // 2, size // 2)] * 2
        grouped = {"feature_group_count": groups} if groups > 1 else {}
        conv = self.conv(
            features, (size, size), strides=(strides, strides), padding=padding, name="res" + name, **grouped
        )
        norm = self.norm(scale_init=nn.initializers.constant(scale), name="bn" + name)
        return norm(conv(x), use_running_average=not train)


class IdentityBlock(ResidualBlock):
    """The tutorials' `identity_block`: relu(x + main path(x)); the shape stays as it is.

    `__call__(x, train=False)` takes and returns (batch, height, width, filters[-1]). `train=True` normalises with
    the batch's own statistics and, with `mutable=["batch_stats"]`, updates the running ones.
    """

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        if x.shape[-1] != self.filters[-1]:
            raise ValueError(
                f"IdentityBlock adds its input to its output, so the input's {x.shape[-1]} channels must equal "
                f"filters[-1] = {self.filters[-1]}; use ConvolutionalBlock where they differ"
            )
        return self.act(x + self.main_path(x, 1, train))


class ConvolutionalBlock(ResidualBlock):
    """The tutorials' `convolutional_block`: relu(1×1 convolution of x + main path(x)).

    `__call__(x, train=False)` takes (batch, height, width, channels) and returns
    (batch, ⌈height / strides⌉, ⌈width / strides⌉, filters[-1]).

    Attributes:
      strides: the step of the main path's strided convolution and of the shortcut's, in pixels.
    """

    strides: int = 2

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        y = self.main_path(x, self.strides, train)
        shortcut = self.conv_norm(x, "1", self.filters[-1], 1, self.strides, train)
        return self.act(y + shortcut)
