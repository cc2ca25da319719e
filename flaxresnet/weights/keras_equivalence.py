"""What a Keras model computes between its weights, from its description: two models compute alike or do not.

Each layer is brought to a plain form, (operation, what it takes): zeros that are added before a window belong to the
window, activations that do nothing are left out, and a sum does not care for its order. Layers with weights are told by
their names.
"""

from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Any

from flaxresnet.models.layer_graph import Layer
from flaxresnet.runtime.errors import UserError
from flaxresnet.weights.keras_config import keras_config

IDLE = {"Dropout", "Softmax"}  # nothing in inference, or after the logits
# Layers of which a ResNet is made in Keras.
KINDS = IDLE | {
    *("InputLayer", "ZeroPadding2D", "Conv2D", "BatchNormalization", "Activation", "ReLU", "MaxPooling2D", "Add"),
    *("AveragePooling2D", "GlobalAveragePooling2D", "Flatten", "Dense"),
}
NodeKey = tuple[Any, ...]


def require_equivalent(
    config: dict[str, Any], ours: list[Layer], feature_map_size: tuple[int, int], title: str
) -> None:
    """Raises UserError where a model computes something else than our network.

    Args:
      config: the model's description, as Keras writes it.
      ours: our network's layers, by the names that they have in the model.
      feature_map_size: height and width of what the last stage gives; an average over as much is one over all.
      title: what our network is called.
    """
    theirs = CanonicalGraph(config, feature_map_size)
    expected = CanonicalGraph(keras_config(ours, "ours"), feature_map_size, theirs.numbers)
    for layer in ours:
        if layer.table is None or layer.name not in theirs.forms:
            continue  # what is missing has been named by its weights
        if theirs.forms[layer.name] != expected.forms[layer.name]:
            raise UserError(f"its layer {layer.name} computes something else, or from something else, than in {title}")


class CanonicalGraph:
    """A model's layers in plain form.

    Attributes:
      forms: a layer's form, by its name.
      numbers: of forms; equal ones have one number, by which forms name what they take.
    """

    def __init__(
        self, config: dict[str, Any], feature_map_size: tuple[int, int], numbers: dict[NodeKey, int] | None = None
    ):
        self.numbers = {} if numbers is None else numbers
        self.forms: dict[str, NodeKey] = {}
        self.feature_map_size = list(feature_map_size)
        layers = {layer["config"]["name"]: layer for layer in config["config"]["layers"]}
        sources = {name: inputs_of(layer) for name, layer in layers.items()}
        for name in _sources_first(sources):
            layer = layers[name]
            taken = [self.forms[source] for source in sources[name]]
            self.forms[name] = self._form(name, layer["class_name"], layer["config"], taken)

    def _number(self, form: NodeKey) -> int:
        return self.numbers.setdefault(form, len(self.numbers))

    def _form(self, name: str, kind: str, options: dict[str, Any], taken: list[NodeKey]) -> NodeKey:
        if kind not in KINDS:
            raise UserError(f"its layer {name} is a {kind}, which is no part of a ResNet as known here")
        if options.get("data_format", "channels_last") not in (None, "channels_last"):
            raise UserError(f"its layer {name} has data_format {options['data_format']}, not channels_last")
        if kind == "InputLayer":
            return ("input", (options.get("batch_shape") or options.get("batch_input_shape") or [None])[-1])
        if kind == "Add":
            return ("add", *sorted(map(self._number, taken)))
        (x,) = taken or [("nothing",)]
        if kind in IDLE:
            return x
        if kind in ("Activation", "ReLU"):
            return self._activation(kind, options, x)
        if kind == "ZeroPadding2D":
            return ("zeros", _sides(options["padding"]), self._number(x))
        if kind == "Conv2D":
            window = self._window(options["kernel_size"], options["strides"], options["padding"], x)
            dilation = tuple(options.get("dilation_rate", [1, 1]))
            return ("conv", name, window, options.get("groups", 1), dilation, _function(options))
        if kind in ("MaxPooling2D", "AveragePooling2D"):
            strides = options.get("strides") or options["pool_size"]
            if kind == "AveragePooling2D" and list(options["pool_size"]) == self.feature_map_size:
                return ("mean", self._number(x))
            return (kind, self._window(options["pool_size"], strides, options.get("padding", "valid"), x))
        if kind == "GlobalAveragePooling2D":
            return ("mean", self._number(x))
        if kind == "Flatten":
            return x if x[0] == "mean" else ("flat", self._number(x))
        return (kind, name, self._number(x), _function(options))  # BatchNormalization and Dense

    def _activation(self, kind: str, options: dict[str, Any], x: NodeKey) -> NodeKey:
        if kind == "ReLU":
            plain = not any(options.get(name) for name in ("negative_slope", "threshold"))
            function: Any = (
                "relu" if plain and options.get("max_value") is None else str(sorted(options.items(), key=str))
            )
        else:
            function = _function(options)
        return x if function is None else (function, self._number(x))

    def _window(self, size: Any, strides: Any, padding: str, x: NodeKey) -> NodeKey:
        """A window with the zeros around what it is laid on; "same" is a number of zeros only at step one."""
        zeros: Any = ((0, 0), (0, 0))
        if padding != "valid" and set(size) != {1}:
            zeros = tuple(((side - 1) // 2, side // 2) for side in size) if set(strides) == {1} else padding
        if x[0] == "zeros":
            zeros, number = x[1] if padding == "valid" else (x[1], zeros), x[2]
        else:
            number = self._number(x)
        return (tuple(size), tuple(strides), zeros, number)


def _sources_first(sources: dict[str, list[str]]) -> list[str]:
    """Layers after all that they take; Keras may list them before."""
    for name, taken in sources.items():
        if not sources.keys() >= set(taken):
            raise UserError(f"its layer {name} takes something that is not in the model")
    try:
        return [*TopologicalSorter(sources).static_order()]
    except CycleError as error:
        raise UserError(f"its layer {error.args[1][0]} takes what is computed from it") from None


def _function(options: dict[str, Any]) -> str | None:
    """A layer's activation; None where there is none, or where it is the softmax after the logits."""
    name = str(options.get("activation", "linear"))
    return None if name in ("linear", "softmax") else name


def _sides(padding: Any) -> NodeKey:
    """Zeros above, below, left and right, from any of the ways in which Keras writes them."""
    rows, columns = padding if isinstance(padding, list | tuple) else (padding, padding)
    both = [(side, side) if isinstance(side, int) else tuple(side) for side in (rows, columns)]
    return tuple(both)


def inputs_of(layer: dict[str, Any]) -> list[str]:
    """Names of the layers that a layer takes: Keras 2 writes [name, 0, 0, …], Keras 3 a keras_history of that form."""

    def names(value: Any) -> Iterator[str]:
        if isinstance(value, list):
            if len(value) > 2 and isinstance(value[0], str) and all(isinstance(number, int) for number in value[1:3]):
                yield value[0]
            else:
                for item in value:
                    yield from names(item)
        elif isinstance(value, dict):
            for item in value.values():
                yield from names(item)

    return list(names(layer.get("inbound_nodes", [])))
