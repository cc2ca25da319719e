"""Sums that become a loss and an accuracy; the score interval; the confusion matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flaxresnet.training.metrics import NO_STEP, Metrics, confusion_matrix, wilson_interval


@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17:857–872, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # Of the last one's failures: the interval of what is left.
        (28, 29, 0.8282, 0.9939),
    ],
)
def test_wilson_interval_gives_published_values(correct, count, low, high):
    np.testing.assert_allclose(wilson_interval(correct, count), (low, high), rtol=0, atol=5.1e-5)


@pytest.mark.parametrize("count", [1, 4, 10, 102, 999])
def test_wilson_interval_reaches_0_and_1_where_none_or_all_are_correct(count):
    z2 = 1.959964**2
    assert wilson_interval(0, count) == (0.0, pytest.approx(z2 / (count + z2), rel=1e-12))
    assert wilson_interval(count, count) == (pytest.approx(count / (count + z2), rel=1e-12), 1.0)


def test_wilson_interval_of_nothing_says_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_wilson_interval_widens_with_z():
    # z = 1: (p + 1/8 ± √(p(1-p)/4 + 1/64)) / (1 + 1/4) with p = 1/2.
    np.testing.assert_allclose(wilson_interval(2, 4, z=1.0), (0.5 - 0.2 * 5**0.5 / 2, 0.5 + 0.2 * 5**0.5 / 2))
    narrow, wide = wilson_interval(30, 40, z=1.0), wilson_interval(30, 40, z=2.5758)
    assert wide[0] < narrow[0] < 0.75 < narrow[1] < wide[1]


@given(st.integers(1, 10**6).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_wilson_interval_contains_the_proportion_and_lies_within_0_and_1(outcome):
    correct, count = outcome
    low, high = wilson_interval(correct, count)
    assert 0 <= low <= correct / count <= high <= 1
    assert low < high


@given(st.integers(1, 10**4).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_wilson_interval_mirrors_when_hits_and_misses_change_places(outcome):
    correct, count = outcome
    low, high = wilson_interval(correct, count)
    np.testing.assert_allclose(wilson_interval(count - correct, count), (1 - high, 1 - low), atol=1e-12)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_confusion_matrix_counts_pairs_of_true_and_predicted_class(dtype):
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 4, 200).astype(dtype), rng.integers(0, 4, 200).astype(dtype)
    expected = np.zeros((5, 5), int)
    for true, guess in zip(labels, predicted, strict=True):
        expected[true, guess] += 1
    np.testing.assert_array_equal(confusion_matrix(labels, predicted, 5), expected)


def test_confusion_matrix_has_true_classes_in_rows():
    matrix = confusion_matrix(np.array([0, 0, 2]), np.array([1, 1, 0]), 3)
    np.testing.assert_array_equal(matrix, [[0, 2, 0], [0, 0, 0], [1, 0, 0]])


def test_metrics_start_at_nothing():
    zero = Metrics.zero()
    assert (float(zero.loss), float(zero.correct), float(zero.count), int(zero.bad_step)) == (0, 0, 0, NO_STEP)
    assert {leaf.dtype.name for leaf in (zero.loss, zero.correct, zero.count)} == {"float32"}
    assert zero.bad_step.dtype == jnp.int32
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
    mark = jax.jit(lambda metrics, objective, step: metrics.mark(objective, step))
    for step, objective in enumerate(objectives, start=3):
        metrics = mark(metrics, jnp.asarray(objective), jnp.asarray(step))
        seen.append(int(metrics.bad_step))
    assert seen == [NO_STEP, NO_STEP, 5, 5, 5]


def test_mark_remembers_step_0():
    metrics = Metrics.zero().mark(jnp.asarray(jnp.nan), jnp.asarray(0)).mark(jnp.asarray(jnp.nan), jnp.asarray(1))
    assert int(metrics.bad_step) == 0


def test_mark_and_add_leave_each_others_figures():
    marked = Metrics.zero().mark(jnp.asarray(jnp.nan), jnp.asarray(4))
    added = marked.add(jnp.array([2.0]), jnp.array([1.0]), jnp.array([1.0]))
    assert int(added.bad_step) == 4
    assert added.means() == (2.0, 1.0)
