"""A ResNet as Keras describes it: its layers, how they are joined, and the order in which Keras goes through them.

Keras stores a model as its layers' configurations, and weights in the order of its layers, so that files which Keras is
to open need both. `tests/weights` holds them against the real Keras.
"""

from typing import Any

from flaxresnet.models.layer_graph import Layer, LayerNaming, graph
from flaxresnet.models.resnet import ResNet
from flaxresnet.weights.key_maps import KeyFormat


def keras_layers(model: ResNet, image_size: tuple[int, int], key_format: KeyFormat) -> list[Layer]:
    """The network's layers as the world of Keras files that it belongs to calls them, inputs before what takes them.

    Args:
      model: a network of the variant `"tutorial"` or `"keras"`.
      image_size: height and width of its images.
      world: names the layers with weights; an entry of `KEY_FORMATS`.
    """

    def name_of(layer: str) -> str:
        return key_format.key(f"{layer}/kernel", model.num_classes).split("/")[0]

    def name_of_block(label: str) -> str:  # conv2_block1 of conv2_block1_1_conv
        return name_of(f"res{label}_branch2a").rsplit("_", 2)[0]

    applications = key_format.variant == "keras"
    return graph(model, image_size, LayerNaming(name_of, name_of_block, True) if applications else LayerNaming(name_of))


def topological_order(layers: list[Layer]) -> list[Layer]:
    """As `keras.Model.layers` has them: by the longest way to the output, then by a walk back from it."""
    hash_split = {layer.name: layer for layer in layers}
    depth = {layers[-1].name: 0}
    for layer in reversed(layers):
        for source in layer.inputs:
            depth[source] = max(depth.get(source, 0), depth[layer.name] + 1)
    visited: dict[str, int] = {}
    waiting = [layers[-1].name]
    while waiting:
        name = waiting.pop()
        if name not in visited:
            visited[name] = len(visited)
            waiting.extend(reversed(hash_split[name].inputs))
    return sorted(layers, key=lambda layer: (-depth[layer.name], visited[layer.name]))


def keras_config(layers: list[Layer], name: str) -> dict[str, Any]:
    """The model as Keras's JSON."""

    def of_layer(layer: Layer) -> dict[str, Any]:
        inputs = [[source, 0, 0, {}] for source in layer.inputs]
        return {
            "module": "keras.layers",
            "class_name": layer.kind,
            "config": {"name": layer.name} | layer.options,
            "registered_name": None,
            "name": layer.name,
            "inbound_nodes": [inputs] if inputs else [],
        }

    return {
        "module": "keras.src.models.functional",
        "class_name": "Functional",
        "config": {
            "name": name,
            "trainable": True,
            "layers": [of_layer(layer) for layer in layers],
            "input_layers": [[layers[0].name, 0, 0]],
            "output_layers": [[layers[-1].name, 0, 0]],
        },
        "registered_name": "Functional",
    }
