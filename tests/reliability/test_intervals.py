"""Tests the Wilson interval against published values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flaxresnet.reliability.intervals import wilson_interval


def outcomes(max_count):
    """Returns a strategy for (correct, count) with 0 <= correct <= count and 1 <= count <= max_count."""
    return st.integers(1, max_count).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count)))


@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17:857–872, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # The complement of the last one.
        (28, 29, 0.8282, 0.9939),
    ],
)
def test_wilson_interval_matches_published_values(correct, count, low, high):
    np.testing.assert_allclose(wilson_interval(correct, count), (low, high), rtol=0, atol=5.1e-5)


@pytest.mark.parametrize("count", [1, 4, 10, 102, 999])
def test_wilson_interval_is_exact_at_ends(count):
    z2 = 1.959964**2
    assert wilson_interval(0, count) == (0.0, pytest.approx(z2 / (count + z2), rel=1e-12))
    assert wilson_interval(count, count) == (pytest.approx(count / (count + z2), rel=1e-12), 1.0)


def test_wilson_interval_of_nothing_is_unbounded():
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_wilson_interval_widens_with_z():
    # z = 1: (p + 1/8 ± √(p(1-p)/4 + 1/64)) / (1 + 1/4) with p = 1/2.
    np.testing.assert_allclose(wilson_interval(2, 4, z=1.0), (0.5 - 0.2 * 5**0.5 / 2, 0.5 + 0.2 * 5**0.5 / 2))
    narrow = wilson_interval(30, 40, z=1.0)
    wide = wilson_interval(30, 40, z=2.5758)
    assert wide[0] < narrow[0] < 0.75 < narrow[1] < wide[1]


@given(outcomes(10**6))
def test_wilson_interval_contains_proportion(outcome):
    correct, count = outcome
    low, high = wilson_interval(correct, count)
    assert 0 <= low <= correct / count <= high <= 1
    assert low < high


@given(outcomes(10**4))
def test_wilson_interval_is_symmetric(outcome):
    correct, count = outcome
    low, high = wilson_interval(correct, count)
    np.testing.assert_allclose(wilson_interval(count - correct, count), (1 - high, 1 - low), atol=1e-12)
