"""Variables of a network or a block as they start, drawn by NumPy: to compile `init` takes longer than the network."""

from functools import partial

import jax
import numpy as np

START = {"scale": 1.0, "var": 1.0}  # and 0 of all others but the kernels


def started(module, images, seed: int = 0, **options):
    """Variables of the shapes that `init` gives them: kernels Glorot uniform, the rest as batch norm and biases start.

    Args:
      module: a network or a block.
      images: what it takes, an array or its shape and dtype.
      seed: of the draws.
      **options: other arguments of `init`.
    """
    rng = np.random.default_rng(seed)

    def value(path, leaf):
        name = path[-1].key
        if name != "kernel":
            return np.full(leaf.shape, START.get(name, 0.0), leaf.dtype)
        area = np.prod(leaf.shape[:-2], dtype=int)
        limit = np.sqrt(6 / (area * (leaf.shape[-2] + leaf.shape[-1])))
        return rng.uniform(-limit, limit, leaf.shape).astype(leaf.dtype)

    init = partial(module.init, **options)
    return jax.tree_util.tree_map_with_path(value, jax.eval_shape(init, jax.random.key(0), images))
