"""What a network is made of: each layer with its shape, parameters and work, found by tracing; no array is made."""

import math
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxresnet.models.layer_graph import Layer, LayerNaming, graph
from flaxresnet.models.resnet import ResNet, stage_of

# FLOPs for each number that a layer gives, where it looks at no window; batch norm is a factor and a summand.
WORK = {"BatchNormalization": 2, "Activation": 1, "Add": 1}


@dataclass(frozen=True)
class LayerInfo:
    """A layer of a network as it is built for images of one size.

    Attributes:
      layer: its name, kind and inputs.
      shape: of what it gives for one image: (height, width, channels), or (features,).
      parameters: numbers that training changes.
      statistics: batch norm's running averages, numbers.
      flops: floating-point operations for one image, forward; a multiplication and an addition count as two.
      part: stem, stage2, …, or head.
      learns: whether training changes it; False in a frozen part.
    """

    layer: Layer
    shape: tuple[int, ...]
    parameters: int
    statistics: int
    flops: int
    part: str
    learns: bool


def inspect(model: ResNet, image_size: tuple[int, int]) -> list[LayerInfo]:
    """Every layer of a network, inputs before what takes them.

    Args:
      model: a network.
      image_size: height and width of its images, in pixels; at least 32.
    """
    variables, given = _trace(model, image_size)
    shapes: dict[str, tuple[int, ...]] = {}
    part, found = "stem", []
    for layer in graph(model, image_size, LayerNaming(lambda name: f"fc{model.num_classes}" if name == "fc" else name)):
        taken = shapes[layer.inputs[0]] if layer.inputs else ()
        shape = shapes[layer.name] = given[layer.name] if layer.param_name else _shape(layer, taken)
        parameters, statistics = (_size(_at(variables[kind], layer)) for kind in ("params", "batch_stats"))
        part = stage_of(f"res{layer.block}") if layer.block else "stem" if part == "stem" else "head"
        work, learns = _flops(layer, shape, taken), part not in model.frozen
        found.append(LayerInfo(layer, shape, parameters, statistics, work, part, learns))
    return found


def kind_of(one: LayerInfo) -> str:
    """A layer's kind for people, with a window and a step where it has them: "Conv2D 3×3/2"."""
    options, kind = one.layer.options, one.layer.kind
    window = options.get("kernel_size") or options.get("pool_size")
    if not window:
        return "ReLU" if kind == "Activation" else kind
    step = options["strides"][0]
    return f"{kind} {window[0]}×{window[1]}{f'/{step}' if step > 1 else ''}"


def _trace(model: ResNet, image_size: tuple[int, int]) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """The variables' shapes, and what each layer with variables gives for one image, by its name."""
    given: dict[str, tuple[int, ...]] = {}

    def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        result = call(*args, **kwargs)
        if context.module.name and context.method_name == "__call__":
            given[context.module.name] = result.shape[1:]
        return result

    def init(images: jax.Array) -> Any:
        with nn.intercept_methods(note):
            return model.init(jax.random.key(0), images)

    variables = jax.eval_shape(init, jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32))
    return variables, given


def _at(tree: Any, layer: Layer) -> Any:
    """The layer's part of a collection of variables; {} where it has none there."""
    inside = tree.get(f"res{layer.block}", {}) if layer.block else tree
    return inside.get(layer.name, {})


def _size(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _shape(layer: Layer, taken: tuple[int, ...]) -> tuple[int, ...]:
    """What a layer without variables gives for one image."""
    if layer.kind == "InputLayer":
        return tuple(layer.options["batch_input_shape"][1:])
    *sides, channels = taken
    if layer.kind == "ZeroPadding2D":
        return (*(side + sum(pad) for side, pad in zip(sides, layer.options["padding"], strict=True)), channels)
    if layer.kind in ("MaxPooling2D", "AveragePooling2D"):
        windows, steps = layer.options["pool_size"], layer.options["strides"]
        return (*((s - w) // step + 1 for s, w, step in zip(sides, windows, steps, strict=True)), channels)
    if layer.kind == "GlobalAveragePooling2D":
        return (channels,)
    return (math.prod(taken),) if layer.kind == "Flatten" else taken


def _flops(layer: Layer, shape: tuple[int, ...], taken: tuple[int, ...]) -> int:
    """Of one image."""
    numbers, options = math.prod(shape), layer.options
    if layer.kind == "Conv2D":
        window = math.prod(options["kernel_size"]) * taken[-1] // options["groups"]
        return numbers * (2 * window + options["use_bias"])
    if layer.kind == "Dense":
        return numbers * (2 * taken[-1] + 1)
    if layer.kind == "GlobalAveragePooling2D":
        return math.prod(taken)
    return numbers * math.prod(options.get("pool_size", [WORK.get(layer.kind, 0)]))
