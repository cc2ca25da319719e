"""Batch norm folded into the convolutions before it: the same answers from fewer, larger operations."""

from typing import Any

import jax.numpy as jnp
from jax import lax

from flaxresnet.models.blocks import LayerDef
from flaxresnet.models.conv import FoldedConv, use_ohwi_layout
from flaxresnet.models.resnet import ResNet


def identity_norm(**_: Any) -> Any:
    """A normalisation layer that leaves its input alone; it takes whatever `nn.BatchNorm` takes."""
    return lambda x, **_: x


def fold_batch_norm(model: ResNet, variables: Any, conv: LayerDef = FoldedConv) -> tuple[ResNet, Any]:
    """The same network for inference, without batch norm.

    In inference batch norm is y = (x - mean) · scale / √(var + ε) + bias for each channel, so a convolution followed by
    it is one with the kernel k · scale / √(var + ε) and the bias (b - mean) · scale / √(var + ε) + bias.

    Args:
      model: a network whose layers are named as in the tutorials.
      variables: its {"params": …, "batch_stats": …}; they are not changed.
      conv: the folded network's convolutions, whatever the network's own are: `FoldedConv`, which is fast on CPUs, or
        such as have `nn.Conv`'s fields and parameters.

    Returns:
      A model and its variables {"params": …}: the same logits, to rounding, for `train=False`.
    """
    params = _fold(variables["params"], variables["batch_stats"], model.epsilon, conv is FoldedConv)
    return model.clone(norm=identity_norm, conv=conv, conv_bias=True), {"params": params}


def _fold(params: Any, stats: Any, epsilon: float, turn: bool) -> Any:
    """One level of the tree: blocks are descended into, each batch norm goes into its convolution, the rest stays.

    Where `turn`, large kernels come to lie as `FoldedConv` takes them.
    """
    folded = {}
    for name, layer in params.items():
        norm = f"bn_{name}" if name == "conv1" else name.replace("res", "bn")
        if norm != name and norm in params:
            gain = params[norm]["scale"] * lax.rsqrt(stats[norm]["var"] + epsilon)  # (features,)
            bias = (layer.get("bias", 0.0) - stats[norm]["mean"]) * gain + params[norm]["bias"]
            kernel = layer["kernel"] * gain
            turned = jnp.moveaxis(kernel, -1, 0) if turn and use_ohwi_layout(kernel.shape) else kernel
            folded[name] = {"kernel": turned, "bias": bias}
        elif name not in stats:
            folded[name] = layer
        elif "mean" not in stats[name]:
            folded[name] = _fold(layer, stats[name], epsilon, turn)
    return folded
