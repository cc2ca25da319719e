"""The convolution in its forms against the definition in NumPy, in float64, values and gradients, and against XLA."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from flaxresnet.models.conv import Conv, conv_general_dilated
from flaxresnet.models.cpu.conv_algorithms import ConvParams
from flaxresnet.models.cpu.conv_heuristics import (
    CONV1X1_GEMM,
    FORWARD,
    IM2COL,
    INPUT_GRADIENT,
    KERNEL_GRADIENT,
    NATIVE,
    PER_OFFSET_GEMM,
    WINOGRAD,
    choose,
    choose_for_inference,
)
from flaxresnet.models.cpu.winograd import tiling_for

LAYOUT = ("NHWC", "HWIO", "NHWC")


def cut_or_padded(x, pads):
    """The images with zeros around them; fewer than none cut pixels off."""
    for axis, (low, high) in enumerate(pads, start=1):
        whole = np.pad(x, [(max(low, 0), max(high, 0)) if i == axis else (0, 0) for i in range(4)])
        x = np.take(whole, range(max(-low, 0), whole.shape[axis] - max(-high, 0)), axis)
    return x


def by_numpy(x, kernel, strides, pads, g=None, dilation=(1, 1), groups=1):
    """The definition in float64, a place of the kernel at a time: values, and with g the gradients by x and kernel."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    pads = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, pads) if isinstance(pads, str) else pads
    padded = cut_or_padded(x, pads)
    size = []
    for axis in (0, 1):
        reach = (kernel.shape[axis] - 1) * dilation[axis]
        size.append(max((padded.shape[1 + axis] - 1 - reach) // strides[axis] + 1, 0))
    values = np.zeros((len(x), *size, kernel.shape[3]))
    by_padded, by_kernel = np.zeros(padded.shape), np.zeros(kernel.shape)
    channels, features = kernel.shape[2], kernel.shape[3] // groups
    for i, j in np.ndindex(kernel.shape[:2]):
        rows = slice(i * dilation[0], i * dilation[0] + strides[0] * (size[0] - 1) + 1, strides[0])
        columns = slice(j * dilation[1], j * dilation[1] + strides[1] * (size[1] - 1) + 1, strides[1])
        for group in range(groups):
            taken = slice(None), rows, columns, slice(group * channels, (group + 1) * channels)
            made = slice(group * features, (group + 1) * features)
            place = kernel[i, j, :, made]
            values[..., made] += padded[taken] @ place
            if g is not None:
                by_padded[taken] += g[..., made] @ place.T
                by_kernel[i, j, :, made] = np.tensordot(padded[taken], g[..., made], axes=((0, 1, 2), (0, 1, 2)))
    if g is None:
        return values
    # What was cut off has no gradient; to get back to the images' size is to pad the other way.
    return values, cut_or_padded(by_padded, [(-low, -high) for low, high in pads]), by_kernel


def assert_close(found, expected, names, rtol=0.0, atol=0.0, case=""):
    for name, mine, right in zip(names, found, expected, strict=True):
        np.testing.assert_allclose(mine, right, rtol=rtol, atol=atol, err_msg=f"{name} {case}")


NAMES = ("values", "gradient by images", "gradient by kernel")


def test_numpys_convolution_is_xlas():
    rng = np.random.default_rng(0)
    options = {"rhs_dilation": (2, 1), "feature_group_count": 2, "dimension_numbers": LAYOUT}
    pads = ((1, 2), (0, 1))
    with jax.enable_x64(True):
        x, kernel, g = (rng.normal(size=shape) for shape in ((2, 7, 6, 4), (3, 2, 2, 6), (2, 3, 6, 6)))

        @jax.jit
        def by_xla(x, kernel, g):
            values, pull = jax.vjp(lambda *a: lax.conv_general_dilated(*a, (2, 1), pads, **options), x, kernel)
            return values, *pull(g)

        found = by_numpy(x, kernel, (2, 1), pads, g, dilation=(2, 1), groups=2)
        assert_close(found, by_xla(x, kernel, g), NAMES, atol=1e-12)


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
def test_values_and_gradients_match_numpy(case):
    shape, kernel_size, features, strides, padding = case
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=shape), rng.normal(size=(*kernel_size, shape[-1], features))
    g = rng.normal(size=by_numpy(x, kernel, strides, padding).shape)

    @jax.jit  # compiled at no more than 14 shapes, for each is a program of its own
    def by_ours(x, kernel, g):
        def convolve(x, kernel):
            return conv_general_dilated(x, kernel, strides, padding, dimension_numbers=LAYOUT)

        values, pull = jax.vjp(convolve, x, kernel)
        return values, *pull(g)

    with jax.enable_x64(True):
        found = by_ours(x, kernel, g)
    assert_close(found, by_numpy(x, kernel, strides, padding, g), NAMES, rtol=1e-10, atol=1e-10)


# Images, kernel and window: rectangular, odd, tiny and with padding on one side only.
FORM_CASES = {
    "winograd": [
        ((2, 1, 1, 3), (3, 3), ConvParams((1, 1), ((1, 1), (1, 1)))),
        ((1, 2, 5, 2), (3, 3), ConvParams((1, 1), ((1, 1), (1, 1)))),
        ((3, 7, 4, 2), (3, 3), ConvParams((1, 1), ((0, 2), (1, 0)))),
        ((2, 6, 3, 1), (3, 3), ConvParams((1, 1), ((0, 0), (0, 0)))),
        ((1, 9, 12, 2), (3, 3), ConvParams((1, 1), ((2, 2), (2, 1)))),
    ],
    "per_offset_gemm": [
        ((2, 1, 1, 3), (3, 3), ConvParams((1, 1), ((1, 1), (1, 1)))),
        ((2, 2, 3, 3), (3, 3), ConvParams((1, 1), ((1, 1), (1, 1)))),
        ((2, 3, 2, 2), (2, 4), ConvParams((2, 1), ((1, 0), (3, 2)))),
        ((1, 4, 3, 2), (5, 5), ConvParams((2, 3), ((2, 2), (2, 1)))),
        ((1, 2, 1, 2), (5, 2), ConvParams((1, 1), ((4, 4), (2, 0)))),
    ],
    "rows": [
        ((2, 1, 1, 3), (3, 3), ConvParams((1, 1), ((1, 1), (1, 1)))),
        ((2, 13, 10, 3), (7, 7), ConvParams((2, 2), ((3, 3), (3, 3)))),
        ((1, 5, 8, 2), (2, 3), ConvParams((3, 1), ((0, 1), (2, 0)))),
    ],
}


def by_form(form, x, kernel, g, window):
    """Values and gradients by a form, as far as it has them."""
    found = {}
    if form in FORWARD:
        found["values"] = FORWARD[form](x, kernel, window)
    if form in INPUT_GRADIENT:
        found["gradient by images"] = INPUT_GRADIENT[form](x, kernel, g, window)
    if form in KERNEL_GRADIENT:
        found["gradient by kernel"] = KERNEL_GRADIENT[form](x, kernel, g, window)
    return found


@pytest.mark.parametrize("form", FORM_CASES)
def test_a_form_is_the_convolution_and_its_gradients_in_float64(form):
    rng = np.random.default_rng(0)
    arrays, expected = [], []
    for shape, size, window in FORM_CASES[form]:
        x, kernel = rng.normal(size=shape), rng.normal(size=(*size, shape[-1], 4))
        g = rng.normal(size=by_numpy(x, kernel, *window[:2]).shape)
        arrays.append((x, kernel, g))
        expected.append(dict(zip(NAMES, by_numpy(x, kernel, *window[:2], g), strict=True)))

    @jax.jit  # one program for all cases
    def all_cases(arrays):
        return [by_form(form, *three, case[2]) for three, case in zip(arrays, FORM_CASES[form], strict=True)]

    with jax.enable_x64(True):
        results = all_cases(arrays)
    for case, found, right in zip(FORM_CASES[form], results, expected, strict=True):
        assert set(found) == (set(NAMES) if form in FORWARD else {"gradient by kernel"})
        for name, mine in found.items():
            np.testing.assert_allclose(mine, right[name], atol=1e-12, err_msg=f"{name} {case}")


@pytest.mark.parametrize(
    ("side", "width", "features"),
    [
        (15, 64, 64),
        (7, 512, 32),  # values sum over as many channels as anywhere, and in the next one the gradient by images
        (7, 32, 512),
        pytest.param(8, 128, 128, marks=pytest.mark.campaign),
        pytest.param(4, 256, 256, marks=pytest.mark.campaign),
        pytest.param(7, 512, 512, marks=pytest.mark.campaign),
    ],
)
def test_winograd_loses_less_than_3e_5_in_float32_at_the_networks_widths(side, width, features):
    rng, window = np.random.default_rng(0), ConvParams((1, 1), ((1, 1), (1, 1)))
    x, kernel, g = (
        rng.normal(size=shape).astype(np.float32)
        for shape in ((4, side, side, width), (3, 3, width, features), (4, side, side, features))
    )
    exact = by_numpy(x, kernel, *window[:2], g.astype(np.float64))
    found = jax.jit(lambda *arrays: by_form("winograd", *arrays, window))(x, kernel, g)
    for name, expected in zip(NAMES, exact, strict=True):
        assert np.abs(found[name] - expected).max() <= 3e-5 * np.abs(expected).max(), name


@pytest.mark.parametrize(
    ("size", "step"), [((15, 15), 4), ((8, 8), 4), ((4, 4), 4), ((3, 7), 4), ((1, 1), 2), ((2, 5), 2), ((6, 6), 2)]
)
def test_tiles_are_those_with_the_fewest_products(size, step):
    assert len(tiling_for(size).result) == step


@pytest.mark.parametrize(
    ("image", "kernel", "window", "expected"),
    [
        ((32, 15, 15, 256), (1, 1, 256, 64), ConvParams((1, 1), ((0, 0), (0, 0))), CONV1X1_GEMM),
        ((32, 2, 2, 512), (3, 3, 512, 512), ConvParams((1, 1), ((1, 1), (1, 1))), PER_OFFSET_GEMM),
        ((2, 1, 1, 64), (3, 3, 64, 64), ConvParams((1, 1), ((1, 1), (1, 1))), PER_OFFSET_GEMM),
        ((2, 4, 4, 256), (3, 3, 256, 256), ConvParams((1, 1), ((1, 1), (1, 1))), IM2COL),
        ((2, 4, 4, 8), (15, 15, 8, 8), ConvParams((1, 1), ((7, 7), (7, 7))), NATIVE),
        ((32, 15, 15, 64), (3, 3, 64, 64), ConvParams((1, 1), ((1, 1), (1, 1))), WINOGRAD),
        ((1, 15, 15, 64), (3, 3, 64, 64), ConvParams((1, 1), ((1, 1), (1, 1))), ("native", "native", "im2col")),
        ((32, 15, 15, 8), (3, 3, 8, 8), ConvParams((1, 1), ((1, 1), (1, 1))), ("native", "native", "rows")),
        ((32, 15, 15, 16), (3, 3, 16, 8), ConvParams((1, 1), ((1, 1), (1, 1))), ("native", "native", "im2col")),
        ((32, 64, 64, 3), (7, 7, 3, 64), ConvParams((2, 2), ((3, 3), (3, 3))), ("native", "native", "rows")),
        ((32, 112, 112, 64), (3, 3, 64, 64), ConvParams((2, 2), ((1, 1), (1, 1))), NATIVE),
        ((32, 15, 15, 64), (3, 3, 64, 64), ConvParams((1, 1), ((3, 0), (1, 1))), ("native", "native", "im2col")),
    ],
)
def test_the_rule_of_forms(image, kernel, window, expected):
    assert choose(image, kernel, window) == expected


@pytest.mark.parametrize(
    ("images", "size", "width", "expected"),
    [
        (32, 15, 64, WINOGRAD),
        (32, 8, 128, WINOGRAD),
        (32, 4, 256, PER_OFFSET_GEMM),  # 65,536 numbers in each of the nine places, for 512 results
        (128, 4, 256, WINOGRAD),
        (2, 4, 256, IM2COL),
        (32, 2, 512, PER_OFFSET_GEMM),
    ],
)
def test_in_inference_a_large_kernel_is_not_transformed_for_few_results(images, size, width, expected):
    window = ConvParams((1, 1), ((1, 1), (1, 1)))
    assert choose_for_inference((images, size, size, width), (3, 3, width, width), window) == expected


@pytest.mark.parametrize(
    ("image", "kernel", "expected"),
    [
        ((1, 14, 14, 256), (3, 3, 256, 256), "im2col"),  # 196 results
        ((1, 7, 7, 512), (3, 3, 512, 512), "im2col"),
        ((1, 30, 30, 16), (3, 3, 16, 16), "native"),  # 900
        ((2, 10, 10, 8), (9, 9, 8, 8), "native"),  # a kernel of too many places
        ((1, 2, 2, 512), (3, 3, 512, 512), "per_offset_gemm"),
        ((1, 14, 14, 256), (1, 1, 256, 64), "conv1x1_gemm"),
    ],
)
def test_in_inference_few_results_are_a_product_that_reads_the_kernel_once(image, kernel, expected):
    pads = ((kernel[0] // 2, kernel[0] // 2),) * 2
    assert choose_for_inference(image, kernel, ConvParams((1, 1), pads)).forward == expected


def test_half_precision_leaves_winograd_out():
    case = (32, 15, 15, 64), (3, 3, 64, 64), ConvParams((1, 1), ((1, 1), (1, 1)))
    assert choose(*case, bits=16) == ("native", "native", "im2col")


LAYER_OPTIONS = [
    {},
    {"feature_group_count": 2},
    {"kernel_dilation": 2},
    {"input_dilation": 2, "padding": [(1, 1), (0, 2)]},
    {"padding": [(-1, -1), (0, -2)]},
    {"padding": "CIRCULAR"},
    {"padding": "REFLECT", "strides": 2},
    {"padding": 1, "precision": "highest"},
]


def test_the_layer_is_nn_conv_in_all_but_speed():
    x = np.random.default_rng(0).normal(size=(2, 6, 5, 4)).astype(np.float32)
    rng = np.random.default_rng(1)
    pairs, weights = [], []
    for options in LAYER_OPTIONS:
        ours, theirs = Conv(8, (3, 3), **options), nn.Conv(8, (3, 3), **options)
        shapes = jax.eval_shape(theirs.init, jax.random.key(1), x)
        assert jax.eval_shape(ours.init, jax.random.key(1), x) == shapes, options
        weights.append(jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) / 4, shapes))
        pairs.append((ours, theirs))

    @jax.jit  # one program for all options
    def both(weights, x):
        return [[layer.apply(v, x) for layer in pair] for v, pair in zip(weights, pairs, strict=True)]

    for options, (mine, theirs) in zip(LAYER_OPTIONS, both(weights, x), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5, err_msg=str(options))
    # Its initial parameters are the same numbers.
    starts = [jax.jit(layer.init)(jax.random.key(1), x) for layer in pairs[0]]
    jax.tree.map(np.testing.assert_array_equal, *starts)


# Shapes of images and kernel, padding, and the other options.
FUNCTION_CASES = [
    ((2, 4, 6, 5), (3, 4, 3, 3), "SAME", {}),  # channels first, as where nothing is said
    ((2, 6, 5, 4), (8, 3, 3, 4), "SAME", {"dimension_numbers": ("NHWC", "OHWI", "NHWC")}),
    ((2, 6, 5, 4), (3, 3, 4, 8), "SAME_LOWER", {"dimension_numbers": LAYOUT}),
    ((2, 6, 5, 4), (3, 3, 4, 8), ((-1, 0), (2, -2)), {"dimension_numbers": LAYOUT}),
    ((0, 6, 5, 4), (1, 1, 4, 8), "SAME", {"dimension_numbers": LAYOUT}),
    ((4, 6, 5, 4), (3, 3, 4, 8), "SAME", {"dimension_numbers": LAYOUT, "batch_group_count": 2}),
]


def test_the_function_is_xlas_for_whatever_it_is_asked():
    rng = np.random.default_rng(0)
    arrays = []
    for images, kernel, _, _ in FUNCTION_CASES:
        arrays.append((rng.normal(size=images).astype(np.float32), rng.normal(size=kernel).astype(np.float32)))

    @jax.jit  # one program for all cases
    def both(arrays):
        results = []
        for pair, (_, _, padding, options) in zip(arrays, FUNCTION_CASES, strict=True):
            mine = conv_general_dilated(*pair, (1, 1), padding, **options)
            results.append((mine, lax.conv_general_dilated(*pair, (1, 1), padding, **options)))
        return results

    for case, (result, expected) in zip(FUNCTION_CASES, both(arrays), strict=True):
        assert (result.shape, result.dtype) == (expected.shape, expected.dtype), case
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5, err_msg=str(case))


CROPPED_CASES = [
    ((3, 3), ((-1, 1), (0, -2))),  # XLA's on CPU reads the next image, and what lies behind the last
    ((3, 2), ((-3, 2), (-1, 1))),
    ((2, 2), ((3, 0), (1, 1))),  # and in the gradient of this one
    ((1, 1), ((2, 0), (1, 3))),
    ((3, 3), ((-7, 9), (2, 2))),  # nothing of the image is left
    ((3, 3), ((-2, -1), (-1, -2))),
]


@pytest.mark.parametrize("options", [{}, {"rhs_dilation": (2, 1)}, {"feature_group_count": 2}])
def test_cropped_and_widely_padded_axes_are_those_of_images_padded_first(options):
    rng = np.random.default_rng(0)
    dilation, groups = options.get("rhs_dilation", (1, 1)), options.get("feature_group_count", 1)
    x = rng.normal(size=(3, 6, 7, 4)).astype(np.float32)
    arrays, expected = [], []
    for size, padding in CROPPED_CASES:
        kernel = rng.normal(size=(*size, 4 // groups, 8)).astype(np.float32)
        shape = by_numpy(x, kernel, (1, 1), padding, None, dilation, groups).shape
        g = rng.normal(size=shape).astype(np.float32)
        arrays.append((kernel, g))
        expected.append(by_numpy(x, kernel, (1, 1), padding, g.astype(np.float64), dilation, groups))

    @jax.jit  # one program for all cases
    def by_ours(x, arrays):
        results = []
        for (kernel, g), (_, padding) in zip(arrays, CROPPED_CASES, strict=True):

            def convolve(x, kernel, padding=padding):
                return conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=LAYOUT, **options)

            values, pull = jax.vjp(convolve, x, kernel)
            results.append((values, *pull(g)))
        return results

    for case, found, right in zip(CROPPED_CASES, by_ours(x, arrays), expected, strict=True):
        assert_close(found[:1], right[:1], NAMES[:1], rtol=1e-5, atol=1e-5, case=case)
        assert_close(found[1:], right[1:], NAMES[1:], rtol=1e-5, atol=1e-4, case=case)


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
    ((1, 15, 13, 24), (3, 3, 24, 8), (2, 2), ((1, 1), (1, 1)), ("native", "native", "im2col")),
    ((3, 30, 13, 32), (3, 3, 32, 40), (1, 1), ((2, 0), (0, 1)), WINOGRAD),
    ((2, 2, 2, 40), (3, 3, 40, 30), (1, 1), "SAME", PER_OFFSET_GEMM),
    ((2, 5, 4, 40), (3, 3, 40, 30), (1, 1), "SAME", IM2COL),
    ((2, 14, 9, 40), (1, 1, 40, 30), (2, 3), "VALID", CONV1X1_GEMM),
]


@pytest.mark.parametrize(("images", "kernel", "strides", "padding", "expected"), LARGE_CASES)
def test_each_choice_matches_numpy_in_float64(images, kernel, strides, padding, expected):
    """Values, gradients, second derivatives and the gradients of each image, of the sum of the values' sines."""
    pads = lax.padtype_to_pads(images[1:3], kernel[:2], strides, padding) if isinstance(padding, str) else padding
    assert choose(images, kernel, ConvParams(strides, tuple(pads)), bits=64) == expected
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=images), rng.normal(size=kernel)
    twice_differentiated = (images, kernel, strides, padding, expected) in LARGE_CASES[2:]

    @jax.jit  # one program for all of them
    def by_ours(x, weights):
        def loss(weights, x):
            values = conv_general_dilated(x, weights, strides, padding, dimension_numbers=LAYOUT)
            return jnp.sin(values).sum(), values

        def steepness(weights):
            by_weights, by_images, values = first(weights)
            return (by_weights**2).sum(), (values, by_images, by_weights)

        def first(weights):
            (by_weights, by_images), values = jax.grad(loss, argnums=(0, 1), has_aux=True)(weights, x)
            return by_weights, by_images, values

        if not twice_differentiated:
            return steepness(weights)[1]
        twice, once = jax.grad(steepness, has_aux=True)(weights)
        each = jax.vmap(jax.grad(loss, has_aux=True), in_axes=(None, 0))(weights, x[:, None])[0]
        return *once, twice, each

    with jax.enable_x64(True):
        found = by_ours(x, weights)
    values = by_numpy(x, weights, strides, padding)
    once = by_numpy(x, weights, strides, padding, np.cos(values))
    assert_close(found[:3], once, NAMES, rtol=1e-9, atol=1e-9)
    if twice_differentiated:
        along = by_numpy(x, once[2], strides, padding)  # how values change with the kernel along its gradient
        twice = 2 * by_numpy(x, weights, strides, padding, -np.sin(values) * along)[2]
        each = [by_numpy(x[n : n + 1], weights, strides, padding, np.cos(values[n : n + 1]))[2] for n in range(len(x))]
        assert_close(found[3:], (twice, each), ("second derivatives", "of each image"), rtol=1e-9, atol=1e-7)


def test_half_precision_loses_a_percent_at_most_in_every_form():
    rng = np.random.default_rng(0)
    inputs, windows = {}, {}
    for form in sorted(KERNEL_GRADIENT.keys() - {"winograd"}):  # which is not taken for it
        size = 1 if form == "conv1x1_gemm" else 3
        windows[form] = ConvParams((1, 1), ((size // 2, size // 2),) * 2)
        shapes = ((3, 2, 2, 40), (size, size, 40, 30), (3, 2, 2, 30))
        inputs[form] = [jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in shapes]

    @jax.jit  # one program for all forms
    def all_forms(inputs):
        return {form: by_form(form, *arrays, windows[form]) for form, arrays in inputs.items()}

    assert len(inputs) == 5
    for form, found in all_forms(inputs).items():
        exact = [np.asarray(array, np.float64) for array in inputs[form]]
        expected = dict(zip(NAMES, by_numpy(*exact[:2], *windows[form][:2], exact[2]), strict=True))
        for name, mine in found.items():
            assert mine.dtype == jnp.bfloat16, (form, name)
            right = expected[name]
            error = np.abs(np.asarray(mine, np.float64) - right).max()
            assert error <= 1e-2 * np.abs(right).max(), (form, name)


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
