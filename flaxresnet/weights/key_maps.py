"""Key formats: the names that Keras, PyTorch and Hugging Face give to a ResNet's arrays."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from flaxresnet.weights.flat_params import HEAD_KEY, LayerIndex, parse_layer_name

KERAS_LEAVES = {"kernel": "kernel", "scale": "gamma", "mean": "moving_mean", "var": "moving_variance"}
TORCH_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


@dataclass(frozen=True)
class KeyFormat:
    """A family of files that give a network's arrays the same names.

    Attributes:
      title: the family's name in messages.
      variant: the architecture of the family's networks, a name in `VARIANTS`.
      top_level_keys: names of the layers outside of blocks (`conv1`, `bn_conv1`, `fc`) that differ from the tutorials';
        `{}` stands for the number of classes.
      block_key: returns the name of a block's layer; None if it is the tutorials' name.
      torch: True if leaf names and array layout are PyTorch's, False if they are Keras's.
    """

    title: str
    variant: str
    top_level_keys: dict[str, str]
    block_key: Callable[[LayerIndex], str] | None = field(repr=False)
    torch: bool

    @property
    def stem_key(self) -> str:
        """Returns the key of the first convolution's kernel, which identifies the key format of a file."""
        return self.key("conv1/kernel", None)

    def key(self, name: str, num_classes: int | None) -> str:
        """Returns the key of a flat parameter in this format.

        Args:
          name: the flat parameter, `"layer/leaf"`.
          num_classes: number of classes, which is a part of some last layers' names.
        """
        layer, leaf = name.split("/")
        index = parse_layer_name(layer)
        if index is not None and self.block_key is not None:
            prefix = self.block_key(index)
        else:
            prefix = self.top_level_keys.get(layer, layer).format(num_classes)
        if self.torch:
            return f"{prefix}.{TORCH_LEAVES[leaf]}"
        is_norm = layer == "bn_conv1" or (index is not None and index.is_norm)
        if leaf == "bias" and is_norm:
            return f"{prefix}/beta"
        return f"{prefix}/{KERAS_LEAVES.get(leaf, leaf)}"

    def import_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape in Flax's layout of an array that has this shape in the file."""
        if not self.torch:
            return shape
        return tuple(shape[axis] for axis in (2, 3, 1, 0)) if len(shape) == 4 else shape[::-1]

    def import_array(self, array: np.ndarray) -> np.ndarray:
        """Returns a file's array as contiguous float32 in Flax's layout."""
        return np.ascontiguousarray(_transpose(array, (2, 3, 1, 0)) if self.torch else array, np.float32)

    def export_array(self, array: np.ndarray) -> np.ndarray:
        """Returns an array in Flax's layout as contiguous float32 in this format's layout."""
        return np.ascontiguousarray(_transpose(array, (3, 2, 0, 1)) if self.torch else array, np.float32)


def _transpose(array: np.ndarray, kernel_axes: tuple[int, ...]) -> np.ndarray:
    """Returns a convolution's kernel with its axes permuted, the dense layer's kernel transposed, or the vector."""
    return array.transpose(kernel_axes) if array.ndim == 4 else array.T


def _torchvision(index: LayerIndex) -> str:
    layer = f"{'bn' if index.is_norm else 'conv'}{index.number}"
    if index.number == 0:
        layer = f"downsample.{int(index.is_norm)}"
    return f"layer{index.stage - 1}.{index.block}.{layer}"


def _hugging_face(index: LayerIndex) -> str:
    branch = f"layer.{index.number - 1}" if index.number else "shortcut"
    kind = "normalization" if index.is_norm else "convolution"
    return f"resnet.encoder.stages.{index.stage - 2}.layers.{index.block}.{branch}.{kind}"


def _keras(index: LayerIndex) -> str:
    return f"conv{index.stage}_block{index.block + 1}_{index.number}_{'bn' if index.is_norm else 'conv'}"


_EMBEDDER = "resnet.embedder.embedder"
KEY_FORMATS = {
    "tutorial": KeyFormat("the tutorials", "tutorial", {HEAD_KEY: "fc{}"}, None, torch=False),
    "keras": KeyFormat(
        "Keras Applications",
        "keras",
        {"conv1": "conv1_conv", "bn_conv1": "conv1_bn", HEAD_KEY: "predictions"},
        _keras,
        torch=False,
    ),
    "torchvision": KeyFormat(
        "torchvision and timm",
        "torchvision",
        {"conv1": "conv1", "bn_conv1": "bn1", HEAD_KEY: "fc"},
        _torchvision,
        torch=True,
    ),
    "huggingface": KeyFormat(
        "Hugging Face",
        "torchvision",
        {"conv1": f"{_EMBEDDER}.convolution", "bn_conv1": f"{_EMBEDDER}.normalization", HEAD_KEY: "classifier.1"},
        _hugging_face,
        torch=True,
    ),
}
