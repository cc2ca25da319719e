"""Comparison of the computation that a Keras model's configuration describes with that of a ResNet.

The comparison brings each layer to a canonical form, (operation, inputs): zero padding before a window becomes a part
of the window, activations without effect are dropped, and a sum ignores the order of its terms. Layers with weights
are identified by name.
"""

from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Any

from flaxresnet.models.layer_graph import Layer
from flaxresnet.runtime.errors import UserError
from flaxresnet.weights.keras_config import keras_config

NO_OPS = {"Dropout", "Softmax"}  # Dropout does nothing in inference, and Softmax follows the logits
# Keras's classes of a ResNet's layers.
KINDS = NO_OPS | {
    *("InputLayer", "ZeroPadding2D", "Conv2D", "BatchNormalization", "Activation", "ReLU", "MaxPooling2D", "Add"),
    *("AveragePooling2D", "GlobalAveragePooling2D", "Flatten", "Dense"),
}
NodeKey = tuple[Any, ...]


def require_equivalent(
    config: dict[str, Any], layers: list[Layer], feature_map_size: tuple[int, int], title: str
) -> None:
    """Raises UserError unless a Keras model computes the same function as the given layers.

    Args:
      config: the model's configuration, as Keras writes it.
      layers: the expected layers, with the names that they have in the model.
      feature_map_size: height and width of the last stage's output; an average over a window of this size is a global
        average.
      title: the expected network's name, for the message.
    """
    actual = CanonicalGraph(config, feature_map_size)
    expected = CanonicalGraph(keras_config(layers, "expected"), feature_map_size, actual.ids)
    for layer in layers:
        if layer.param_name is None or layer.name not in actual.nodes:
            continue  # the comparison of the weights' names reports missing layers
        if actual.nodes[layer.name] != expected.nodes[layer.name]:
            raise UserError(f"layer {layer.name} has other options or inputs than in {title}, the closest network")


class CanonicalGraph:
    """A Keras model's layers in canonical form.

    Attributes:
      nodes: canonical form of each layer, by layer name.
      ids: a number for each distinct form, by which other forms refer to it as their input. Two graphs that share
        `ids` have equal forms for equal computations.
    """

    def __init__(
        self, config: dict[str, Any], feature_map_size: tuple[int, int], ids: dict[NodeKey, int] | None = None
    ):
        self.ids = {} if ids is None else ids
        self.nodes: dict[str, NodeKey] = {}
        self.feature_map_size = list(feature_map_size)
        layers = {layer["config"]["name"]: layer for layer in config["config"]["layers"]}
        sources = {name: inputs_of(layer) for name, layer in layers.items()}
        for name in _topological_order(sources):
            layer = layers[name]
            inputs = [self.nodes[source] for source in sources[name]]
            self.nodes[name] = self._canonical(name, layer["class_name"], layer["config"], inputs)

    def _id(self, node: NodeKey) -> int:
        return self.ids.setdefault(node, len(self.ids))

    def _canonical(self, name: str, kind: str, options: dict[str, Any], inputs: list[NodeKey]) -> NodeKey:
        if kind not in KINDS:
            raise UserError(f"layer {name} is a {kind}, which is no layer of a ResNet; save the model without it")
        if options.get("data_format", "channels_last") not in (None, "channels_last"):
            raise UserError(f"layer {name} has data_format {options['data_format']}; save the model as channels_last")
        if kind == "InputLayer":
            return ("input", (options.get("batch_shape") or options.get("batch_input_shape") or [None])[-1])
        if kind == "Add":
            return ("add", *sorted(map(self._id, inputs)))
        (x,) = inputs or [("nothing",)]
        if kind in NO_OPS:
            return x
        if kind in ("Activation", "ReLU"):
            return self._activation(kind, options, x)
        if kind == "ZeroPadding2D":
            return ("zeros", _pad_widths(options["padding"]), self._id(x))
        if kind == "Conv2D":
            window = self._window(options["kernel_size"], options["strides"], options["padding"], x)
            dilation = tuple(options.get("dilation_rate", [1, 1]))
            return ("conv", name, window, options.get("groups", 1), dilation, _activation_name(options))
        if kind == "GlobalAveragePooling2D":
            return ("mean", self._id(x))
        if kind == "AveragePooling2D" and list(options["pool_size"]) == self.feature_map_size:
            return ("mean", self._id(x))
        if kind in ("MaxPooling2D", "AveragePooling2D"):
            strides = options.get("strides") or options["pool_size"]
            return (kind, self._window(options["pool_size"], strides, options.get("padding", "valid"), x))
        if kind == "Flatten":
            return x if x[0] == "mean" else ("flat", self._id(x))
        return (kind, name, self._id(x), _activation_name(options))  # BatchNormalization and Dense

    def _activation(self, kind: str, options: dict[str, Any], x: NodeKey) -> NodeKey:
        if kind == "Activation":
            function = _activation_name(options)
        elif options.get("negative_slope") or options.get("threshold") or options.get("max_value") is not None:
            function = str(sorted(options.items(), key=str))
        else:
            function = "relu"
        return x if function is None else (function, self._id(x))

    def _window(self, size: Any, strides: Any, padding: str, x: NodeKey) -> NodeKey:
        """Returns the form of a convolution's or pooling's window, including its zero padding.

        "same" is replaced by numbers of zeros for stride 1 only; for other strides they depend on the image size.
        """
        zeros: Any = ((0, 0), (0, 0))
        if padding != "valid" and set(size) != {1}:
            zeros = tuple(((side - 1) // 2, side // 2) for side in size) if set(strides) == {1} else padding
        if x[0] != "zeros":
            return (tuple(size), tuple(strides), zeros, self._id(x))
        _, padded, source = x
        return (tuple(size), tuple(strides), padded if padding == "valid" else (padded, zeros), source)


def _topological_order(sources: dict[str, list[str]]) -> list[str]:
    """Returns layer names, each after its inputs; Keras may list a layer before its inputs.

    Raises UserError if an input does not exist or a layer depends on itself.
    """
    for name, inputs in sources.items():
        missing = set(inputs) - sources.keys()
        if missing:
            raise UserError(f"layer {name} has the input {min(missing)}, which is not in the model")
    try:
        return [*TopologicalSorter(sources).static_order()]
    except CycleError as error:
        raise UserError(f"layer {error.args[1][0]} depends on its own output") from None


def _activation_name(options: dict[str, Any]) -> str | None:
    """Returns a layer's activation; None for the identity, and for a softmax, which only follows the logits."""
    name = str(options.get("activation", "linear"))
    return None if name in ("linear", "softmax") else name


def _pad_widths(padding: Any) -> NodeKey:
    """Returns ((top, bottom), (left, right)) for an integer, a pair or two pairs, as Keras writes padding."""
    axes = padding if isinstance(padding, list | tuple) else (padding, padding)
    return tuple((width, width) if isinstance(width, int) else tuple(width) for width in axes)


def inputs_of(layer: dict[str, Any]) -> list[str]:
    """Returns the names of a layer's inputs, from its configuration.

    Keras 2 writes [name, 0, 0, …] for each input, and Keras 3 a keras_history of the same form.
    """

    def names(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            for item in value.values():
                yield from names(item)
        elif isinstance(value, list):
            if len(value) > 2 and isinstance(value[0], str) and all(isinstance(number, int) for number in value[1:3]):
                yield value[0]
            else:
                for item in value:
                    yield from names(item)

    return list(names(layer.get("inbound_nodes", [])))
