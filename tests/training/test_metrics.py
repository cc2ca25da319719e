"""Tests of the metrics of training and evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxresnet.training.metrics import NO_STEP, Metrics


def test_zero_metrics_are_empty():
    zero = Metrics.zero()
    assert (zero.loss, zero.correct, zero.count, zero.first_non_finite_step) == (0, 0, 0, NO_STEP)
    assert {leaf.dtype.name for leaf in (zero.loss, zero.correct, zero.count)} == {"float32"}
    assert zero.first_non_finite_step.dtype == jnp.int32
    assert zero.means() == (0.0, 0.0)


def test_add_ignores_masked_images():
    first = Metrics.zero().add(jnp.array([1.0, 2.0, 4.0]), jnp.array([1.0, 0.0, 1.0]), jnp.array([1.0, 1.0, 0.0]))
    assert (float(first.loss), float(first.correct), float(first.count)) == (3.0, 1.0, 2.0)
    second = first.add(jnp.array([0.5, 9.0]), jnp.array([True, True]), jnp.array([1.0, 0.0]))
    assert (float(second.loss), float(second.correct), float(second.count)) == (3.5, 2.0, 3.0)
    assert (float(first.loss), float(first.count)) == (3.0, 2.0)


def test_means_ignore_batch_sizes():
    losses, hits = np.random.default_rng(1).random(10), np.arange(10) % 3 == 0
    metrics = Metrics.zero()
    for part in (slice(0, 7), slice(7, 10)):
        metrics = metrics.add(jnp.asarray(losses[part]), jnp.asarray(hits[part]), jnp.ones(len(losses[part])))
    loss, accuracy = metrics.means()
    assert isinstance(loss, float)
    assert isinstance(accuracy, float)
    np.testing.assert_allclose((loss, accuracy), (losses.mean(), 0.4), rtol=1e-6)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
def test_first_non_finite_step_stays(value):
    objectives = [0.5, 1e30, value, 0.5, value]
    metrics = Metrics.zero()
    recorded = []
    record_non_finite = jax.jit(lambda metrics, objective, step: metrics.record_non_finite(objective, step))
    for step, objective in enumerate(objectives, start=3):
        metrics = record_non_finite(metrics, jnp.asarray(objective), jnp.asarray(step))
        recorded.append(int(metrics.first_non_finite_step))
    assert recorded == [NO_STEP, NO_STEP, 5, 5, 5]


def test_step_0_is_recorded():
    metrics = (
        Metrics.zero()
        .record_non_finite(jnp.asarray(jnp.nan), jnp.asarray(0))
        .record_non_finite(jnp.asarray(jnp.nan), jnp.asarray(1))
    )
    assert int(metrics.first_non_finite_step) == 0


def test_record_and_add_are_independent():
    marked = Metrics.zero().record_non_finite(jnp.asarray(jnp.nan), jnp.asarray(4))
    added = marked.add(jnp.array([2.0]), jnp.array([1.0]), jnp.array([1.0]))
    assert int(added.first_non_finite_step) == 4
    assert added.means() == (2.0, 1.0)
