"""Residual blocks (He et al. 2015, arXiv:1512.03385, figure 5) with the tutorials' structure and layer names.

In a block with `label="2a"`, the first convolution is `res2a_branch2a` and its batch norm `bn2a_branch2a`. The names of
the next layers end in `_branch2b` and, in bottleneck blocks, `_branch2c`. A convolution in the shortcut is
`res2a_branch1`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxresnet.models.batch_norm import BatchNorm
from flaxresnet.models.conv import Conv

LayerDef: TypeAlias = Callable[..., Any]

conv_with_glorot = partial(Conv, kernel_init=nn.initializers.glorot_uniform())
batch_norm = partial(BatchNorm, epsilon=1e-3)


class ConvSpec(NamedTuple):
    """A convolution of a block or of the stem.

    Attributes:
      branch: end of the layer's name: `"2a"`, `"2b"` or `"2c"` on the main path, `"1"` in the shortcut, `""` in the
        stem.
      features: output channels.
      size: height and width of the kernel, in pixels.
      strides: step in both directions, in pixels.
      groups: number of channel groups.
    """

    branch: str
    features: int
    size: int
    strides: int = 1
    groups: int = 1


def main_path_convs(
    filters: tuple[int, ...], kernel_size: int, strides: int, strided: int = 0, groups: int = 1
) -> list[ConvSpec]:
    """Returns the convolutions of a block's main path, in order.

    Args:
      filters: output channels of each convolution: two for a basic block, three for a bottleneck.
      kernel_size: height and width of the basic block's kernels and of the bottleneck's middle kernel.
      strides: stride of the block.
      strided: index of the bottleneck's convolution that has the stride, 0 or 1. A basic block ignores it.
      groups: channel groups of the bottleneck's middle convolution. A basic block ignores it.

    Raises:
      ValueError: `filters` has neither two nor three entries.
    """
    if len(filters) == 2:
        return [ConvSpec("2a", filters[0], kernel_size, strides), ConvSpec("2b", filters[1], kernel_size)]
    if len(filters) != 3:
        raise ValueError(f"filters is {filters}; give two filters for a basic block or three for a bottleneck")
    steps = [1, 1, 1]
    steps[strided] = strides
    return [
        ConvSpec("2a", filters[0], 1, steps[0]),
        ConvSpec("2b", filters[1], kernel_size, steps[1], groups),
        ConvSpec("2c", filters[2], 1, steps[2]),
    ]


class ResidualBlock(nn.Module):
    """Base class of the blocks: a main path of convolutions, each followed by batch norm.

    Attributes:
      filters: output channels of the main path's convolutions. Three filters make a bottleneck (1×1, k×k, 1×1), as in
        ResNet-50 and deeper (figure 5, right). Two make a basic block (k×k, k×k), as in ResNet-18 and 34 (figure 5,
        left).
      kernel_size: k, in pixels.
      label: stage and block, such as `"2a"`; part of every layer's name.
      strided: index of the bottleneck's convolution that has the stride: 0, as in the paper and the tutorials, or 1,
        as in PyTorch ("v1.5"). A basic block's first convolution always has the stride.
      groups: channel groups of a bottleneck's k×k convolution (Xie et al. 2016, arXiv:1611.05431, figure 3c).
      conv: creates a convolution layer: `conv(features, kernel_size, strides=…, padding=…, name=…)`, with
        `feature_group_count=…` if `groups` is above 1.
      norm: creates a normalization layer: `norm(name=…, scale_init=…)(x, use_running_average=…)`.
      act: activation function.
      zero_init_residual: whether the scale (gamma) of the last batch norm starts at 0, so that the block starts as its
        shortcut alone (Goyal et al. 2017, arXiv:1706.02677, section 5.1).
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
        """Applies the main path, without the activation that follows the sum.

        Args:
          x: (batch, height, width, channels).
          strides: stride of the block.
          train: whether batch norm uses the batch's own statistics.

        Returns:
          (batch, ⌈height / strides⌉, ⌈width / strides⌉, filters[-1]).
        """
        *inner, last = main_path_convs(self.filters, self.kernel_size, strides, self.strided, self.groups)
        for spec in inner:
            x = self.act(self.conv_norm(x, spec, train))
        return self.conv_norm(x, last, train, gamma=0.0 if self.zero_init_residual else 1.0)

    def conv_norm(self, x: jax.Array, spec: ConvSpec, train: bool, gamma: float = 1.0) -> jax.Array:
        """Applies a convolution and its batch norm, whose scale starts at `gamma`."""
        name = f"{self.label}_branch{spec.branch}"
        # Symmetric zeros as in the tutorials. With stride 2, "SAME" would pad images of even size only at the end.
        padding = [((spec.size - 1) // 2, spec.size // 2)] * 2
        grouped = {"feature_group_count": spec.groups} if spec.groups > 1 else {}
        size = (spec.size, spec.size)
        strides = (spec.strides, spec.strides)
        conv = self.conv(spec.features, size, strides=strides, padding=padding, name="res" + name, **grouped)
        norm = self.norm(scale_init=nn.initializers.constant(gamma), name="bn" + name)
        return norm(conv(x), use_running_average=not train)


class IdentityBlock(ResidualBlock):
    """The tutorials' `identity_block`: act(x + main path(x)). The shape stays the same.

    `__call__(x, train=False)` takes and returns (batch, height, width, filters[-1]). `train=True` normalizes with
    the batch's own statistics and updates the running statistics. `apply` then needs `mutable=["batch_stats"]`; without
    it, Flax raises ModifyScopeVariableError. Raises ValueError if x has another number of channels.
    """

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        if x.shape[-1] != self.filters[-1]:
            raise ValueError(
                f"IdentityBlock adds its input to its output, so the input's {x.shape[-1]} channels must equal "
                f"filters[-1] = {self.filters[-1]}; use ConvolutionalBlock if they differ"
            )
        return self.act(x + self.main_path(x, 1, train))


class ConvolutionalBlock(ResidualBlock):
    """The tutorials' `convolutional_block`: act(main path(x) + batch norm(1×1 convolution(x))).

    `__call__(x, train=False)` takes (batch, height, width, channels) and returns
    (batch, ⌈height / strides⌉, ⌈width / strides⌉, filters[-1]). `train` is as in `IdentityBlock`.

    Attributes:
      strides: stride of the main path and of the shortcut, in pixels.
    """

    strides: int = 2

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        y = self.main_path(x, self.strides, train)
        shortcut = self.conv_norm(x, ConvSpec("1", self.filters[-1], 1, self.strides), train)
        return self.act(y + shortcut)


class PaddedBlock(ResidualBlock):
    """A block whose shortcut subsamples x and pads its channels with zeros, without parameters.

    He et al. 2015, section 3.3, option A. Half of the new channels precede the old ones and half follow them, as in
    common PyTorch implementations. `__call__` takes and returns the shapes of `ConvolutionalBlock`.

    Attributes:
      strides: stride of the main path and of the shortcut, in pixels.
    """

    strides: int = 2

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        y = self.main_path(x, self.strides, train)
        shortcut = x[:, :: self.strides, :: self.strides]
        padding = channel_padding(x.shape[-1], self.filters[-1])
        return self.act(y + jnp.pad(shortcut, [(0, 0), (0, 0), (0, 0), padding]))


def channel_padding(inputs: int, outputs: int) -> tuple[int, int]:
    """Returns the numbers of zero channels before and after `inputs` channels that make up `outputs` channels."""
    before = (outputs - inputs) // 2
    return before, outputs - inputs - before
