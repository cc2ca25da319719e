"""Exponential moving average (EMA) of the weights (`--ema`)."""

from typing import Any

import jax
import jax.numpy as jnp


def ema_update(ema_params: Any, params: Any, step: jax.Array, decay: float) -> Any:
    """Returns the average after one more step: decay_t · average + (1 - decay_t) · params.

    Args:
      ema_params, params: pytrees of the same structure.
      step: steps done before this one, from 0.
      decay: the largest decay, in [0, 1). decay_t = min(decay, (1 + step) / (10 + step)) is smaller in the first steps,
        so that the average soon forgets the random initialization. `tf.train.ExponentialMovingAverage` with
        `num_updates` uses the same rule.
    """
    rate = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda average, value: rate * average + (1 - rate) * value, ema_params, params)
