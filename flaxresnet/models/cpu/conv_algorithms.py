"""Forms of a two-dimensional convolution: the same sums, arranged so that a CPU does them well.

Shapes: images x (batch, h, w, channels), kernel (kh, kw, channels, features), result and its gradient g
(batch, h', w', features). Each form is proved against XLA's own convolution in float64 (`tests/models/test_conv.py`),
`benchmarks/conv_lowering.py` times them, and `conv_heuristics.py` chooses. Winograd's has a file of its own.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

LAYOUT = ("NHWC", "HWIO", "NHWC")
FEW_ROWS = 16  # of a product in inference, up to which sums are ahead of XLA's matrix product


class ConvParams(NamedTuple):
    """How the kernel moves over the images: steps, zeros around (low, high) and the products' precision."""

    strides: tuple[int, int]
    pads: tuple[tuple[int, int], tuple[int, int]]
    precision: lax.PrecisionLike = None


def result_size(image: Sequence[int], kernel: Sequence[int], window: ConvParams) -> tuple[int, int]:
    """h' and w', from the shapes of images and kernel."""
    height, width = (
        (side + sum(pad) - size) // step + 1
        for side, size, step, pad in zip(image[1:3], kernel[:2], window.strides, window.pads, strict=True)
    )
    return height, width


Forward = Callable[[jax.Array, jax.Array, ConvParams], jax.Array]  # (x, kernel, window) → result
Gradient = Callable[
    [jax.Array, jax.Array, jax.Array, ConvParams], jax.Array
]  # (x, kernel, g, window) → like x or kernel


def native(x: jax.Array, kernel: jax.Array, window: ConvParams) -> jax.Array:
    """XLA's own convolution."""
    return lax.conv_general_dilated(
        x, kernel, window.strides, window.pads, dimension_numbers=LAYOUT, precision=window.precision
    )


def conv1x1_gemm(x: jax.Array, kernel: jax.Array, window: ConvParams) -> jax.Array:
    """A 1×1 convolution without padding as one matrix product: (batch·h·w, channels) × (channels, features)."""
    return _product(pixel_rows(x, kernel.shape, window), kernel[0, 0], window)


def pixel_rows(x: jax.Array, kernel: Sequence[int], window: ConvParams) -> jax.Array:
    """What a 1×1 convolution weights: (batch, h', w', channels)."""
    return x[:, :: window.strides[0], :: window.strides[1]]


def im2col(x: jax.Array, kernel: jax.Array, window: ConvParams) -> jax.Array:
    """Every window laid out as one row, then one matrix product (im2col)."""
    return _product(patch_rows(x, kernel.shape, window), kernel.reshape(-1, kernel.shape[3]), window)


def patch_rows(x: jax.Array, kernel: Sequence[int], window: ConvParams) -> jax.Array:
    """Every window as one row, for a kernel of that shape: (batch, h', w', kh · kw · channels)."""
    height, width = result_size(x.shape, kernel, window)
    x = jnp.pad(x, ((0, 0), *window.pads, (0, 0)))
    (down, right), (tall, wide) = window.strides, kernel[:2]
    windows = [
        x[:, i : i + down * (height - 1) + 1 : down, j : j + right * (width - 1) + 1 : right]
        for i in range(tall)
        for j in range(wide)
    ]
    return jnp.concatenate(windows, axis=-1)


def _product(rows: jax.Array, matrix: jax.Array, window: ConvParams) -> jax.Array:
    """(batch, h', w', k) × (k, features)."""
    out = jnp.dot(rows.reshape(-1, rows.shape[-1]), matrix, precision=window.precision)
    return out.reshape(*rows.shape[:-1], -1)


# The forms that are one matrix product: what they make rows of.
ROWS: dict[str, Callable[[jax.Array, Sequence[int], ConvParams], jax.Array]] = {
    "conv1x1_gemm": pixel_rows,
    "im2col": patch_rows,
}


def ohwi_gemm(form: str, x: jax.Array, kernel: jax.Array, window: ConvParams) -> jax.Array:
    """A form of `ROWS` with a kernel (features, kh, kw, channels), which is read in the order in which it lies."""
    features, *sizes = kernel.shape
    rows, matrix = ROWS[form](x, (*sizes, features), window), kernel.reshape(features, -1)
    if is_at_most(math.prod(rows.shape[:-1]), FEW_ROWS):
        return _sums(rows, matrix)
    return _product(rows, matrix.T, window)


def is_at_most(count: Any, most: int) -> bool:
    """Whether there are so many at most; of an exported program's images, whose number is a symbol, there are not."""
    return isinstance(count, int) and count <= most


def _sums(rows: jax.Array, matrix: jax.Array) -> jax.Array:
    """(batch, h', w', k) and (features, k): the product as sums, which XLA makes in one pass over the matrix.

    Its matrix product reads the matrix anew for each row, or two; of one row the sums are slow, and of two not.
    """
    exact = jnp.promote_types(rows.dtype, jnp.float32)  # half precision is added up in single, as within a product
    flat = rows.reshape(-1, 1, rows.shape[-1])
    flat = jnp.pad(flat, ((0, 1), (0, 0), (0, 0))) if len(flat) == 1 else flat
    # In this order of factors; in the other it takes half as long again.
    out = (matrix.astype(exact) * flat.astype(exact)).sum(axis=-1)[: math.prod(rows.shape[:-1])]
    return out.astype(rows.dtype).reshape(*rows.shape[:-1], -1)


class KernelOffset(NamedTuple):
    """A place in the kernel, and what it meets: the results that it adds to and the pixels that it weights."""

    place: tuple[int, int]
    results: tuple[slice, slice]
    pixels: tuple[slice, slice]


def taps_on_pixels(image: Sequence[int], kernel: Sequence[int], window: ConvParams) -> Iterator[KernelOffset]:
    """The taps that meet pixels; for the others there is padding alone."""
    rows, columns = (
        list(_taps_along(side, size, step, low, count))
        for side, size, step, (low, _), count in zip(
            image[1:3], kernel[:2], window.strides, window.pads, result_size(image, kernel, window), strict=True
        )
    )
    for i, down, y in rows:
        for j, right, x in columns:
            yield KernelOffset((i, j), (down, right), (y, x))


def _taps_along(side: int, size: int, step: int, low: int, count: int) -> Iterator[tuple[int, slice, slice]]:
    """One dimension: the tap's place, the results and the pixels."""
    for place in range(size):
        offset = place - low  # of the pixel from the result's first
        first, end = max(0, -(offset // step)), min(count, (side - 1 - offset) // step + 1)
        if first < end:
            yield place, slice(first, end), slice(first * step + offset, (end - 1) * step + offset + 1, step)


def crop_kernel_to_support(
    image: Sequence[int], kernel: Sequence[int], window: ConvParams
) -> tuple[slice, slice, ConvParams]:
    """The kernel's rows and columns that meet pixels (all, if none does), and the window of the kernel cut to them."""
    places = [tap.place for tap in taps_on_pixels(image, kernel, window)] or [(0, 0), (kernel[0] - 1, kernel[1] - 1)]
    down, right = (slice(min(along), max(along) + 1) for along in zip(*places, strict=True))

    def left(met: slice, size: int, pads: tuple[int, int]) -> tuple[int, int]:
        return pads[0] - met.start, pads[1] - (size - met.stop)

    pads = left(down, kernel[0], window.pads[0]), left(right, kernel[1], window.pads[1])
    return down, right, window._replace(pads=pads)


def valid_fraction(image: Sequence[int], kernel: Sequence[int], window: ConvParams) -> float:
    """The share of all products of kernel and pixels whose pixel is in the image, not in its padding."""
    met = sum(
        (down.stop - down.start) * (right.stop - right.start)
        for _, (down, right), _ in taps_on_pixels(image, kernel, window)
    )
    return met / (math.prod(result_size(image, kernel, window)) * kernel[0] * kernel[1])


def per_offset_gemm(x: jax.Array, kernel: jax.Array, window: ConvParams) -> jax.Array:
    """One matrix product for each place in the kernel, of the pixels that it meets, none of padding."""
    height, width = result_size(x.shape, kernel.shape, window)
    # Half precision is added up in single, as within a product.
    result = jnp.zeros((x.shape[0], height, width, kernel.shape[3]), jnp.promote_types(x.dtype, jnp.float32))
    for (i, j), (down, right), pixels in taps_on_pixels(x.shape, kernel.shape, window):
        product = _product(x[:, *pixels], kernel[i, j], window)
        sides = (down.start, height - down.stop), (right.start, width - right.stop)
        result += jnp.pad(product, ((0, 0), *sides, (0, 0)))
    return result.astype(x.dtype)


def per_offset_gemm_input_grad(x: jax.Array, kernel: jax.Array, g: jax.Array, window: ConvParams) -> jax.Array:
    """The derivative of `per_offset_gemm`, which takes the kernel apart anew."""
    return vjp_input(per_offset_gemm)(x, block_cse(kernel), g, window)


def per_offset_gemm_kernel_grad(x: jax.Array, kernel: jax.Array, g: jax.Array, window: ConvParams) -> jax.Array:
    """One matrix product for each place in the kernel; zero where it meets padding alone."""
    gradient = jnp.zeros(kernel.shape, kernel.dtype)
    for place, results, pixels in taps_on_pixels(x.shape, kernel.shape, window):
        columns, slopes = x[:, *pixels].reshape(-1, x.shape[-1]).T, g[:, *results].reshape(-1, g.shape[-1])
        gradient = gradient.at[place].set(jnp.dot(columns, slopes, precision=window.precision))
    return gradient


def row_gemm_kernel_grad(x: jax.Array, kernel: jax.Array, g: jax.Array, window: ConvParams) -> jax.Array:
    """One matrix product for each row of the kernel: fewer copies than patches where there are few channels."""
    (height, width), (down, right) = g.shape[1:3], window.strides
    x = jnp.pad(x, ((0, 0), *window.pads, (0, 0)))
    columns = [x[:, :, j : j + right * (width - 1) + 1 : right] for j in range(kernel.shape[1])]
    x, g = jnp.concatenate(columns, axis=-1), g.reshape(-1, g.shape[-1])  # (batch, h + pad, w', kw·channels)
    rows = [x[:, i : i + down * (height - 1) + 1 : down].reshape(-1, x.shape[-1]) for i in range(kernel.shape[0])]
    return jnp.stack([jnp.dot(row.T, g, precision=window.precision) for row in rows]).reshape(kernel.shape)


def im2col_kernel_grad(x: jax.Array, kernel: jax.Array, g: jax.Array, window: ConvParams) -> jax.Array:
    """The derivative of `im2col`."""
    return vjp_kernel(im2col)(block_cse(x), kernel, g, window)


def block_cse(x: jax.Array) -> jax.Array:
    """x, but not to XLA, which would keep from the forward pass on whatever is computed from the very same array."""
    kept = jnp.finfo(x.dtype)
    return lax.reduce_precision(x, kept.nexp, kept.nmant)


def vjp_input(form: Forward) -> Gradient:
    """The input's gradient as the derivative of a form."""
    return lambda x, kernel, g, window: jax.vjp(lambda x: form(x, kernel, window), x)[1](g)[0]


def vjp_kernel(form: Forward) -> Gradient:
    """The kernel's gradient as the derivative of a form."""
    return lambda x, kernel, g, window: jax.vjp(lambda kernel: form(x, kernel, window), kernel)[1](g)[0]
