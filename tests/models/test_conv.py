"""The convolution's other forms against XLA's own, in float64, values and both gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from flaxresnet.models.conv import Conv, conv_general_dilated

LAYOUT = ("NHWC", "HWIO", "NHWC")


@st.composite
def cases(draw):
    side = st.integers(1, 12)
    height, width = draw(side), draw(side)
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    strides = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    pair = st.tuples(st.integers(0, 2), st.integers(0, 2))
    padding = draw(st.one_of(st.just("SAME"), st.just("VALID"), st.tuples(pair, pair)))
    return (
        (draw(st.integers(1, 3)), height, width, draw(st.integers(1, 4))),
        kernel,
        draw(st.integers(1, 5)),
        strides,
        padding,
    )


@settings(max_examples=20, deadline=None, derandomize=True)
@given(cases())
def test_values_and_gradients_equal_xlas_convolution_in_float64(case):
    shape, kernel_size, features, strides, padding = case
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):  # compiled at no more than 20 shapes, for each is a program of its own
        x, kernel = rng.normal(size=shape), rng.normal(size=(*kernel_size, shape[-1], features))
        reference = lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=LAYOUT)
        weights = rng.normal(size=reference.shape)

        def total(convolve, x, kernel):
            return (convolve(x, kernel, strides, padding, dimension_numbers=LAYOUT) * weights).sum()

        ours, theirs = (
            jax.jit(jax.grad(total, argnums=(1, 2)), static_argnums=0)(convolve, x, kernel)
            for convolve in (conv_general_dilated, lax.conv_general_dilated)
        )
        values = jax.jit(conv_general_dilated, static_argnums=(2, 3), static_argnames="dimension_numbers")(
            x, kernel, strides, padding, dimension_numbers=LAYOUT
        )
        np.testing.assert_allclose(values, reference, rtol=1e-10, atol=1e-10)
        for mine, theirs_ in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine, theirs_, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "options",
    [{"feature_group_count": 2}, {"kernel_dilation": 2}, {"input_dilation": 2, "padding": [(1, 1), (0, 2)]}, {}],
)
def test_the_layer_is_nn_conv_in_all_but_speed(options):
    x = jax.random.normal(jax.random.key(0), (2, 6, 5, 4))
    ours, theirs = Conv(8, (3, 3), **options), nn.Conv(8, (3, 3), **options)
    variables = theirs.init(jax.random.key(1), x)
    assert jax.tree.map(jnp.shape, ours.init(jax.random.key(1), x)) == jax.tree.map(jnp.shape, variables)
    np.testing.assert_allclose(ours.apply(variables, x), theirs.apply(variables, x), rtol=1e-5, atol=1e-5)


def test_one_by_one_kernels_become_a_matrix_product_on_cpu_and_a_convolution_elsewhere():
    x, kernel = jnp.zeros((2, 8, 8, 4)), jnp.zeros((1, 1, 4, 4))
    traced = jax.jit(lambda x, k: conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=LAYOUT)).trace(x, kernel)
    assert "convolution" not in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "convolution" in traced.lower(lowering_platforms=("cuda",)).as_text()
