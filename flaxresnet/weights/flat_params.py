"""A network's variables as one flat table: `"res2a_branch2a/kernel"` → array, and back to linen's tree.

This is what all worlds are translated to and from. Names are the tutorials', arrays lie as linen has them (kernels:
height, width, in, out), and the last layer is called `fc` however many classes it has.
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
    """An array in a file: its shape, and how it is loaded."""

    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]


Entries: TypeAlias = dict[str, LazyArray]

HEAD_KEY = "fc"
STATISTICS = ("mean", "var")
_BLOCK_LAYER = re.compile(r"(res|bn)(\d)([a-z])(\d*)_branch(1|2[abc])")


class LayerIndex(NamedTuple):
    """Where a block's layer stands.

    Attributes:
      is_norm: whether it is a batch norm, else a convolution.
      stage: from 2 on.
      block: from 0 on.
      branch: "1", the shortcut, or "2a", "2b", "2c".
    """

    is_norm: bool
    stage: int
    block: int
    branch: str

    @property
    def number(self) -> int:
        """Of the convolution in its block, from 1 on; 0 is the shortcut's."""
        return 0 if self.branch == "1" else "abc".index(self.branch[1]) + 1


def parse_layer_name(layer: str) -> LayerIndex | None:
    """Where a layer stands by its name; None for those outside of blocks (`conv1`, `bn_conv1`, `fc`)."""
    match = _BLOCK_LAYER.fullmatch(layer)
    if match is None:
        return None
    kind, stage, letter, number, branch = match.groups()
    block = int(number) if number else ascii_lowercase.index(letter)  # b12 is the twelfth after a
    return LayerIndex(kind == "bn", int(stage), block, branch)


def flatten(variables: Any) -> dict[str, Any]:
    """{"params", "batch_stats"} as a table; leaves may be arrays or shapes."""
    flat = flatten_dict(variables["params"]) | flatten_dict(variables["batch_stats"])
    return {f"{_generic(path[-2])}/{path[-1]}": leaf for path, leaf in flat.items()}


def unflatten(table: dict[str, Any], num_classes: int | None) -> dict[str, Any]:
    """The inverse of `flatten`: linen's variables, with the last layer called after its number of classes."""
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for name, leaf in table.items():
        layer, what = name.split("/")
        tree = variables["batch_stats" if what in STATISTICS else "params"]
        if _BLOCK_LAYER.fullmatch(layer):
            label = layer.removeprefix("res").removeprefix("bn").split("_")[0]
            tree = tree.setdefault(f"res{label}", {})
        tree.setdefault(f"fc{num_classes}" if layer == HEAD_KEY else layer, {})[what] = leaf
    return variables


def _generic(layer: str) -> str:
    return HEAD_KEY if layer.startswith("fc") else layer


@lru_cache(maxsize=32)
def shapes_of(model: ResNet, image_size: tuple[int, int]) -> Shapes:
    """The table's names and shapes for a network, without making any array."""
    images = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
    return {name: leaf.shape for name, leaf in flatten(jax.eval_shape(model.init, jax.random.key(0), images)).items()}
