"""How each world names what a ResNet holds: one map a world, from our table's names to its own."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from flaxresnet.weights.flat_params import HEAD_KEY, LayerIndex, parse_layer_name

KERAS_LEAVES = {"kernel": "kernel", "scale": "gamma", "mean": "moving_mean", "var": "moving_variance"}
TORCH_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


@dataclass(frozen=True)
class KeyFormat:
    """A family of files that name a network's layers alike.

    Attributes:
      title: for people.
      variant: how networks are written there, a name in `VARIANTS`.
      outside: names of the layers outside of blocks: `conv1`, `bn_conv1` and `fc`, where `{}` is the number of classes.
      inside: the name of a block's layer, or None where it is ours.
      torch: whether arrays and leaves are PyTorch's, else Keras's.
    """

    title: str
    variant: str
    top_level_keys: dict[str, str]
    block_key: Callable[[LayerIndex], str] | None = field(repr=False)
    torch: bool

    @property
    def stem_key(self) -> str:
        """The name of the first convolution's kernel, by which a file of this world is recognised."""
        return self.key("conv1/kernel", None)

    def key(self, name: str, num_classes: int | None) -> str:
        """Our table's name → this world's."""
        layer, leaf = name.split("/")
        place = parse_layer_name(layer)
        theirs = (
            self.block_key(place)
            if place and self.block_key
            else self.top_level_keys.get(layer, layer).format(num_classes)
        )
        if self.torch:
            return f"{theirs}.{TORCH_LEAVES[leaf]}"
        is_norm = layer == "bn_conv1" or (place is not None and place.is_norm)
        return f"{theirs}/{'beta' if leaf == 'bias' and is_norm else KERAS_LEAVES.get(leaf, leaf)}"

    def import_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that an array of that world has in ours."""
        if not self.torch:
            return shape
        return tuple(shape[axis] for axis in (2, 3, 1, 0)) if len(shape) == 4 else shape[::-1]

    def import_array(self, array: np.ndarray) -> np.ndarray:
        """An array of that world as it lies in ours, float32."""
        return np.ascontiguousarray(_turned(array, (2, 3, 1, 0)) if self.torch else array, np.float32)

    def export_array(self, array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(_turned(array, (3, 2, 0, 1)) if self.torch else array, np.float32)


def _turned(array: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Convolutions' kernels with their axes in another order, the dense layer's transposed, vectors as they are."""
    return array.transpose(axes) if array.ndim == 4 else array.T


def _torchvision(place: LayerIndex) -> str:
    main = f"{'bn' if place.is_norm else 'conv'}{place.number}"
    return f"layer{place.stage - 1}.{place.block}.{main if place.number else f'downsample.{int(place.is_norm)}'}"


def _hugging_face(place: LayerIndex) -> str:
    part = f"layer.{place.number - 1}" if place.number else "shortcut"
    kind = "normalization" if place.is_norm else "convolution"
    return f"resnet.encoder.stages.{place.stage - 2}.layers.{place.block}.{part}.{kind}"


def _keras(place: LayerIndex) -> str:
    return f"conv{place.stage}_block{place.block + 1}_{place.number}_{'bn' if place.is_norm else 'conv'}"


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
