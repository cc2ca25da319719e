"""The tutorials' ResNet: stem, four stages of bottleneck blocks, 2×2 average pooling, one dense layer.

He et al. 2015, "Deep Residual Learning for Image Recognition", arXiv:1512.03385, as the two Keras tutorials wrote it.
"""

from collections.abc import Callable
from functools import partial
from string import ascii_lowercase
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxresnet.models.blocks import ConvolutionalBlock, IdentityBlock, LayerDef, conv_with_glorot
from flaxresnet.models.norm import BatchNorm
from flaxresnet.models.pool import max_pool

# Blocks in stages 2, 3, 4 and 5. ResNet-50 is table 1 of the paper; 14 and 26 have one and two blocks a stage.
STAGE_SIZES = {"resnet14": (1, 1, 1, 1), "resnet26": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}

SMALLEST_IMAGE = 32  # pixels; below it the last stage has nothing left to look at


class ResNet(nn.Module):
    """A residual network for image classification.

    `__call__(images, train=False)` takes float images (batch, height, width, 3), height and width at least 32,
    scaled to [0, 1], and returns logits (batch, num_classes), float32, not softmaxed. `train=True` normalises with
    the batch's own statistics and, with `mutable=["batch_stats"]`, updates the running ones.

    Attributes:
      num_classes: width of the last layer, which is named `fc{num_classes}`.
      stage_sizes: blocks a stage, from stage 2 on; the first of each stage is a `ConvolutionalBlock`.
      width: features of the stem; stage `s` has `width · 2^(s-2)` inside its blocks and four times that outside.
      stem_relu: whether a ReLU follows `bn_conv1`; one of the two tutorials leaves it out.
      momentum: decay of the running statistics: new = momentum · old + (1 - momentum) · batch's.
      epsilon: added to the variance in batch norm.
      conv: makes a convolution layer; `flax.linen.Conv` and its partials fit.
      norm: makes a normalisation layer; `flax.linen.BatchNorm` and its partials fit.
      act: the activation.
      dtype: of the arithmetic between the first convolution and the last pooling. Parameters, statistics and logits are
        float32 in any case.
      residual_scale: where the scale of each block's last batch norm starts; see the blocks.
    """

    num_classes: int
    stage_sizes: tuple[int, ...] = STAGE_SIZES["resnet50"]
    width: int = 64
    stem_relu: bool = True
    momentum: float = 0.99
    epsilon: float = 1e-3
    conv: LayerDef = conv_with_glorot
    norm: LayerDef = BatchNorm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    residual_scale: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        check_images(images)
        if max(self.stage_sizes) > len(ascii_lowercase):
            raise ValueError(f"stage_sizes is {self.stage_sizes}; blocks are named a to z, so a stage has at most 26")
        conv = partial(self.conv, dtype=self.dtype)
        norm = partial(self.norm, momentum=self.momentum, epsilon=self.epsilon, dtype=self.dtype)
        layers = {"conv": conv, "norm": norm, "act": self.act, "residual_scale": self.residual_scale}

        x = conv(self.width, (7, 7), strides=(2, 2), padding=[(3, 3), (3, 3)], name="conv1")(images)
        x = norm(name="bn_conv1")(x, use_running_average=not train)
        x = self.act(x) if self.stem_relu else x
        x = max_pool(x, 3, 2)  # (batch, 15, 15, width) for 64×64 images

        for stage, blocks in enumerate(self.stage_sizes, start=2):
            inner = self.width * 2 ** (stage - 2)
            for index, letter in enumerate(ascii_lowercase[:blocks]):
                block = IdentityBlock if index else partial(ConvolutionalBlock, strides=1 if stage == 2 else 2)
                label = f"{stage}{letter}"
                x = block((inner, inner, 4 * inner), label=label, name="res" + label, **layers)(x, train=train)

        # A 32×32 image has shrunk to 1×1 here, where a 2×2 window would find nothing.
        window = (min(2, x.shape[1]), min(2, x.shape[2]))
        x = nn.avg_pool(x.astype(jnp.float32), window, strides=window)
        x = x.reshape(x.shape[0], -1)  # rows, then columns, then channels, as Keras flattens
        head = nn.Dense(self.num_classes, kernel_init=nn.initializers.glorot_uniform(), name=f"fc{self.num_classes}")
        return head(x)


ResNet50 = partial(ResNet, stage_sizes=STAGE_SIZES["resnet50"])


def check_images(images: jax.Array) -> None:
    """Raises ValueError unless `images` is a float array (batch, height, width, 3) of at least 32×32 pixels."""
    if images.ndim != 4 or images.shape[-1] != 3 or min(images.shape[1:3]) < SMALLEST_IMAGE:
        raise ValueError(
            f"images have shape {tuple(images.shape)}; the network takes (batch, height, width, 3) "
            f"with height and width at least {SMALLEST_IMAGE}"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images are {images.dtype}; scale them to floats in [0, 1] first: images / 255")
