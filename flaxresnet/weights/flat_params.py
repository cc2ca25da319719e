"""Flat parameters: a network's variables as one dictionary, `"res2a_branch2a/kernel"` → array.

Every file format is read into this dictionary and written from it. Layers have the tutorials' names and arrays have
Flax's layout (kernels are height, width, in, out). The last layer is called `fc` for any number of classes.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from string import ascii_lowercase
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from flaxresnet.models.resnet import ResNet

FlatParams: TypeAlias = dict[str, np.ndarray]
Shapes: TypeAlias = dict[str, tuple[int, ...]]


class LazyArray(NamedTuple):
    """An array in a file that has not been read yet.

    Attributes:
      shape: the array's shape in the file.
      load: reads and returns the array.
    """

    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]


Entries: TypeAlias = dict[str, LazyArray]

HEAD_KEY = "fc"
STATISTICS = ("mean", "var")
_BLOCK_LAYER = re.compile(r"(res|bn)(\d)([a-z])(\d*)_branch(1|2[abc])")


class LayerIndex(NamedTuple):
    """The position of a layer in a residual block.

    Attributes:
      is_norm: True for a batch norm, False for a convolution.
      stage: the stage, from 2.
      block: the block in the stage, from 0.
      branch: "1" for the shortcut, or "2a", "2b" or "2c".
    """

    is_norm: bool
    stage: int
    block: int
    branch: str

    @property
    def number(self) -> int:
        """Returns the convolution's number in its block, from 1; the shortcut's is 0."""
        return 0 if self.branch == "1" else "abc".index(self.branch[1]) + 1


def parse_layer_name(layer: str) -> LayerIndex | None:
    """Returns the layer's position, or None if it is in no block (`conv1`, `bn_conv1`, `fc`)."""
    match = _BLOCK_LAYER.fullmatch(layer)
    if match is None:
        return None
    kind, stage, letter, number, branch = match.groups()
    block = int(number) if number else ascii_lowercase.index(letter)  # the blocks are a, b1, b2, …, or a, b, c, …
    return LayerIndex(kind == "bn", int(stage), block, branch)


def flatten(variables: Any) -> dict[str, Any]:
    """Returns {"params", "batch_stats"} as one flat dictionary; leaves may be arrays or shapes."""
    flat = flatten_dict(variables["params"]) | flatten_dict(variables["batch_stats"])
    return {f"{_generic(path[-2])}/{path[-1]}": leaf for path, leaf in flat.items()}


def unflatten(flat: dict[str, Any], num_classes: int | None) -> dict[str, Any]:
    """Returns {"params", "batch_stats"}: the inverse of `flatten`.

    Args:
      flat: leaves by `"layer/leaf"`.
      num_classes: number of classes, which becomes a part of the last layer's name, such as `fc6`.
    """
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for name, value in flat.items():
        layer, leaf = name.split("/")
        tree = variables["batch_stats" if leaf in STATISTICS else "params"]
        if _BLOCK_LAYER.fullmatch(layer):
            label = layer.removeprefix("res").removeprefix("bn").split("_")[0]
            tree = tree.setdefault(f"res{label}", {})
        if layer == HEAD_KEY:
            layer = f"fc{num_classes}"
        tree.setdefault(layer, {})[leaf] = value
    return variables


def _generic(layer: str) -> str:
    return HEAD_KEY if layer.startswith("fc") else layer


@lru_cache(maxsize=32)
def shapes_of(model: ResNet, image_size: tuple[int, int]) -> Shapes:
    """Returns the shape of each flat parameter, without allocating arrays.

    Args:
      model: the network.
      image_size: height and width of the images, in pixels.
    """
    images = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return {name: leaf.shape for name, leaf in flatten(variables).items()}
