"""Precise batch norm: statistics measured from training images for the current weights.

Running averages lag behind weights that change fast. With few steps per epoch, a network that fits its training set can
still have chance accuracy in evaluation. Statistics of a few hundred training images, measured with the current
weights, correct this (Wu & Johnson 2021, arXiv:2105.07576, section 3).
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax


def measure_batch_stats(
    model: nn.Module,
    params: Any,
    batches: Any,
    batch_stats: Any = None,
    prepare: Callable[[Any], jax.Array] = lambda images: images,
) -> Any:
    """Returns batch norm's statistics over the given images with the given parameters.

    Args:
      model: a module with a `momentum` field, such as `ResNet`, whose `batch_stats` hold `mean` and `var`. A
        `ghost_batch_size` is ignored, because statistics of full batches are closer to those of all images (section
        3.3 of the paper).
      params: the module's parameters.
      batches: (k, batch, height, width, 3), scaled as for training. With `prepare`, a pytree of arrays (k, …). Each
        batch is normalized with its own statistics.
      batch_stats: statistics of frozen layers, which stay as they are. Only frozen layers read them.
      prepare: converts one of the k entries of `batches` to the model's input, (batch, height, width, 3).

    Returns:
      A pytree like `batch_stats`. Over the k batches, the mean is the mean of the means. By the law of total variance,
      the variance is the mean of the variances plus the variance of the means (equation 4 of the paper).
    """
    variables = {"params": params} | ({} if batch_stats is None else {"batch_stats": batch_stats})
    full_batch = {"ghost_batch_size": None} if hasattr(model, "ghost_batch_size") else {}
    memoryless = model.clone(momentum=0.0, **full_batch)  # its running statistics are those of the last batch

    def stats_of(batch: Any) -> Any:
        return memoryless.apply(variables, prepare(batch), train=True, mutable=["batch_stats"])[1]["batch_stats"]

    return pool_batch_stats(jax.lax.map(stats_of, batches))


def pool_batch_stats(stacked: Any) -> Any:
    """Returns the means and variances of all images from those of k batches of equal size, stacked on a leading axis.

    Args:
      stacked: a pytree of `{"mean": (k, channels), "var": (k, channels)}`.
    """
    if set(stacked) == {"mean", "var"}:
        mean = stacked["mean"].mean(axis=0)
        return {"mean": mean, "var": stacked["var"].mean(axis=0) + ((stacked["mean"] - mean) ** 2).mean(axis=0)}
    return {name: pool_batch_stats(inner) for name, inner in stacked.items()}
