"""The convolution's other forms against XLA's own, in float64, values and both gradients."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from flaxresnet.models.conv import Conv, conv_general_dilated
from flaxresnet.models.conv_choice import (
    FORWARD,
    INPUT_GRADIENT,
    KERNEL_GRADIENT,
    NATIVE,
    PATCHES,
    POINTWISE,
    TAPS,
    WINOGRAD,
    choose,
    choose_for_inference,
)
from flaxresnet.models.conv_forms import Window, native
from flaxresnet.models.winograd import tiling_for

LAYOUT = ("NHWC", "HWIO", "NHWC")


def xlas(x, kernel, strides, padding):
    """XLA's convolution of images that were padded before: when it pads, it errs beyond the kernel's reach."""
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    return lax.conv_general_dilated(padded, kernel, strides, "VALID", dimension_numbers=LAYOUT)


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
        reference = xlas(x, kernel, strides, padding)
        weights = rng.normal(size=reference.shape)

        def laid_out(x, kernel, strides, padding):
            return conv_general_dilated(x, kernel, strides, padding, dimension_numbers=LAYOUT)

        def total(convolve, x, kernel):
            return (convolve(x, kernel, strides, padding) * weights).sum()

        ours, theirs = (
            jax.jit(jax.grad(total, argnums=(1, 2)), static_argnums=0)(convolve, x, kernel)
            for convolve in (laid_out, xlas)
        )
        values = jax.jit(laid_out, static_argnums=(2, 3))(x, kernel, strides, padding)
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
    "taps": [
        ((2, 1, 1, 3), (3, 3), Window((1, 1), ((1, 1), (1, 1)))),
        ((2, 2, 3, 3), (3, 3), Window((1, 1), ((1, 1), (1, 1)))),
        ((2, 3, 2, 2), (2, 4), Window((2, 1), ((1, 0), (3, 2)))),
        ((1, 5, 4, 2), (7, 7), Window((2, 3), ((3, 3), (3, 2)))),
        ((1, 2, 1, 2), (5, 2), Window((1, 1), ((4, 4), (2, 0)))),
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
        expected, pull = jax.vjp(lambda x, kernel: xlas(x, kernel, window.strides, window.pads), x, kernel)
        g = rng.normal(size=expected.shape)
        by_input, by_kernel = pull(jnp.asarray(g))
        np.testing.assert_allclose(KERNEL_GRADIENT[form](x, kernel, g, window), by_kernel, atol=1e-12)
        if form in FORWARD:
            np.testing.assert_allclose(FORWARD[form](x, kernel, window), expected, atol=1e-12)
            np.testing.assert_allclose(INPUT_GRADIENT[form](x, kernel, g, window), by_input, atol=1e-12)


@pytest.mark.parametrize(("side", "width"), [(15, 64), (8, 128), (4, 256), (7, 512)])
def test_winograd_loses_less_than_3e_5_in_float32_at_the_networks_widths(side, width):
    rng, window = np.random.default_rng(0), Window((1, 1), ((1, 1), (1, 1)))
    x, kernel, g = (
        rng.normal(size=shape).astype(np.float32)
        for shape in ((4, side, side, width), (3, 3, width, width), (4, side, side, width))
    )
    with jax.enable_x64(True):
        values, pull = jax.vjp(
            lambda x, kernel: native(x, kernel, window), *(a.astype(np.float64) for a in (x, kernel))
        )
        exact = [np.asarray(array) for array in (values, *pull(jnp.asarray(g, np.float64)))]
    got = (
        FORWARD["winograd"](x, kernel, window),
        *(table["winograd"](x, kernel, g, window) for table in (INPUT_GRADIENT, KERNEL_GRADIENT)),
    )
    for mine, expected in zip(got, exact, strict=True):
        assert np.abs(mine - expected).max() <= 3e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("size", "step"), [((15, 15), 4), ((8, 8), 4), ((4, 4), 4), ((3, 7), 4), ((1, 1), 2), ((2, 5), 2), ((6, 6), 2)]
)
def test_tiles_are_those_with_the_fewest_products(size, step):
    assert len(tiling_for(size).result) == step


@pytest.mark.parametrize(
    ("image", "kernel", "window", "expected"),
    [
        ((32, 15, 15, 256), (1, 1, 256, 64), Window((1, 1), ((0, 0), (0, 0))), POINTWISE),
        ((32, 2, 2, 512), (3, 3, 512, 512), Window((1, 1), ((1, 1), (1, 1))), TAPS),
        ((2, 1, 1, 64), (3, 3, 64, 64), Window((1, 1), ((1, 1), (1, 1))), TAPS),
        ((2, 4, 4, 256), (3, 3, 256, 256), Window((1, 1), ((1, 1), (1, 1))), PATCHES),
        ((2, 4, 4, 8), (15, 15, 8, 8), Window((1, 1), ((7, 7), (7, 7))), NATIVE),
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


@pytest.mark.parametrize(
    ("images", "size", "width", "expected"),
    [
        (32, 15, 64, WINOGRAD),
        (32, 8, 128, WINOGRAD),
        (32, 4, 256, TAPS),  # 65,536 numbers in each of the nine places, for 512 results
        (128, 4, 256, WINOGRAD),
        (2, 4, 256, PATCHES),
        (32, 2, 512, TAPS),
    ],
)
def test_in_inference_a_large_kernel_is_not_transformed_for_few_results(images, size, width, expected):
    window = Window((1, 1), ((1, 1), (1, 1)))
    assert choose_for_inference((images, size, size, width), (3, 3, width, width), window) == expected


@pytest.mark.parametrize(
    ("image", "kernel", "expected"),
    [
        ((1, 14, 14, 256), (3, 3, 256, 256), "patches"),  # 196 results
        ((1, 7, 7, 512), (3, 3, 512, 512), "patches"),
        ((1, 30, 30, 16), (3, 3, 16, 16), "native"),  # 900
        ((2, 10, 10, 8), (9, 9, 8, 8), "native"),  # a kernel of too many places
        ((1, 2, 2, 512), (3, 3, 512, 512), "taps"),
        ((1, 14, 14, 256), (1, 1, 256, 64), "pointwise"),
    ],
)
def test_in_inference_few_results_are_a_product_that_reads_the_kernel_once(image, kernel, expected):
    pads = ((kernel[0] // 2, kernel[0] // 2),) * 2
    assert choose_for_inference(image, kernel, Window((1, 1), pads)).forward == expected


def test_half_precision_leaves_winograd_out():
    case = (32, 15, 15, 64), (3, 3, 64, 64), Window((1, 1), ((1, 1), (1, 1)))
    assert choose(*case, bits=16) == ("native", "native", "patches")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"feature_group_count": 2},
        {"kernel_dilation": 2},
        {"input_dilation": 2, "padding": [(1, 1), (0, 2)]},
        {"padding": [(-1, -1), (0, -2)]},
        {"padding": "CIRCULAR"},
        {"padding": "REFLECT", "strides": 2},
        {"padding": 1, "precision": "highest"},
    ],
)
def test_the_layer_is_nn_conv_in_all_but_speed(options):
    x = jax.random.normal(jax.random.key(0), (2, 6, 5, 4))
    ours, theirs = Conv(8, (3, 3), **options), nn.Conv(8, (3, 3), **options)
    variables = theirs.init(jax.random.key(1), x)
    assert jax.tree.map(jnp.shape, ours.init(jax.random.key(1), x)) == jax.tree.map(jnp.shape, variables)
    np.testing.assert_allclose(ours.apply(variables, x), theirs.apply(variables, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "kernel", "padding", "options"),
    [
        ((2, 4, 6, 5), (3, 4, 3, 3), "SAME", {}),  # channels first, as where nothing is said
        ((2, 6, 5, 4), (8, 3, 3, 4), "SAME", {"dimension_numbers": ("NHWC", "OHWI", "NHWC")}),
        ((2, 6, 5, 4), (3, 3, 4, 8), "SAME_LOWER", {"dimension_numbers": LAYOUT}),
        ((2, 6, 5, 4), (3, 3, 4, 8), ((-1, 0), (2, -2)), {"dimension_numbers": LAYOUT}),
        ((0, 6, 5, 4), (1, 1, 4, 8), "SAME", {"dimension_numbers": LAYOUT}),
        ((4, 6, 5, 4), (3, 3, 4, 8), "SAME", {"dimension_numbers": LAYOUT, "batch_group_count": 2}),
    ],
)
def test_the_function_is_xlas_for_whatever_it_is_asked(images, kernel, padding, options):
    x, weights = jax.random.normal(jax.random.key(0), images), jax.random.normal(jax.random.key(1), kernel)
    expected = lax.conv_general_dilated(x, weights, (1, 1), padding, **options)
    result = conv_general_dilated(x, weights, (1, 1), padding, **options)
    assert (result.shape, result.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"rhs_dilation": (2, 1)}, {"feature_group_count": 2}])
@pytest.mark.parametrize(
    ("size", "padding"),
    [
        ((3, 3), ((-1, 1), (0, -2))),  # XLA's on CPU reads the next image, and what lies behind the last
        ((3, 2), ((-3, 2), (-1, 1))),
        ((2, 2), ((3, 0), (1, 1))),  # and in the gradient of this one
        ((1, 1), ((2, 0), (1, 3))),
        ((3, 3), ((-7, 9), (2, 2))),  # nothing of the image is left
        ((3, 3), ((-2, -1), (-1, -2))),
    ],
)
def test_cropped_and_widely_padded_axes_are_those_of_images_padded_first(size, padding, options):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 6, 7, 4)).astype(np.float32)
    kernel = rng.normal(size=(*size, 4 // options.get("feature_group_count", 1), 8)).astype(np.float32)
    options = {"dimension_numbers": LAYOUT, **options}
    layer, padded = (
        lambda x, kernel: conv_general_dilated(x, kernel, (1, 1), padding, **options),
        lambda x, kernel: lax.conv_general_dilated(
            lax.pad(x, 0.0, ((0, 0, 0), *((*pads, 0) for pads in padding), (0, 0, 0))),
            kernel,
            (1, 1),
            "VALID",
            **options,
        ),
    )
    (values, pull), (expected, pull_expected) = jax.vjp(layer, x, kernel), jax.vjp(padded, x, kernel)
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5)
    g = rng.normal(size=expected.shape).astype(np.float32)
    for mine, theirs in zip(pull(g), pull_expected(g), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("precision", ["highest", ("highest", "highest"), ["highest", "highest"]])
@pytest.mark.parametrize("size", [1, 3])  # on a CPU products, and taps
def test_precision_reaches_the_products(size, precision):
    x, kernel = jnp.ones((2, 2, 2, 40)), jnp.ones((size, size, 40, 30))
    options = {"dimension_numbers": LAYOUT, "precision": precision}
    text = jax.jit(lambda x, k: conv_general_dilated(x, k, (1, 1), "SAME", **options)).lower(x, kernel).as_text()
    assert text.count("HIGHEST") >= 2  # once for each operand
    assert "DEFAULT" not in text


def test_an_option_that_xla_does_not_have_is_refused_as_by_xla():
    with pytest.raises(TypeError, match="nonsense"):
        conv_general_dilated(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2)), (1, 1), "SAME", nonsense=3)


def test_half_precision_gives_single_where_it_is_asked_for():
    x, kernel = jnp.ones((2, 2, 2, 4), jnp.bfloat16), jnp.full((3, 3, 4, 8), 1 / 3, jnp.bfloat16)
    options = {"dimension_numbers": LAYOUT, "preferred_element_type": jnp.float32}
    result = conv_general_dilated(x, kernel, (1, 1), "SAME", **options)
    assert result.dtype == jnp.float32
    np.testing.assert_array_equal(result, lax.conv_general_dilated(x, kernel, (1, 1), "SAME", **options))


def test_whole_numbers_are_convolved_as_xla_does_it():
    x, kernel = jnp.arange(2 * 15 * 15 * 2).reshape(2, 15, 15, 2), jnp.ones((3, 3, 2, 2), int)
    expected = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT)
    np.testing.assert_array_equal(conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT), expected)


# One case of each form that small images do not reach: what is chosen for values, and for the two gradients.
LARGE_CASES = [
    ((1, 224, 224, 3), (7, 7, 3, 4), (2, 2), ((3, 3), (3, 3)), ("native", "native", "rows")),
    ((1, 57, 61, 16), (3, 3, 16, 8), (1, 1), "SAME", NATIVE),  # more patches than pay
    ((1, 15, 13, 24), (3, 3, 24, 8), (2, 2), ((1, 1), (1, 1)), ("native", "native", "patches")),
    ((3, 30, 13, 32), (3, 3, 32, 40), (1, 1), ((2, 0), (0, 1)), WINOGRAD),
    ((2, 2, 2, 40), (3, 3, 40, 30), (1, 1), "SAME", TAPS),
    ((2, 5, 4, 40), (3, 3, 40, 30), (1, 1), "SAME", PATCHES),
    ((2, 14, 9, 40), (1, 1, 40, 30), (2, 3), "VALID", POINTWISE),
]


@pytest.mark.parametrize(("images", "kernel", "strides", "padding", "expected"), LARGE_CASES)
def test_each_choice_has_xlas_values_and_gradients_in_float64(images, kernel, strides, padding, expected):
    pads = lax.padtype_to_pads(images[1:3], kernel[:2], strides, padding) if isinstance(padding, str) else padding
    assert choose(images, kernel, Window(strides, tuple(pads)), bits=64) == expected
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, weights = rng.normal(size=images), rng.normal(size=kernel)

        @functools.partial(jax.jit, static_argnums=0)
        def all_three(convolve, x, weights):
            def loss(x, weights):
                values = convolve(x, weights, strides, padding, dimension_numbers=LAYOUT)
                return jnp.sin(values).sum(), values

            return jax.grad(loss, argnums=(0, 1), has_aux=True)(x, weights)

        for mine, theirs in zip(
            *(jax.tree.leaves(all_three(f, x, weights)) for f in (conv_general_dilated, lax.conv_general_dilated)),
            strict=True,
        ):
            np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", sorted(KERNEL_GRADIENT.keys() - {"winograd"}))  # which is not taken for it
def test_half_precision_loses_a_percent_at_most_in_every_form(form):
    size, rng = (1 if form == "pointwise" else 3), np.random.default_rng(0)
    window = Window((1, 1), ((size // 2, size // 2),) * 2)
    shapes = ((3, 2, 2, 40), (size, size, 40, 30), (3, 2, 2, 30))
    x, kernel, g = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in shapes)
    with jax.enable_x64(True):
        exact = [jnp.asarray(array, jnp.float64) for array in (x, kernel, g)]
        values, pull = jax.vjp(lambda x, kernel: native(x, kernel, window), *exact[:2])
        expected = [np.asarray(array) for array in (values, *pull(exact[2]))]
    by_form = [table.get(form) for table in (FORWARD, INPUT_GRADIENT, KERNEL_GRADIENT)]
    for make, arrays, right in zip(by_form, ((x, kernel), (x, kernel, g), (x, kernel, g)), expected, strict=True):
        if make is not None:
            result = make(*arrays, window)
            assert result.dtype == jnp.bfloat16
            assert np.abs(np.asarray(result, np.float64) - right).max() <= 1e-2 * np.abs(right).max()


@pytest.mark.parametrize(("images", "kernel", "strides", "padding", "_"), LARGE_CASES[2:])
def test_second_derivatives_and_those_of_each_image_are_xlas_in_float64(images, kernel, strides, padding, _):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, weights = rng.normal(size=images), rng.normal(size=kernel)

        @functools.partial(jax.jit, static_argnums=0)
        def found(convolve, x, weights):
            def loss(weights, x):
                return jnp.sin(convolve(x, weights, strides, padding, dimension_numbers=LAYOUT)).sum()

            twice = jax.grad(lambda weights: (jax.grad(loss)(weights, x) ** 2).sum())(weights)
            return twice, jax.vmap(jax.grad(loss), in_axes=(None, 0))(weights, x[:, None])

        for mine, theirs in zip(
            *(found(f, x, weights) for f in (conv_general_dilated, lax.conv_general_dilated)), strict=True
        ):
            np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("layer", [False, True])
def test_one_by_one_kernels_become_a_matrix_product_on_cpu_and_a_convolution_elsewhere(layer):
    x, kernel = jnp.zeros((2, 8, 8, 4)), jnp.zeros((1, 1, 4, 4))

    def convolved(x, kernel):
        if layer:  # as long as Flax's layer asks this one's function
            return Conv(4, (1, 1), use_bias=False).apply({"params": {"kernel": kernel}}, x)
        return conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT)

    traced = jax.jit(convolved).trace(x, kernel)
    assert "convolution" not in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "convolution" in traced.lower(lowering_platforms=("cuda",)).as_text()
