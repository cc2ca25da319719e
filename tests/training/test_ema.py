"""Tests of the exponential moving average of the weights."""

import jax.numpy as jnp
import numpy as np
import pytest

from flaxresnet.training.ema import ema_update


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_ema_update_follows_formula(decay):
    weights = np.random.default_rng(0).normal(size=(6, 3))
    average, expected = {"fc": jnp.asarray(weights[0], jnp.float32)}, weights[0]
    for step, new in enumerate(weights[1:]):
        average = ema_update(average, {"fc": jnp.asarray(new, jnp.float32)}, jnp.int32(step), decay)
        rate = min(decay, (1 + step) / (10 + step))
        expected = rate * expected + (1 - rate) * new
        np.testing.assert_allclose(average["fc"], expected, rtol=1e-5, atol=1e-6)
