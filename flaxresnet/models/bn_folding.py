"""Folding of batch norm into the preceding convolutions, for faster inference."""

from typing import Any

import jax.numpy as jnp
from jax import lax

from flaxresnet.models.blocks import LayerDef
from flaxresnet.models.conv import FoldedConv, use_ohwi_layout
from flaxresnet.models.resnet import ResNet


def identity_norm(**_: Any) -> Any:
    """Returns a layer that returns its input. It accepts the arguments of `nn.BatchNorm`."""
    return lambda x, **_: x


def fold_batch_norm(model: ResNet, variables: Any, conv: LayerDef = FoldedConv) -> tuple[ResNet, Any]:
    """Returns the network for inference without batch norm, and its variables.

    In inference, batch norm computes y = (x - mean) · scale / √(var + ε) + bias for each channel. A convolution and its
    batch norm are therefore one convolution with the kernel k · scale / √(var + ε) and the bias
    (b - mean) · scale / √(var + ε) + bias.

    Args:
      model: a network whose layers have the tutorials' names.
      variables: the network's {"params": …, "batch_stats": …}. The function does not change them.
      conv: the convolution layer of the folded network, with the fields and parameters of `nn.Conv`. The default,
        `FoldedConv`, is fast on CPUs.

    Returns:
      A model and its variables {"params": …}. With `train=False`, the model returns the same logits up to rounding.
    """
    params = _fold(variables["params"], variables["batch_stats"], model.epsilon, conv is FoldedConv)
    return model.clone(norm=identity_norm, conv=conv, conv_bias=True), {"params": params}


def _fold(params: Any, stats: Any, epsilon: float, ohwi: bool) -> Any:
    """Folds one level of the parameter tree and the blocks in it.

    Args:
      params, stats: the level's parameters and batch-norm statistics.
      epsilon: number added to the variance.
      ohwi: whether to store large kernels in the layout of `FoldedConv`.
    """
    folded = {}
    for name, layer in params.items():
        norm = f"bn_{name}" if name == "conv1" else name.replace("res", "bn")
        if norm != name and norm in params:
            gain = params[norm]["scale"] * lax.rsqrt(stats[norm]["var"] + epsilon)  # (features,)
            bias = (layer.get("bias", 0.0) - stats[norm]["mean"]) * gain + params[norm]["bias"]
            kernel = layer["kernel"] * gain
            if ohwi and use_ohwi_layout(kernel.shape):
                kernel = jnp.moveaxis(kernel, -1, 0)
            folded[name] = {"kernel": kernel, "bias": bias}
        elif name not in stats:
            folded[name] = layer
        elif "mean" not in stats[name]:
            folded[name] = _fold(layer, stats[name], epsilon, ohwi)
    return folded
