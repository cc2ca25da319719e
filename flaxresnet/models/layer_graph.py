"""A ResNet as a list of layers with their inputs, for summaries, diagrams and other frameworks.

Readers of the tutorials know Keras, so the layers' kinds and options are those of `keras.layers`. The one addition is
`CHANNEL_PADDING`. `tests/weights/test_keras_files.py` compares the layers with those of Keras.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from flaxresnet.models.blocks import ConvSpec, channel_padding, main_path_convs
from flaxresnet.models.resnet import BlockSpec, ResNet, block_specs, stem_conv

# Kind of the layer that pads channels with zeros, which Keras lacks. Its option "padding" holds the
# numbers of channels before and after.
CHANNEL_PADDING = "ChannelPadding"


class Layer(NamedTuple):
    """A layer of a network.

    Attributes:
      name: name of the layer.
      kind: class in `keras.layers`, or `CHANNEL_PADDING`.
      options: configuration of the layer, without the name.
      inputs: names of the layers whose outputs the layer takes.
      param_name: name in the parameters if the layer has weights, else None. For the last layer, it is `fc` without the
        number of classes.
      block: label of the layer's block, such as "2a"; "" outside of blocks.
    """

    name: str
    kind: str
    options: dict[str, Any]
    inputs: tuple[str, ...]
    param_name: str | None = None
    block: str = ""


class LayerNaming(NamedTuple):
    """Naming scheme of the layers. The default uses the names in the parameters.

    Attributes:
      layer: maps a name in the parameters to the layer's name.
      block: maps a block's label, such as "2a", to the prefix of its activations and its sum.
      shortcut_first: whether a sum takes the shortcut first, which decides the order of Keras's layers.
    """

    layer: Callable[[str], str] = str
    block: Callable[[str], str] = "res{}".format
    shortcut_first: bool = False


PARAMETER_NAMES = LayerNaming()


def graph(model: ResNet, image_size: tuple[int, int], names: LayerNaming = PARAMETER_NAMES) -> list[Layer]:
    """Returns the network's layers, each after its inputs. The last layer includes the softmax, as in the tutorials.

    Args:
      model: a network.
      image_size: height and width of the network's images, in pixels.
      names: naming scheme of the layers.
    """
    builder = _Builder(model, names)
    x = builder.add("input_1", "InputLayer", {"batch_input_shape": [None, *image_size, 3], "dtype": "float32"})
    if model.stem == "imagenet":
        x = builder.add("conv1_pad", "ZeroPadding2D", {"padding": [[3, 3], [3, 3]]}, x)
    x = builder.conv_norm("conv1", "bn_conv1", x, stem_conv(model))
    x = builder.relu("conv1_relu", x) if model.stem_relu else x
    if model.stem == "imagenet":
        if model.pool_padding:
            x = builder.add("pool1_pad", "ZeroPadding2D", {"padding": [[model.pool_padding] * 2] * 2}, x)
        x = builder.add("pool1_pool", "MaxPooling2D", {"pool_size": [3, 3], "strides": [2, 2]}, x)
    for spec in block_specs(model):
        x = builder.block(x, spec)
    if model.head == "average":
        x = builder.add("avg_pool", "GlobalAveragePooling2D", {}, x)
    else:
        window = [min(2, feature_map_size(model, side)) for side in image_size]  # 1 for small images
        x = builder.add("avg_pool", "AveragePooling2D", {"pool_size": window, "strides": window}, x)
        x = builder.add("flatten", "Flatten", {}, x)
    options = {"units": model.num_classes, "activation": "softmax", "use_bias": True}
    builder.add(names.layer("fc"), "Dense", options, x, param_name="fc")
    return builder.layers


class _Builder:
    """Appends layers to a list. Each method returns the name of its last layer."""

    def __init__(self, model: ResNet, names: LayerNaming) -> None:
        self.model = model
        self.names = names
        self.layers: list[Layer] = []
        self.label = ""  # of the current block
        self.channels = model.width  # of the previous block's output

    def add(self, name: str, kind: str, options: dict[str, Any], *inputs: str, param_name: str | None = None) -> str:
        self.layers.append(Layer(name, kind, options, inputs, param_name, self.label))
        return name

    def relu(self, name: str, x: str) -> str:
        return self.add(name, "Activation", {"activation": "relu"}, x)

    def conv_norm(self, conv: str, norm: str, x: str, spec: ConvSpec) -> str:
        """Adds a convolution, its padding if Keras needs a layer for it, and batch norm."""
        options = {
            "filters": spec.features,
            "kernel_size": [spec.size, spec.size],
            "strides": [spec.strides, spec.strides],
            "padding": "same" if spec.size == 3 and spec.strides == 1 else "valid",
            "groups": spec.groups,
            "use_bias": self.model.conv_bias,
        }
        if spec.size == 3 and spec.strides > 1:  # with stride 2, "same" pads even sizes only at the end
            x = self.add(f"{self.names.layer(conv)}_pad", "ZeroPadding2D", {"padding": [[1, 1], [1, 1]]}, x)
        x = self.add(self.names.layer(conv), "Conv2D", options, x, param_name=conv)
        options = {"epsilon": self.model.epsilon, "momentum": self.model.momentum}
        return self.add(self.names.layer(norm), "BatchNormalization", options, x, param_name=norm)

    def block(self, x: str, spec: BlockSpec) -> str:
        """Adds a block."""
        self.label = spec.label
        name = self.names.block(spec.label)
        if self.names.shortcut_first:
            inputs = [self.shortcut(x, spec), self.main_path(x, spec)]
        else:
            inputs = [self.main_path(x, spec), self.shortcut(x, spec)]
        x = self.relu(f"{name}_out", self.add(f"{name}_add", "Add", {}, *inputs))
        self.label = ""
        self.channels = spec.filters[-1]
        return x

    def main_path(self, x: str, spec: BlockSpec) -> str:
        """Adds a block's main path."""
        convs = main_path_convs(spec.filters, 3, spec.strides, self.model.strided, self.model.groups)
        for index, conv in enumerate(convs, start=1):
            x = self.branch(x, conv)
            if index < len(convs):
                x = self.relu(f"{self.names.block(spec.label)}_{index}_relu", x)
        return x

    def shortcut(self, x: str, spec: BlockSpec) -> str:
        """Adds the layers of a block's shortcut if there are any."""
        if spec.projects:
            return self.branch(x, ConvSpec("1", spec.filters[-1], 1, spec.strides))
        if not spec.pads:
            return x
        name = f"{self.names.block(spec.label)}_branch1"
        options: dict[str, Any] = {"pool_size": [1, 1], "strides": [spec.strides, spec.strides]}
        x = self.add(f"{name}_subsample", "AveragePooling2D", options, x)
        options = {"padding": list(channel_padding(self.channels, spec.filters[-1]))}
        return self.add(f"{name}_pad", CHANNEL_PADDING, options, x)

    def branch(self, x: str, conv: ConvSpec) -> str:
        """Adds a convolution of the current block and its batch norm."""
        name = f"{self.label}_branch{conv.branch}"
        return self.conv_norm(f"res{name}", f"bn{name}", x, conv)


def feature_map_size(model: ResNet, side: int) -> int:
    """Returns the height of the last stage's output for images of height `side`; the same holds for widths."""
    if model.stem == "imagenet":
        side = ((side - 1) // 2 + 2 * model.pool_padding - 2) // 2 + 1  # after the stem's convolution and pooling
    for _ in model.stage_sizes[1:]:
        side = -(-side // 2)
    return side


def head_size(model: ResNet, side: int) -> int:
    """Returns the height of the feature map that the tutorials' head flattens, for images of height `side`."""
    return feature_map_size(model, side) // min(2, feature_map_size(model, side))


def count_convolutions(model: ResNet) -> int:
    """Returns the number of convolutions of a network, which identifies the size of a weights file."""
    return 1 + sum(len(spec.filters) + spec.projects for spec in block_specs(model))
