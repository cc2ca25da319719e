"""Sums that become a loss and an accuracy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxresnet.training.metrics import NO_STEP, Metrics


def test_metrics_start_at_nothing():
    zero = Metrics.zero()
    assert (float(zero.loss), float(zero.correct), float(zero.count), int(zero.first_non_finite_step)) == (
        0,
        0,
        0,
        NO_STEP,
    )
    assert {leaf.dtype.name for leaf in (zero.loss, zero.correct, zero.count)} == {"float32"}
    assert zero.first_non_finite_step.dtype == jnp.int32
    assert zero.means() == (0.0, 0.0)


def test_add_sums_where_the_mask_is_1():
    first = Metrics.zero().add(jnp.array([1.0, 2.0, 4.0]), jnp.array([1.0, 0.0, 1.0]), jnp.array([1.0, 1.0, 0.0]))
    assert (float(first.loss), float(first.correct), float(first.count)) == (3.0, 1.0, 2.0)
    second = first.add(jnp.array([0.5, 9.0]), jnp.array([True, True]), jnp.array([1.0, 0.0]))
    assert (float(second.loss), float(second.correct), float(second.count)) == (3.5, 2.0, 3.0)
    assert (float(first.loss), float(first.count)) == (3.0, 2.0)


def test_means_are_of_all_images_whatever_the_batches():
    losses, hits = np.random.default_rng(1).random(10), np.arange(10) % 3 == 0
    metrics = Metrics.zero()
    for part in (slice(0, 7), slice(7, 10)):
        metrics = metrics.add(jnp.asarray(losses[part]), jnp.asarray(hits[part]), jnp.ones(len(losses[part])))
    loss, accuracy = metrics.means()
    assert isinstance(loss, float)
    assert isinstance(accuracy, float)
    np.testing.assert_allclose((loss, accuracy), (losses.mean(), 0.4), rtol=1e-6)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_mark_remembers_the_first_bad_step_only(bad):
    objectives = [0.5, 1e30, bad, 0.5, bad]
    metrics, seen = Metrics.zero(), []
    record_non_finite = jax.jit(lambda metrics, objective, step: metrics.record_non_finite(objective, step))
    for step, objective in enumerate(objectives, start=3):
        metrics = record_non_finite(metrics, jnp.asarray(objective), jnp.asarray(step))
        seen.append(int(metrics.first_non_finite_step))
    assert seen == [NO_STEP, NO_STEP, 5, 5, 5]


def test_mark_remembers_step_0():
    metrics = (
        Metrics.zero()
        .record_non_finite(jnp.asarray(jnp.nan), jnp.asarray(0))
        .record_non_finite(jnp.asarray(jnp.nan), jnp.asarray(1))
    )
    assert int(metrics.first_non_finite_step) == 0


def test_mark_and_add_leave_each_others_figures():
    marked = Metrics.zero().record_non_finite(jnp.asarray(jnp.nan), jnp.asarray(4))
    added = marked.add(jnp.array([2.0]), jnp.array([1.0]), jnp.array([1.0]))
    assert int(added.first_non_finite_step) == 4
    assert added.means() == (2.0, 1.0)
