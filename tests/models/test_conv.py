"""Tests of the convolution algorithms against NumPy in float64 and against XLA: outputs and gradients."""

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
from flaxresnet.models.cpu.winograd import choose_transform

LAYOUT = ("NHWC", "HWIO", "NHWC")
SAME_3X3 = ConvParams((1, 1), ((1, 1), (1, 1)))  # 3×3 kernel, stride 1


def crop_or_pad(x, pads):
    """Pads height and width of the images with zeros; negative padding crops them."""
    for axis, (low, high) in enumerate(pads, start=1):
        widths = [(0, 0)] * 4
        widths[axis] = (max(low, 0), max(high, 0))
        padded = np.pad(x, widths)
        x = np.take(padded, range(max(-low, 0), padded.shape[axis] - max(-high, 0)), axis)
    return x


def numpy_conv(x, kernel, strides, pads, g=None, dilation=(1, 1), groups=1):
    """Computes a convolution by its definition in float64, one kernel offset at a time.

    Returns:
      The output; with its gradient g, the output and the gradients of x and kernel.
    """
    x = np.asarray(x, np.float64)
    kernel = np.asarray(kernel, np.float64)
    if isinstance(pads, str):
        pads = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, pads)
    padded = crop_or_pad(x, pads)
    size = []
    for axis in (0, 1):
        reach = (kernel.shape[axis] - 1) * dilation[axis]
        size.append(max((padded.shape[1 + axis] - 1 - reach) // strides[axis] + 1, 0))
    output = np.zeros((len(x), *size, kernel.shape[3]))
    grad_padded = np.zeros(padded.shape)
    grad_kernel = np.zeros(kernel.shape)
    channels = kernel.shape[2]
    features = kernel.shape[3] // groups
    for i, j in np.ndindex(kernel.shape[:2]):
        rows = slice(i * dilation[0], i * dilation[0] + strides[0] * (size[0] - 1) + 1, strides[0])
        columns = slice(j * dilation[1], j * dilation[1] + strides[1] * (size[1] - 1) + 1, strides[1])
        for group in range(groups):
            inputs = slice(None), rows, columns, slice(group * channels, (group + 1) * channels)
            outputs = slice(group * features, (group + 1) * features)
            matrix = kernel[i, j, :, outputs]
            output[..., outputs] += padded[inputs] @ matrix
            if g is not None:
                grad_padded[inputs] += g[..., outputs] @ matrix.T
                products = np.tensordot(padded[inputs], g[..., outputs], axes=((0, 1, 2), (0, 1, 2)))
                grad_kernel[i, j, :, outputs] = products
    if g is None:
        return output
    # Undo the padding. Cropped pixels have no gradient.
    return output, crop_or_pad(grad_padded, [(-low, -high) for low, high in pads]), grad_kernel


def output_and_gradients(convolve, x, kernel, g):
    output, pull = jax.vjp(convolve, x, kernel)
    return output, *pull(g)


def assert_close(results, expected, names, rtol=0.0, atol=0.0, case=""):
    for name, result, reference in zip(names, results, expected, strict=True):
        np.testing.assert_allclose(result, reference, rtol=rtol, atol=atol, err_msg=f"{name} {case}")


NAMES = ("output", "input gradient", "kernel gradient")


def test_numpy_conv_matches_xla():
    rng = np.random.default_rng(0)
    options = {"rhs_dilation": (2, 1), "feature_group_count": 2, "dimension_numbers": LAYOUT}
    pads = ((1, 2), (0, 1))
    with jax.enable_x64(True):
        x, kernel, g = (rng.normal(size=shape) for shape in ((2, 7, 6, 4), (3, 2, 2, 6), (2, 3, 6, 6)))

        @jax.jit
        def xla_conv(x, kernel, g):
            return output_and_gradients(lambda *a: lax.conv_general_dilated(*a, (2, 1), pads, **options), x, kernel, g)

        results = numpy_conv(x, kernel, (2, 1), pads, g, dilation=(2, 1), groups=2)
        assert_close(results, xla_conv(x, kernel, g), NAMES, atol=1e-12)


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
def test_conv_matches_numpy(case):
    shape, kernel_size, features, strides, padding = case
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape)
    kernel = rng.normal(size=(*kernel_size, shape[-1], features))
    g = rng.normal(size=numpy_conv(x, kernel, strides, padding).shape)

    @jax.jit  # each of the 14 examples is a program to compile
    def our_conv(x, kernel, g):
        return output_and_gradients(
            lambda *a: conv_general_dilated(*a, strides, padding, dimension_numbers=LAYOUT), x, kernel, g
        )

    with jax.enable_x64(True):
        results = our_conv(x, kernel, g)
    assert_close(results, numpy_conv(x, kernel, strides, padding, g), NAMES, rtol=1e-10, atol=1e-10)


# Shape of the images, size of the kernel, and parameters: rectangular, odd, tiny, and with one-sided padding.
ALGORITHM_CASES = {
    "winograd": [
        ((2, 1, 1, 3), (3, 3), SAME_3X3),
        ((1, 2, 5, 2), (3, 3), SAME_3X3),
        ((3, 7, 4, 2), (3, 3), ConvParams((1, 1), ((0, 2), (1, 0)))),
        ((2, 6, 3, 1), (3, 3), ConvParams((1, 1), ((0, 0), (0, 0)))),
        ((1, 9, 12, 2), (3, 3), ConvParams((1, 1), ((2, 2), (2, 1)))),
    ],
    "per_offset_gemm": [
        ((2, 1, 1, 3), (3, 3), SAME_3X3),
        ((2, 2, 3, 3), (3, 3), SAME_3X3),
        ((2, 3, 2, 2), (2, 4), ConvParams((2, 1), ((1, 0), (3, 2)))),
        ((1, 4, 3, 2), (5, 5), ConvParams((2, 3), ((2, 2), (2, 1)))),
        ((1, 2, 1, 2), (5, 2), ConvParams((1, 1), ((4, 4), (2, 0)))),
    ],
    "row_gemm": [
        ((2, 1, 1, 3), (3, 3), SAME_3X3),
        ((2, 13, 10, 3), (7, 7), ConvParams((2, 2), ((3, 3), (3, 3)))),
        ((1, 5, 8, 2), (2, 3), ConvParams((3, 1), ((0, 1), (2, 0)))),
    ],
}


def apply_algorithm(algorithm, x, kernel, g, params):
    """Returns the output and the gradients of an algorithm, as far as it has them, by name."""
    results = {}
    if algorithm in FORWARD:
        results["output"] = FORWARD[algorithm](x, kernel, params)
    if algorithm in INPUT_GRADIENT:
        results["input gradient"] = INPUT_GRADIENT[algorithm](x, kernel, g, params)
    if algorithm in KERNEL_GRADIENT:
        results["kernel gradient"] = KERNEL_GRADIENT[algorithm](x, kernel, g, params)
    return results


@pytest.mark.parametrize("algorithm", ALGORITHM_CASES)
def test_conv_algorithm_matches_numpy(algorithm):
    rng = np.random.default_rng(0)
    cases = ALGORITHM_CASES[algorithm]
    arrays = []
    expected = []
    for shape, size, params in cases:
        x = rng.normal(size=shape)
        kernel = rng.normal(size=(*size, shape[-1], 4))
        g = rng.normal(size=numpy_conv(x, kernel, *params[:2]).shape)
        arrays.append((x, kernel, g))
        expected.append(dict(zip(NAMES, numpy_conv(x, kernel, *params[:2], g), strict=True)))

    @jax.jit  # one program for all cases
    def all_cases(arrays):
        return [apply_algorithm(algorithm, *inputs, case[2]) for inputs, case in zip(arrays, cases, strict=True)]

    with jax.enable_x64(True):
        all_results = all_cases(arrays)
    for case, results, references in zip(cases, all_results, expected, strict=True):
        assert set(results) == (set(NAMES) if algorithm in FORWARD else {"kernel gradient"})
        for name, result in results.items():
            np.testing.assert_allclose(result, references[name], atol=1e-12, err_msg=f"{name} {case}")


@pytest.mark.parametrize(
    ("side", "width", "features"),
    [
        (15, 64, 64),
        (7, 512, 32),  # the output sums over the most channels; in the next case, the input gradient does
        (7, 32, 512),
        pytest.param(8, 128, 128, marks=pytest.mark.campaign),
        pytest.param(4, 256, 256, marks=pytest.mark.campaign),
        pytest.param(7, 512, 512, marks=pytest.mark.campaign),
    ],
)
def test_winograd_error_in_float32(side, width, features):
    rng = np.random.default_rng(0)
    x, kernel, g = (
        rng.normal(size=shape).astype(np.float32)
        for shape in ((4, side, side, width), (3, 3, width, features), (4, side, side, features))
    )
    exact = numpy_conv(x, kernel, *SAME_3X3[:2], g.astype(np.float64))
    results = jax.jit(lambda *arrays: apply_algorithm("winograd", *arrays, SAME_3X3))(x, kernel, g)
    for name, expected in zip(NAMES, exact, strict=True):
        assert np.abs(results[name] - expected).max() <= 3e-5 * np.abs(expected).max(), name


@pytest.mark.parametrize(
    ("size", "tile"), [((15, 15), 4), ((8, 8), 4), ((4, 4), 4), ((3, 7), 4), ((1, 1), 2), ((2, 5), 2), ((6, 6), 2)]
)
def test_choose_transform_minimizes_products(size, tile):
    assert choose_transform(size).tile == tile


@pytest.mark.parametrize(
    ("image", "kernel", "params", "expected"),
    [
        ((32, 15, 15, 256), (1, 1, 256, 64), ConvParams((1, 1), ((0, 0), (0, 0))), CONV1X1_GEMM),
        ((32, 2, 2, 512), (3, 3, 512, 512), SAME_3X3, PER_OFFSET_GEMM),
        ((2, 1, 1, 64), (3, 3, 64, 64), SAME_3X3, PER_OFFSET_GEMM),
        ((2, 4, 4, 256), (3, 3, 256, 256), SAME_3X3, IM2COL),
        ((2, 4, 4, 8), (15, 15, 8, 8), ConvParams((1, 1), ((7, 7), (7, 7))), NATIVE),
        ((32, 15, 15, 64), (3, 3, 64, 64), SAME_3X3, WINOGRAD),
        ((1, 15, 15, 64), (3, 3, 64, 64), SAME_3X3, ("native", "native", "im2col")),
        ((32, 15, 15, 8), (3, 3, 8, 8), SAME_3X3, ("native", "native", "row_gemm")),
        ((32, 15, 15, 16), (3, 3, 16, 8), SAME_3X3, ("native", "native", "im2col")),
        ((32, 64, 64, 3), (7, 7, 3, 64), ConvParams((2, 2), ((3, 3), (3, 3))), ("native", "native", "row_gemm")),
        ((32, 112, 112, 64), (3, 3, 64, 64), ConvParams((2, 2), ((1, 1), (1, 1))), NATIVE),
        ((32, 15, 15, 64), (3, 3, 64, 64), ConvParams((1, 1), ((3, 0), (1, 1))), ("native", "native", "im2col")),
    ],
)
def test_choose_for_training(image, kernel, params, expected):
    assert choose(image, kernel, params) == expected


@pytest.mark.parametrize(
    ("images", "size", "width", "expected"),
    [
        (32, 15, 64, WINOGRAD),
        (32, 8, 128, WINOGRAD),
        (32, 4, 256, PER_OFFSET_GEMM),  # 65,536 numbers at each of the nine offsets for 512 outputs
        (128, 4, 256, WINOGRAD),
        (2, 4, 256, IM2COL),
        (32, 2, 512, PER_OFFSET_GEMM),
    ],
)
def test_choose_for_inference_with_large_kernels(images, size, width, expected):
    assert choose_for_inference((images, size, size, width), (3, 3, width, width), SAME_3X3) == expected


@pytest.mark.parametrize(
    ("image", "kernel", "expected"),
    [
        ((1, 14, 14, 256), (3, 3, 256, 256), "im2col"),  # 196 outputs
        ((1, 7, 7, 512), (3, 3, 512, 512), "im2col"),
        ((1, 30, 30, 16), (3, 3, 16, 16), "native"),  # 900
        ((2, 10, 10, 8), (9, 9, 8, 8), "native"),  # the kernel's area is too large
        ((1, 2, 2, 512), (3, 3, 512, 512), "per_offset_gemm"),
        ((1, 14, 14, 256), (1, 1, 256, 64), "conv1x1_gemm"),
    ],
)
def test_choose_for_inference_with_few_outputs(image, kernel, expected):
    pads = ((kernel[0] // 2, kernel[0] // 2),) * 2
    assert choose_for_inference(image, kernel, ConvParams((1, 1), pads)).forward == expected


def test_choose_excludes_winograd_in_bfloat16():
    case = (32, 15, 15, 64), (3, 3, 64, 64), SAME_3X3
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


def test_conv_layer_matches_flax():
    x = np.random.default_rng(0).normal(size=(2, 6, 5, 4)).astype(np.float32)
    rng = np.random.default_rng(1)
    pairs = []
    weights = []
    for options in LAYER_OPTIONS:
        ours = Conv(8, (3, 3), **options)
        reference = nn.Conv(8, (3, 3), **options)
        shapes = jax.eval_shape(reference.init, jax.random.key(1), x)
        assert jax.eval_shape(ours.init, jax.random.key(1), x) == shapes, options
        weights.append(jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) / 4, shapes))
        pairs.append((ours, reference))

    @jax.jit  # one program for all options
    def both(weights, x):
        return [[layer.apply(v, x) for layer in pair] for v, pair in zip(weights, pairs, strict=True)]

    for options, (result, expected) in zip(LAYER_OPTIONS, both(weights, x), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5, err_msg=str(options))
    initial_variables = [jax.jit(layer.init)(jax.random.key(1), x) for layer in pairs[0]]
    jax.tree.map(np.testing.assert_array_equal, *initial_variables)


# Shapes of images and kernel, padding, and other options.
FUNCTION_CASES = [
    ((2, 4, 6, 5), (3, 4, 3, 3), "SAME", {}),  # XLA's default layout, channels first
    ((2, 6, 5, 4), (8, 3, 3, 4), "SAME", {"dimension_numbers": ("NHWC", "OHWI", "NHWC")}),
    ((2, 6, 5, 4), (3, 3, 4, 8), "SAME_LOWER", {"dimension_numbers": LAYOUT}),
    ((2, 6, 5, 4), (3, 3, 4, 8), ((-1, 0), (2, -2)), {"dimension_numbers": LAYOUT}),
    ((0, 6, 5, 4), (1, 1, 4, 8), "SAME", {"dimension_numbers": LAYOUT}),
    ((4, 6, 5, 4), (3, 3, 4, 8), "SAME", {"dimension_numbers": LAYOUT, "batch_group_count": 2}),
]


def test_conv_function_matches_xla():
    rng = np.random.default_rng(0)
    arrays = []
    for images, kernel, _, _ in FUNCTION_CASES:
        arrays.append((rng.normal(size=images).astype(np.float32), rng.normal(size=kernel).astype(np.float32)))

    @jax.jit  # one program for all cases
    def both(arrays):
        results = []
        for pair, (_, _, padding, options) in zip(arrays, FUNCTION_CASES, strict=True):
            result = conv_general_dilated(*pair, (1, 1), padding, **options)
            results.append((result, lax.conv_general_dilated(*pair, (1, 1), padding, **options)))
        return results

    for case, (result, expected) in zip(FUNCTION_CASES, both(arrays), strict=True):
        assert (result.shape, result.dtype) == (expected.shape, expected.dtype), case
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5, err_msg=str(case))


CROPPED_CASES = [
    ((3, 3), ((-1, 1), (0, -2))),  # XLA on CPU reads the next image, and beyond the last one
    ((3, 2), ((-3, 2), (-1, 1))),
    ((2, 2), ((3, 0), (1, 1))),  # XLA's gradient is wrong here
    ((1, 1), ((2, 0), (1, 3))),
    ((3, 3), ((-7, 9), (2, 2))),  # no pixel is left
    ((3, 3), ((-2, -1), (-1, -2))),
]


@pytest.mark.parametrize("options", [{}, {"rhs_dilation": (2, 1)}, {"feature_group_count": 2}])
def test_conv_with_negative_or_wide_padding(options):
    rng = np.random.default_rng(0)
    dilation = options.get("rhs_dilation", (1, 1))
    groups = options.get("feature_group_count", 1)
    x = rng.normal(size=(3, 6, 7, 4)).astype(np.float32)
    arrays = []
    expected = []
    for size, padding in CROPPED_CASES:
        kernel = rng.normal(size=(*size, 4 // groups, 8)).astype(np.float32)
        shape = numpy_conv(x, kernel, (1, 1), padding, None, dilation, groups).shape
        g = rng.normal(size=shape).astype(np.float32)
        arrays.append((kernel, g))
        expected.append(numpy_conv(x, kernel, (1, 1), padding, g.astype(np.float64), dilation, groups))

    @jax.jit  # one program for all cases
    def all_cases(x, arrays):
        results = []
        for (kernel, g), (_, padding) in zip(arrays, CROPPED_CASES, strict=True):

            def convolve(x, kernel, padding=padding):
                return conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=LAYOUT, **options)

            results.append(output_and_gradients(convolve, x, kernel, g))
        return results

    for case, results, references in zip(CROPPED_CASES, all_cases(x, arrays), expected, strict=True):
        assert_close(results[:1], references[:1], NAMES[:1], rtol=1e-5, atol=1e-5, case=case)
        assert_close(results[1:], references[1:], NAMES[1:], rtol=1e-5, atol=1e-4, case=case)


@pytest.mark.parametrize("precision", ["highest", ("highest", "highest"), ["highest", "highest"]])
@pytest.mark.parametrize("size", [1, 3])  # conv1x1_gemm and per_offset_gemm on a CPU
def test_conv_precision_reaches_products(size, precision):
    x = jnp.ones((2, 2, 2, 40))
    kernel = jnp.ones((size, size, 40, 30))
    options = {"dimension_numbers": LAYOUT, "precision": precision}
    text = jax.jit(lambda x, k: conv_general_dilated(x, k, (1, 1), "SAME", **options)).lower(x, kernel).as_text()
    assert text.count("HIGHEST") >= 2  # once for each operand
    assert "DEFAULT" not in text


def test_conv_rejects_unknown_options():
    with pytest.raises(TypeError, match="nonsense"):
        conv_general_dilated(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2)), (1, 1), "SAME", nonsense=3)


def test_conv_honors_preferred_element_type():
    x = jnp.ones((2, 2, 2, 4), jnp.bfloat16)
    kernel = jnp.full((3, 3, 4, 8), 1 / 3, jnp.bfloat16)
    options = {"dimension_numbers": LAYOUT, "preferred_element_type": jnp.float32}
    result = conv_general_dilated(x, kernel, (1, 1), "SAME", **options)
    assert result.dtype == jnp.float32
    np.testing.assert_array_equal(result, lax.conv_general_dilated(x, kernel, (1, 1), "SAME", **options))


def test_conv_of_integers_matches_xla():
    x = jnp.arange(2 * 15 * 15 * 2).reshape(2, 15, 15, 2)
    kernel = jnp.ones((3, 3, 2, 2), int)
    expected = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT)
    np.testing.assert_array_equal(conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT), expected)


# A case for each choice that the small images above do not cover, and the chosen algorithms.
LARGE_CASES = [
    ((1, 224, 224, 3), (7, 7, 3, 4), (2, 2), ((3, 3), (3, 3)), ("native", "native", "row_gemm")),
    ((1, 57, 61, 16), (3, 3, 16, 8), (1, 1), "SAME", NATIVE),  # more than MAX_PATCH_ELEMENTS
    ((1, 15, 13, 24), (3, 3, 24, 8), (2, 2), ((1, 1), (1, 1)), ("native", "native", "im2col")),
    ((3, 30, 13, 32), (3, 3, 32, 40), (1, 1), ((2, 0), (0, 1)), WINOGRAD),
    ((2, 2, 2, 40), (3, 3, 40, 30), (1, 1), "SAME", PER_OFFSET_GEMM),
    ((2, 5, 4, 40), (3, 3, 40, 30), (1, 1), "SAME", IM2COL),
    ((2, 14, 9, 40), (1, 1, 40, 30), (2, 3), "VALID", CONV1X1_GEMM),
]


@pytest.mark.parametrize(("images", "kernel", "strides", "padding", "expected"), LARGE_CASES)
def test_chosen_algorithms_match_numpy(images, kernel, strides, padding, expected):
    """Compares outputs, and of the sum of their sines the gradients, second derivatives and per-image gradients."""
    pads = lax.padtype_to_pads(images[1:3], kernel[:2], strides, padding) if isinstance(padding, str) else padding
    assert choose(images, kernel, ConvParams(strides, tuple(pads)), bits=64) == expected
    rng = np.random.default_rng(0)
    x = rng.normal(size=images)
    weights = rng.normal(size=kernel)
    twice_differentiated = (images, kernel, strides, padding, expected) in LARGE_CASES[2:]

    @jax.jit  # one program for all derivatives
    def derivatives(x, weights):
        def loss(weights, x):
            output = conv_general_dilated(x, weights, strides, padding, dimension_numbers=LAYOUT)
            return jnp.sin(output).sum(), output

        def squared_norm(weights):
            (grad_weights, grad_x), output = jax.grad(loss, argnums=(0, 1), has_aux=True)(weights, x)
            return (grad_weights**2).sum(), (output, grad_x, grad_weights)

        if not twice_differentiated:
            return squared_norm(weights)[1]
        second, first = jax.grad(squared_norm, has_aux=True)(weights)
        per_image, _ = jax.vmap(jax.grad(loss, has_aux=True), in_axes=(None, 0))(weights, x[:, None])
        return *first, second, per_image

    with jax.enable_x64(True):
        results = derivatives(x, weights)
    output = numpy_conv(x, weights, strides, padding)
    first = numpy_conv(x, weights, strides, padding, np.cos(output))
    assert_close(results[:3], first, NAMES, rtol=1e-9, atol=1e-9)
    if twice_differentiated:
        direction = numpy_conv(x, first[2], strides, padding)  # change of the output along the kernel's gradient
        second = 2 * numpy_conv(x, weights, strides, padding, -np.sin(output) * direction)[2]
        per_image = []
        for image, cosine in zip(x, np.cos(output), strict=True):
            per_image.append(numpy_conv(image[None], weights, strides, padding, cosine[None])[2])
        names = ("second derivatives", "per-image gradients")
        assert_close(results[3:], (second, per_image), names, rtol=1e-9, atol=1e-7)


def test_conv_algorithm_error_in_bfloat16():
    rng = np.random.default_rng(0)
    inputs = {}
    windows = {}
    for algorithm in sorted(KERNEL_GRADIENT.keys() - {"winograd"}):  # `choose` excludes Winograd in bfloat16
        size = 1 if algorithm == "conv1x1_gemm" else 3
        windows[algorithm] = ConvParams((1, 1), ((size // 2, size // 2),) * 2)
        shapes = ((3, 2, 2, 40), (size, size, 40, 30), (3, 2, 2, 30))
        inputs[algorithm] = [jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in shapes]

    @jax.jit  # one program for all algorithms
    def all_algorithms(inputs):
        return {name: apply_algorithm(name, *arrays, windows[name]) for name, arrays in inputs.items()}

    assert len(inputs) == 5
    for algorithm, results in all_algorithms(inputs).items():
        x, kernel, g = (np.asarray(array, np.float64) for array in inputs[algorithm])
        expected = dict(zip(NAMES, numpy_conv(x, kernel, *windows[algorithm][:2], g), strict=True))
        for name, result in results.items():
            assert result.dtype == jnp.bfloat16, (algorithm, name)
            error = np.abs(np.asarray(result, np.float64) - expected[name]).max()
            assert error <= 1e-2 * np.abs(expected[name]).max(), (algorithm, name)


@pytest.mark.parametrize("layer", [False, True])
def test_conv1x1_lowering_by_platform(layer):
    x = jnp.zeros((2, 8, 8, 4))
    kernel = jnp.zeros((1, 1, 4, 4))

    def convolve(x, kernel):
        if layer:  # depends on Flax calling the field `conv_general_dilated`
            return Conv(4, (1, 1), use_bias=False).apply({"params": {"kernel": kernel}}, x)
        return conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT)

    traced = jax.jit(convolve).trace(x, kernel)
    assert "convolution" not in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "convolution" in traced.lower(lowering_platforms=("cuda",)).as_text()
