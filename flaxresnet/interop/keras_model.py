"""A ResNet as Keras describes it: its layers, how they are joined, and the order in which Keras goes through them.

Keras stores a model as its layers' configurations, and weights in the order of its layers, so that files which Keras is
to open need both. `tests/interop` holds them against the real Keras.
"""

from typing import Any, NamedTuple

from flaxresnet.interop.layers import last_side
from flaxresnet.interop.worlds import World
from flaxresnet.models.resnet import ResNet, block_names


class KerasLayer(NamedTuple):
    """A layer of a Keras model.

    Attributes:
      name: its name.
      kind: its class in `keras.layers`.
      options: its configuration, other than the name.
      inputs: names of the layers that it takes.
      table: its layer in our table, for those that have weights.
    """

    name: str
    kind: str
    options: dict[str, Any]
    inputs: tuple[str, ...]
    table: str | None = None


def keras_layers(model: ResNet, image_size: tuple[int, int], world: World) -> list[KerasLayer]:
    """The network's layers as the world of Keras files that it belongs to writes them, inputs before what takes them.

    Args:
      model: a network of the variant `"tutorial"` or `"keras"`.
      image_size: height and width of its images.
      world: names the layers with weights; an entry of `WORLDS`.
    """
    built = _Builder(model, world)
    x = built.add("input_1", "InputLayer", {"batch_shape": [None, *image_size, 3], "dtype": "float32"})
    x = built.add("conv1_pad", "ZeroPadding2D", {"padding": [[3, 3], [3, 3]]}, x)
    x = built.conv_norm("conv1", "bn_conv1", x, model.width, 7, 2)
    x = built.relu("conv1_relu", x) if model.stem_relu else x
    if model.pool_padding:
        x = built.add("pool1_pad", "ZeroPadding2D", {"padding": [[model.pool_padding] * 2] * 2}, x)
    x = built.add("pool1_pool", "MaxPooling2D", {"pool_size": [3, 3], "strides": [2, 2]}, x)
    channels = model.width
    for stage, blocks in enumerate(model.stage_sizes, start=2):
        planes = model.width * 2 ** (stage - 2)
        for index, name in enumerate(block_names(blocks)):
            x = built.block(x, f"{stage}{name}", planes, 2 if stage > 2 and not index else 1, channels)
            channels = planes * (4 if model.bottleneck else 1)
    if model.head == "average":
        x = built.add("avg_pool", "GlobalAveragePooling2D", {}, x)
    else:
        window = [min(2, last_side(model, side)) for side in image_size]  # small images have shrunk to one pixel
        x = built.add("avg_pool", "AveragePooling2D", {"pool_size": window, "strides": window}, x)
        x = built.add("flatten", "Flatten", {}, x)
    built.add(
        built.key("fc"), "Dense", {"units": model.num_classes, "activation": "softmax", "use_bias": True}, x, table="fc"
    )
    return built.layers


class _Builder:
    def __init__(self, model: ResNet, world: World) -> None:
        self.model, self.world = model, world
        self.layers: list[KerasLayer] = []

    def key(self, layer: str) -> str:
        return self.world.key(f"{layer}/kernel", self.model.num_classes).split("/")[0]

    def add(self, name: str, kind: str, options: dict[str, Any], *inputs: str, table: str | None = None) -> str:
        self.layers.append(KerasLayer(name, kind, options, inputs, table))
        return name

    def relu(self, name: str, x: str) -> str:
        return self.add(name, "Activation", {"activation": "relu"}, x)

    def conv_norm(self, conv: str, norm: str, x: str, filters: int, size: int, strides: int, groups: int = 1) -> str:
        options = {
            "filters": filters,
            "kernel_size": [size, size],
            "strides": [strides, strides],
            "padding": "same" if size == 3 and strides == 1 else "valid",
            "groups": groups,
            "use_bias": self.model.conv_bias,
        }
        if size == 3 and strides > 1:  # "same" would put the zeros behind the image alone
            x = self.add(f"{self.key(conv)}_pad", "ZeroPadding2D", {"padding": [[1, 1], [1, 1]]}, x)
        x = self.add(self.key(conv), "Conv2D", options, x, table=conv)
        options = {"epsilon": self.model.epsilon, "momentum": self.model.momentum}
        return self.add(self.key(norm), "BatchNormalization", options, x, table=norm)

    def block(self, x: str, label: str, planes: int, strides: int, channels: int) -> str:
        model, inside = self.model, planes * self.model.widen
        sizes = (1, 3, 1) if model.bottleneck else (3, 3)
        filters = (inside, inside, 4 * planes) if model.bottleneck else (planes, planes)
        stem = self.key(f"res{label}_branch2a").rsplit("_", 2)[0]
        name = stem if self.world.variant == "keras" else f"res{label}"

        def main(y: str) -> str:
            for index, (features, size) in enumerate(zip(filters, sizes, strict=True)):
                branch = f"{label}_branch2{'abc'[index]}"
                groups = model.groups if (index, len(filters)) == (1, 3) else 1
                step = strides if index == model.strided else 1
                y = self.conv_norm(f"res{branch}", f"bn{branch}", y, features, size, step, groups)
                y = y if index == len(filters) - 1 else self.relu(f"{name}_{index + 1}_relu", y)
            return y

        def shortcut(x: str) -> str:
            branch = f"{label}_branch1"
            same = (strides, channels) == (1, filters[-1])
            return x if same else self.conv_norm(f"res{branch}", f"bn{branch}", x, filters[-1], 1, strides)

        # The two worlds add the branches in another order, which decides the order of Keras's layers.
        inputs = (shortcut(x), main(x)) if self.world.variant == "keras" else (main(x), shortcut(x))
        return self.relu(f"{name}_out", self.add(f"{name}_add", "Add", {}, *inputs))


def in_keras_order(layers: list[KerasLayer]) -> list[KerasLayer]:
    """As `keras.Model.layers` has them: by the longest way to the output, then by a walk back from it."""
    by_name = {layer.name: layer for layer in layers}
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
            waiting.extend(reversed(by_name[name].inputs))
    return sorted(layers, key=lambda layer: (-depth[layer.name], visited[layer.name]))


def keras_config(layers: list[KerasLayer], name: str) -> dict[str, Any]:
    """The model as Keras's JSON."""

    def of_layer(layer: KerasLayer) -> dict[str, Any]:
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
