"""The layers of a network with shapes, parameters and FLOPs, found by tracing without allocating arrays."""

import math
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxresnet.models.layer_graph import CHANNEL_PADDING, Layer, LayerNaming, graph
from flaxresnet.models.resnet import ResNet, stage_of

# FLOPs per output element of layers without a window; batch norm multiplies and adds.
ELEMENTWISE_FLOPS = {"BatchNormalization": 2, "Activation": 1, "Add": 1}


@dataclass(frozen=True)
class LayerInfo:
    """A layer of a network for images of one size.

    Attributes:
      layer: its name, kind and inputs.
      shape: output shape for one image: (height, width, channels), or (features,).
      parameters: number of trainable parameters.
      statistics: number of batch norm's running averages.
      flops: floating-point operations of the forward pass for one image; a multiply-add counts as two.
      part: stem, stage2, …, or head.
      learns: whether training updates its parameters; False in a frozen part.
    """

    layer: Layer
    shape: tuple[int, ...]
    parameters: int
    statistics: int
    flops: int
    part: str
    learns: bool


def inspect(model: ResNet, image_size: tuple[int, int]) -> list[LayerInfo]:
    """Returns all layers of a network in topological order.

    Args:
      model: a network.
      image_size: height and width of its images in pixels, each at least 32.
    """
    variables, traced_shapes = _trace(model, image_size)
    shapes: dict[str, tuple[int, ...]] = {}
    part = "stem"
    result = []
    for layer in graph(model, image_size, LayerNaming(lambda name: f"fc{model.num_classes}" if name == "fc" else name)):
        input_shape = shapes[layer.inputs[0]] if layer.inputs else ()
        shape = traced_shapes[layer.name] if layer.param_name else _output_shape(layer, input_shape)
        shapes[layer.name] = shape
        if layer.block:
            part = stage_of(f"res{layer.block}")
        elif part != "stem":
            part = "head"
        info = LayerInfo(
            layer,
            shape,
            parameters=_size(variables["params"], layer),
            statistics=_size(variables["batch_stats"], layer),
            flops=_flops(layer, shape, input_shape),
            part=part,
            learns=part not in model.frozen,
        )
        result.append(info)
    return result


def kind_of(info: LayerInfo) -> str:
    """Returns a layer's kind for display, with its window and stride if it has them: "Conv2D 3×3/2"."""
    options = info.layer.options
    kind = info.layer.kind
    window = options.get("kernel_size") or options.get("pool_size")
    if not window:
        return "ReLU" if kind == "Activation" else kind
    stride = options["strides"][0]
    suffix = f"/{stride}" if stride > 1 else ""
    return f"{kind} {window[0]}×{window[1]}{suffix}"


def _trace(model: ResNet, image_size: tuple[int, int]) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """Returns the variables' shapes, and by name the output shape of each layer with variables, for one image."""
    shapes: dict[str, tuple[int, ...]] = {}

    def record_shape(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        result = call(*args, **kwargs)
        if context.module.name and context.method_name == "__call__":
            shapes[context.module.name] = result.shape[1:]
        return result

    def init(images: jax.Array) -> Any:
        with nn.intercept_methods(record_shape):
            return model.init(jax.random.key(0), images)

    variables = jax.eval_shape(init, jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32))
    return variables, shapes


def _size(collection: Any, layer: Layer) -> int:
    """Returns the number of the layer's values in a collection of variables; 0 if it has none."""
    block = collection.get(f"res{layer.block}", {}) if layer.block else collection
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(block.get(layer.name, {})))


def _output_shape(layer: Layer, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the output shape of a layer without variables, for one image."""
    options = layer.options
    if layer.kind == "InputLayer":
        return tuple(options["batch_input_shape"][1:])
    *sides, channels = input_shape
    if layer.kind == "ZeroPadding2D":
        return (*(side + sum(pad) for side, pad in zip(sides, options["padding"], strict=True)), channels)
    if layer.kind == CHANNEL_PADDING:
        return (*sides, channels + sum(options["padding"]))
    if layer.kind in ("MaxPooling2D", "AveragePooling2D"):
        windows = zip(sides, options["pool_size"], options["strides"], strict=True)
        return (*((side - size) // stride + 1 for side, size, stride in windows), channels)
    if layer.kind == "GlobalAveragePooling2D":
        return (channels,)
    return (math.prod(input_shape),) if layer.kind == "Flatten" else input_shape


def _flops(layer: Layer, shape: tuple[int, ...], input_shape: tuple[int, ...]) -> int:
    """Returns the FLOPs of the forward pass for one image."""
    elements = math.prod(shape)
    options = layer.options
    if layer.kind == "Conv2D":
        multiply_adds = math.prod(options["kernel_size"]) * input_shape[-1] // options["groups"]
        return elements * (2 * multiply_adds + options["use_bias"])
    if layer.kind == "Dense":
        return elements * (2 * input_shape[-1] + 1)
    if layer.kind == "GlobalAveragePooling2D":
        return math.prod(input_shape)
    return elements * math.prod(options.get("pool_size", [ELEMENTWISE_FLOPS.get(layer.kind, 0)]))
