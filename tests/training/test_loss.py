"""Tests of the loss against NumPy in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from flaxresnet.training.loss import per_example_metrics, smoothed_cross_entropy

LOGITS = np.array([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]])
LOG_PROBABILITIES = LOGITS - np.log(np.exp(LOGITS).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("labels", [[2, 0], [[0.0, 0.25, 0.75], [1.0, 0.0, 0.0]]], ids=["integer", "soft"])
def test_smoothed_cross_entropy_follows_formula(labels, smoothing):
    labels = np.array(labels)
    soft_labels = labels if labels.ndim == 2 else np.eye(3)[labels]
    targets = (1 - smoothing) * soft_labels + smoothing / 3
    expected = -(targets * LOG_PROBABILITIES).sum(axis=1)
    losses = smoothed_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(labels), smoothing)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_per_example_metrics_handle_large_logits():
    logits = np.array([[1000.0, 0.0, -1000.0], [0.0, 0.0, 0.0]])
    losses, correct = per_example_metrics(jnp.asarray(logits, jnp.float32), jnp.array([2, 0]))
    np.testing.assert_allclose(losses, [2000.0, np.log(3)], rtol=1e-6)
    np.testing.assert_array_equal(correct, [0, 1])
