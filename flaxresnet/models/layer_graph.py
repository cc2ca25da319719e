"""A ResNet as a list of layers and what each of them takes: to be looked at, or built again in another framework.

Kinds and options are those of `keras.layers`, which the tutorials' readers know; `tests/weights` holds the list against
the real Keras.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from flaxresnet.models.resnet import ResNet, block_names


class Layer(NamedTuple):
    """A layer of a network.

    Attributes:
      name: its name.
      kind: its class in `keras.layers`.
      options: its configuration, other than the name.
      inputs: names of the layers that it takes.
      table: for those that have weights, their name in the parameters; the last layer's is `fc`.
      block: the block that it belongs to, such as "2a"; "" outside of blocks.
    """

    name: str
    kind: str
    options: dict[str, Any]
    inputs: tuple[str, ...]
    table: str | None = None
    block: str = ""


class LayerNaming(NamedTuple):
    """How layers are called; without arguments, as in the parameters.

    Attributes:
      layer: from the name in the parameters.
      block: from a block's label, such as "2a", to what begins the names of its activations and its sum.
      shortcut_first: whether a sum takes the shortcut first, which decides the order of Keras's layers.
    """

    layer: Callable[[str], str] = str
    block: Callable[[str], str] = "res{}".format
    shortcut_first: bool = False


AS_IN_THE_PARAMETERS = LayerNaming()


def graph(model: ResNet, image_size: tuple[int, int], names: LayerNaming = AS_IN_THE_PARAMETERS) -> list[Layer]:
    """The network's layers, inputs before what takes them.

    Args:
      model: a network.
      image_size: height and width of its images.
      names: how the layers are called.
    """
    built = _Builder(model, names)
    x = built.add("input_1", "InputLayer", {"batch_input_shape": [None, *image_size, 3], "dtype": "float32"})
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
        window = [min(2, feature_map_size(model, side)) for side in image_size]  # small images have shrunk to one pixel
        x = built.add("avg_pool", "AveragePooling2D", {"pool_size": window, "strides": window}, x)
        x = built.add("flatten", "Flatten", {}, x)
    options = {"units": model.num_classes, "activation": "softmax", "use_bias": True}
    built.add(names.layer("fc"), "Dense", options, x, table="fc")
    return built.layers


class _Builder:
    def __init__(self, model: ResNet, names: LayerNaming) -> None:
        self.model, self.names = model, names
        self.layers: list[Layer] = []
        self.label = ""  # of the block that is being built

    def add(self, name: str, kind: str, options: dict[str, Any], *inputs: str, table: str | None = None) -> str:
        self.layers.append(Layer(name, kind, options, inputs, table, self.label))
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
            x = self.add(f"{self.names.layer(conv)}_pad", "ZeroPadding2D", {"padding": [[1, 1], [1, 1]]}, x)
        x = self.add(self.names.layer(conv), "Conv2D", options, x, table=conv)
        options = {"epsilon": self.model.epsilon, "momentum": self.model.momentum}
        return self.add(self.names.layer(norm), "BatchNormalization", options, x, table=norm)

    def block(self, x: str, label: str, planes: int, strides: int, channels: int) -> str:
        model, inside = self.model, planes * self.model.widen
        sizes = (1, 3, 1) if model.bottleneck else (3, 3)
        filters = (inside, inside, 4 * planes) if model.bottleneck else (planes, planes)
        name, self.label = self.names.block(label), label

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

        inputs = (shortcut(x), main(x)) if self.names.shortcut_first else (main(x), shortcut(x))
        out = self.relu(f"{name}_out", self.add(f"{name}_add", "Add", {}, *inputs))
        self.label = ""
        return out


def feature_map_size(model: ResNet, side: int) -> int:
    """Height that the last stage gives for images of a height; widths likewise."""
    side = ((side - 1) // 2 + 2 * model.pool_padding - 2) // 2 + 1  # the stem's convolution and pooling
    for _ in model.stage_sizes[1:]:
        side = -(-side // 2)
    return side


def head_size(model: ResNet, side: int) -> int:
    """Height of what the tutorials' last layer weights."""
    return feature_map_size(model, side) // min(2, feature_map_size(model, side))


def count_convolutions(model: ResNet) -> int:
    """How many convolutions a network has, by which a file of weights tells its size."""
    inside = 3 if model.bottleneck else 2
    shortcuts = len(model.stage_sizes) - (0 if model.bottleneck else 1)  # a basic block's stage 2 keeps its shape
    return 1 + inside * sum(model.stage_sizes) + shortcuts
