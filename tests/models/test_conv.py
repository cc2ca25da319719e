"""The convolution's other forms against XLA's own, in float64, values and both gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from flaxresnet.models.conv import NATIVE, PATCHES, POINTWISE, WINOGRAD, Conv, choose, conv_general_dilated
from flaxresnet.models.conv_forms import FORWARD, INPUT_GRADIENT, KERNEL_GRADIENT, Window, native

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


@settings(max_examples=14, deadline=None, derandomize=True)
@given(cases())
def test_values_and_gradients_equal_xlas_convolution_in_float64(case):
    shape, kernel_size, features, strides, padding = case
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):  # compiled at no more than 14 shapes, for each is a program of its own
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


# Images, kernel and window: rectangular, odd, tiny and with padding on one side only.
FORM_CASES = {
    "winograd": [
        ((2, 1, 1, 3), (3, 3), Window((1, 1), ((1, 1), (1, 1)))),
        ((1, 2, 5, 2), (3, 3), Window((1, 1), ((1, 1), (1, 1)))),
        ((3, 7, 4, 2), (3, 3), Window((1, 1), ((0, 2), (1, 0)))),
        ((2, 6, 3, 1), (3, 3), Window((1, 1), ((0, 0), (0, 0)))),
        ((1, 9, 12, 2), (3, 3), Window((1, 1), ((2, 2), (2, 1)))),
    ],
    "rows": [
        ((2, 1, 1, 3), (3, 3), Window((1, 1), ((1, 1), (1, 1)))),
        ((2, 13, 10, 3), (7, 7), Window((2, 2), ((3, 3), (3, 3)))),
        ((1, 5, 8, 2), (2, 3), Window((3, 1), ((0, 1), (2, 0)))),
    ],
}


@pytest.mark.parametrize(("form", "case"), [(form, case) for form, cases in FORM_CASES.items() for case in cases])
def test_a_form_is_the_convolution_and_its_gradients_in_float64(form, case):
    shape, size, window = case
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, kernel = rng.normal(size=shape), rng.normal(size=(*size, shape[-1], 4))
        expected, pull = jax.vjp(lambda x, kernel: native(x, kernel, window), x, kernel)
        g = rng.normal(size=expected.shape)
        by_input, by_kernel = pull(jnp.asarray(g))
        np.testing.assert_allclose(KERNEL_GRADIENT[form](x, kernel, g, window), by_kernel, atol=1e-12)
        if form in FORWARD:
            np.testing.assert_allclose(FORWARD[form](x, kernel, window), expected, atol=1e-12)
            np.testing.assert_allclose(INPUT_GRADIENT[form](x, kernel, g, window), by_input, atol=1e-12)


def test_winograd_loses_less_than_1e_4_in_float32_at_the_networks_widths():
    rng, window = np.random.default_rng(0), Window((1, 1), ((1, 1), (1, 1)))
    x, kernel, g = (
        rng.normal(size=shape).astype(np.float32) for shape in ((4, 15, 15, 64), (3, 3, 64, 64), (4, 15, 15, 64))
    )

    def all_three(form):
        values = FORWARD[form](x, kernel, window)
        return values, *(table[form](x, kernel, g, window) for table in (INPUT_GRADIENT, KERNEL_GRADIENT))

    for got, expected in zip(all_three("winograd"), all_three("native"), strict=True):
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("image", "kernel", "window", "expected"),
    [
        ((32, 15, 15, 256), (1, 1, 256, 64), Window((1, 1), ((0, 0), (0, 0))), POINTWISE),
        ((32, 2, 2, 512), (3, 3, 512, 512), Window((1, 1), ((1, 1), (1, 1))), PATCHES),
        ((32, 15, 15, 64), (3, 3, 64, 64), Window((1, 1), ((1, 1), (1, 1))), WINOGRAD),
        ((1, 15, 15, 64), (3, 3, 64, 64), Window((1, 1), ((1, 1), (1, 1))), ("native", "native", "patches")),
        ((32, 15, 15, 8), (3, 3, 8, 8), Window((1, 1), ((1, 1), (1, 1))), ("native", "native", "rows")),
        ((32, 15, 15, 16), (3, 3, 16, 8), Window((1, 1), ((1, 1), (1, 1))), ("native", "native", "patches")),
        ((32, 64, 64, 3), (7, 7, 3, 64), Window((2, 2), ((3, 3), (3, 3))), ("native", "native", "rows")),
        ((32, 112, 112, 64), (3, 3, 64, 64), Window((2, 2), ((1, 1), (1, 1))), NATIVE),
        ((32, 15, 15, 64), (3, 3, 64, 64), Window((1, 1), ((3, 0), (1, 1))), ("native", "native", "patches")),
    ],
)
def test_the_rule_of_forms(image, kernel, window, expected):
    assert choose(image, kernel, window) == expected


def test_half_precision_leaves_winograd_out():
    case = (32, 15, 15, 64), (3, 3, 64, 64), Window((1, 1), ((1, 1), (1, 1)))
    assert choose(*case, bits=16) == ("native", "native", "patches")


def test_a_convolution_that_takes_winograd_has_xlas_gradients_in_float64():
    rng = np.random.default_rng(0)
    assert choose((18, 8, 7, 32), (3, 3, 32, 32), Window((1, 1), ((1, 1), (1, 1))), bits=64) == WINOGRAD
    with jax.enable_x64(True):
        x, kernel = rng.normal(size=(18, 8, 7, 32)), rng.normal(size=(3, 3, 32, 32))

        def total(convolve, x, kernel):
            return jnp.sin(convolve(x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT)).sum()

        for mine, theirs in zip(
            *(jax.grad(total, argnums=(1, 2))(f, x, kernel) for f in (conv_general_dilated, lax.conv_general_dilated)),
            strict=True,
        ):
            np.testing.assert_allclose(mine, theirs, atol=1e-10)


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
