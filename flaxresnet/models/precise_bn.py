"""Batch norm's statistics as data: measured afresh for the weights as they are.

Running averages lag behind weights that move fast; with few steps an epoch a network that has learned its training
set evaluates at chance. Measuring the statistics for the current weights from a few hundred training images
("precise batch norm", Wu & Johnson 2021, arXiv:2105.07576, section 3) puts that right.
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
    """The statistics that batch norm has over the given images with the given parameters.

    Args:
      model: a module with a `momentum` field, such as `ResNet`; its `batch_stats` hold `mean` and `var`. Where it
        takes statistics over parts of a batch (`ghost_batch_size`), here it takes them over all of it, whose statistics
        are nearer to those of all images (section 3.3 of the paper).
      params: its parameters.
      batches: (k, batch, height, width, 3), scaled as for training; or, for `prepare`, a pytree of arrays (k, …). Each
        batch is normalised with its own statistics.
      batch_stats: the statistics of layers that are frozen, which stay as they are; others' are not looked at.
      prepare: makes of one of the k parts of `batches` the images that the model takes, (batch, height, width, 3).

    Returns:
      A pytree like `batch_stats`: over the k batches, the mean of the means and, by the law of total variance, the
      mean of the variances plus the variance of the means (equation 4 of the paper).
    """
    variables = {"params": params} | ({} if batch_stats is None else {"batch_stats": batch_stats})
    whole = {"ghost_batch_size": None} if hasattr(model, "ghost_batch_size") else {}
    memoryless = model.clone(momentum=0.0, **whole)  # its "running" statistics are the last batch's own

    def of_one_batch(batch: Any) -> Any:
        return memoryless.apply(variables, prepare(batch), train=True, mutable=["batch_stats"])[1]["batch_stats"]

    return pool_batch_stats(jax.lax.map(of_one_batch, batches))


def pool_batch_stats(stacked: Any) -> Any:
    """Means and variances of k equal batches, stacked on a leading axis, as those of all images together."""
    if set(stacked) == {"mean", "var"}:
        mean = stacked["mean"].mean(axis=0)
        return {"mean": mean, "var": stacked["var"].mean(axis=0) + ((stacked["mean"] - mean) ** 2).mean(axis=0)}
    return {name: pool_batch_stats(inner) for name, inner in stacked.items()}
