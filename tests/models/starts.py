"""Initial variables from NumPy, because compiling `init` takes longer than compiling the network."""

from functools import partial

import jax
import numpy as np

INITIAL_VALUES = {"scale": 1.0, "var": 1.0}  # biases and means are 0


def initial_variables(module, images, seed: int = 0, **options):
    """Returns variables with the shapes and distributions of `init`: kernels Glorot uniform, the rest constant.

    Args:
      module: a network or a block.
      images: the input, an array or its shape and dtype.
      seed: seed of the random kernels.
      **options: other arguments of `init`.
    """
    rng = np.random.default_rng(seed)

    def value(path, leaf):
        name = path[-1].key
        if name != "kernel":
            return np.full(leaf.shape, INITIAL_VALUES.get(name, 0.0), leaf.dtype)
        area = np.prod(leaf.shape[:-2], dtype=int)
        limit = np.sqrt(6 / (area * (leaf.shape[-2] + leaf.shape[-1])))
        return rng.uniform(-limit, limit, leaf.shape).astype(leaf.dtype)

    init = partial(module.init, **options)
    return jax.tree_util.tree_map_with_path(value, jax.eval_shape(init, jax.random.key(0), images))
