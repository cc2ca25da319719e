"""Gradient accumulation: the network processes a batch in equal parts, and the optimizer takes one mean gradient.

The result equals the step on the full batch and needs less memory. Batch norm is the exception: it normalizes each part
with the part's own statistics, and updates its running averages after every part.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def accumulate_gradients(
    micro_step: Callable[..., tuple[Any, Any]], count: int, zeros: Any, batch_stats: Any, *batch: jax.Array
) -> tuple[Any, Any]:
    """Returns `micro_step(batch_stats, *batch)`, computed in `count` equal parts of the batch, one after another.

    Args:
      micro_step: (batch_stats, *arrays) → (batch_stats, (means, scores)); scores have one entry per image.
      count: number of parts. Part i has the images i, i + count, i + 2 · count, …: neighbors in a batch lie on one
        device, so every part keeps all devices busy.
      zeros: a pytree of zeros with the structure and shapes of the means.
      batch_stats: batch norm's running averages, which each part updates for the next one.
      *batch: arrays (batch, …); `count` divides the batch.

    Returns:
      The last batch_stats, the mean of the parts' means, and the scores of all images, part by part.
    """
    if count == 1:
        return micro_step(batch_stats, *batch)
    parts = [jnp.moveaxis(array.reshape(-1, count, *array.shape[1:]), 1, 0) for array in batch]  # (count, part, …)

    def body(carry: tuple[Any, Any], part: list[jax.Array]) -> tuple[tuple[Any, Any], Any]:
        batch_stats, sums = carry
        batch_stats, (means, scores) = micro_step(batch_stats, *part)
        return (batch_stats, jax.tree.map(jnp.add, sums, means)), scores

    (batch_stats, sums), scores = jax.lax.scan(body, (batch_stats, zeros), parts)
    means = jax.tree.map(lambda leaf: leaf / count, sums)
    return batch_stats, (means, jax.tree.map(jnp.ravel, scores))
