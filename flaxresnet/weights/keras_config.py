"""Keras's configuration of a ResNet: its layers, their connections, and Keras's layer order.

Keras stores a model as its layers' configurations, and weights in the order of the layers. Files for Keras therefore
need both. `tests/weights` compares them with the real Keras.
"""

from typing import Any

from flaxresnet.models.layer_graph import Layer, LayerNaming, graph
from flaxresnet.models.resnet import ResNet
from flaxresnet.weights.key_maps import KeyFormat


def keras_layers(model: ResNet, image_size: tuple[int, int], key_format: KeyFormat) -> list[Layer]:
    """Returns the network's layers with the names of a key format, each after its inputs.

    Args:
      model: a network of the variant `"tutorial"` or `"keras"`.
      image_size: height and width of the images, in pixels.
      key_format: an entry of `KEY_FORMATS`, of the same variant.
    """

    def name_of(layer: str) -> str:
        return key_format.key(f"{layer}/kernel", model.num_classes).split("/")[0]

    def name_of_block(label: str) -> str:  # conv2_block1 of conv2_block1_1_conv
        return name_of(f"res{label}_branch2a").rsplit("_", 2)[0]

    if key_format.variant == "keras":
        return graph(model, image_size, LayerNaming(name_of, name_of_block, True))
    return graph(model, image_size, LayerNaming(name_of))


def topological_order(layers: list[Layer]) -> list[Layer]:
    """Returns the layers in the order of `keras.Model.layers`.

    Keras sorts by the length of the longest path to the output, descending, and then by a depth-first walk from the
    output.
    """
    by_name = {layer.name: layer for layer in layers}
    depth = {layers[-1].name: 0}
    for layer in reversed(layers):
        for source in layer.inputs:
            depth[source] = max(depth.get(source, 0), depth[layer.name] + 1)
    visited: dict[str, int] = {}
    stack = [layers[-1].name]
    while stack:
        name = stack.pop()
        if name not in visited:
            visited[name] = len(visited)
            stack.extend(reversed(by_name[name].inputs))
    return sorted(layers, key=lambda layer: (-depth[layer.name], visited[layer.name]))


def keras_config(layers: list[Layer], name: str) -> dict[str, Any]:
    """Returns the configuration that Keras writes as JSON for a functional model.

    Args:
      layers: the layers; the first is the input and the last the output.
      name: the model's name.
    """

    def layer_config(layer: Layer) -> dict[str, Any]:
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
            "layers": [layer_config(layer) for layer in layers],
            "input_layers": [[layers[0].name, 0, 0]],
            "output_layers": [[layers[-1].name, 0, 0]],
        },
        "registered_name": "Functional",
    }
