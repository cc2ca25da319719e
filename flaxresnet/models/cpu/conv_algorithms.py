"""Algorithms for two-dimensional convolution that are fast on CPUs.

Shapes: images x (batch, h, w, channels), kernel (kh, kw, channels, features), output and its gradient g
(batch, h', w', features). `tests/models/test_conv.py` compares each algorithm with a NumPy reference in float64 and the
reference with XLA's convolution. `benchmarks/conv_lowering.py` measures the speed of the algorithms, and
`conv_heuristics.py` chooses between them. Winograd's algorithm is in `winograd.py`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

LAYOUT = ("NHWC", "HWIO", "NHWC")
MAX_SUM_ROWS = 16  # up to this number of rows, `_multiply_by_sums` is faster than XLA's matrix product


class ConvParams(NamedTuple):
    """Parameters of a convolution.

    Attributes:
      strides: vertical and horizontal stride, in pixels.
      pads: zero padding (top, bottom) and (left, right), in pixels.
      precision: precision of the products, as in `lax.conv_general_dilated`.
    """

    strides: tuple[int, int]
    pads: tuple[tuple[int, int], tuple[int, int]]
    precision: lax.PrecisionLike = None


def output_size(image: Sequence[int], kernel: Sequence[int], params: ConvParams) -> tuple[int, int]:
    """Returns (h', w') from the shapes of images and kernel."""
    height, width = (
        (side + sum(pad) - size) // step + 1
        for side, size, step, pad in zip(image[1:3], kernel[:2], params.strides, params.pads, strict=True)
    )
    return height, width


Forward = Callable[[jax.Array, jax.Array, ConvParams], jax.Array]  # (x, kernel, params) → output
Gradient = Callable[
    [jax.Array, jax.Array, jax.Array, ConvParams], jax.Array
]  # (x, kernel, g, params) → gradient with respect to x or kernel


def native(x: jax.Array, kernel: jax.Array, params: ConvParams) -> jax.Array:
    """Computes the convolution with XLA's own operation."""
    return lax.conv_general_dilated(
        x, kernel, params.strides, params.pads, dimension_numbers=LAYOUT, precision=params.precision
    )


def conv1x1_gemm(x: jax.Array, kernel: jax.Array, params: ConvParams) -> jax.Array:
    """Computes a 1×1 convolution without padding as one product: (batch·h'·w', channels) × (channels, features)."""
    return _gemm(pixel_rows(x, kernel.shape, params), kernel[0, 0], params)


def pixel_rows(x: jax.Array, kernel: Sequence[int], params: ConvParams) -> jax.Array:
    """Returns the pixels that a 1×1 kernel multiplies: (batch, h', w', channels)."""
    return x[:, :: params.strides[0], :: params.strides[1]]


def im2col(x: jax.Array, kernel: jax.Array, params: ConvParams) -> jax.Array:
    """Computes a convolution as one matrix product, with one row for each window of the images (im2col)."""
    return _gemm(patch_rows(x, kernel.shape, params), kernel.reshape(-1, kernel.shape[3]), params)


def patch_rows(x: jax.Array, kernel: Sequence[int], params: ConvParams) -> jax.Array:
    """Returns every window as one row, for a kernel of the given shape: (batch, h', w', kh · kw · channels)."""
    height, width = output_size(x.shape, kernel, params)
    x = jnp.pad(x, ((0, 0), *params.pads, (0, 0)))
    down, right = params.strides
    windows = [
        x[:, i : i + down * (height - 1) + 1 : down, j : j + right * (width - 1) + 1 : right]
        for i, j in product(range(kernel[0]), range(kernel[1]))
    ]
    return jnp.concatenate(windows, axis=-1)


def _gemm(rows: jax.Array, matrix: jax.Array, params: ConvParams) -> jax.Array:
    """Multiplies (batch, h', w', k) by (k, features)."""
    out = jnp.dot(rows.reshape(-1, rows.shape[-1]), matrix, precision=params.precision)
    return out.reshape(*rows.shape[:-1], -1)


# Maps each algorithm that is one matrix product to the function that returns the rows of its left factor.
ROWS: dict[str, Callable[[jax.Array, Sequence[int], ConvParams], jax.Array]] = {
    "conv1x1_gemm": pixel_rows,
    "im2col": patch_rows,
}


def ohwi_gemm(algorithm: str, x: jax.Array, kernel: jax.Array, params: ConvParams) -> jax.Array:
    """Applies an algorithm of `ROWS` with a kernel (features, kh, kw, channels).

    The product reads a kernel in this layout in the order of memory.
    """
    features, *sizes = kernel.shape
    rows = ROWS[algorithm](x, (*sizes, features), params)
    matrix = kernel.reshape(features, -1)
    if is_at_most(math.prod(rows.shape[:-1]), MAX_SUM_ROWS):
        return _multiply_by_sums(rows, matrix)
    return _gemm(rows, matrix.T, params)


def is_at_most(count: Any, limit: int) -> bool:
    """Returns whether count ≤ limit; False for a symbolic count, as in a program exported for any batch size."""
    return isinstance(count, int) and count <= limit


def _multiply_by_sums(rows: jax.Array, matrix: jax.Array) -> jax.Array:
    """Multiplies rows (batch, h', w', k) by the transpose of a matrix (features, k) without a matrix product.

    XLA's matrix product reads the matrix again for every one or two rows. For sums of elementwise products, XLA reads
    the matrix once. The sums are slow for a single row but not for two, so this function adds a row of zeros to a
    single row.
    """
    dtype = jnp.promote_types(rows.dtype, jnp.float32)  # accumulate half precision in float32, as `jnp.dot` does
    flat = rows.reshape(-1, 1, rows.shape[-1])
    flat = jnp.pad(flat, ((0, 1), (0, 0), (0, 0))) if len(flat) == 1 else flat
    # `flat * matrix` takes 1.5 times as long.
    out = (matrix.astype(dtype) * flat.astype(dtype)).sum(axis=-1)[: math.prod(rows.shape[:-1])]
    return out.astype(rows.dtype).reshape(*rows.shape[:-1], -1)


class KernelOffset(NamedTuple):
    """An offset in the kernel, with the pixels that it multiplies and the outputs to which it contributes.

    Attributes:
      position: row and column in the kernel.
      outputs: slices of the output's rows and columns.
      pixels: slices of the image's rows and columns, with one pixel for each of the outputs.
    """

    position: tuple[int, int]
    outputs: tuple[slice, slice]
    pixels: tuple[slice, slice]


def valid_offsets(image: Sequence[int], kernel: Sequence[int], params: ConvParams) -> Iterator[KernelOffset]:
    """Yields the kernel offsets that multiply at least one pixel. All others multiply only padding."""
    size = output_size(image, kernel, params)
    rows = list(_offsets_along(0, image, kernel, params, size))
    columns = list(_offsets_along(1, image, kernel, params, size))
    for (i, down, y), (j, right, x) in product(rows, columns):
        yield KernelOffset((i, j), (down, right), (y, x))


def _offsets_along(
    axis: int, image: Sequence[int], kernel: Sequence[int], params: ConvParams, size: tuple[int, int]
) -> Iterator[tuple[int, slice, slice]]:
    """Yields (index, slice of outputs, slice of pixels) for the valid offsets along one spatial axis."""
    step = params.strides[axis]
    for index in range(kernel[axis]):
        shift = index - params.pads[axis][0]  # index of the pixel that the first output reads
        first = max(0, -(shift // step))
        end = min(size[axis], (image[1 + axis] - 1 - shift) // step + 1)
        if first < end:
            yield index, slice(first, end), slice(first * step + shift, (end - 1) * step + shift + 1, step)


def crop_kernel_to_support(
    image: Sequence[int], kernel: Sequence[int], params: ConvParams
) -> tuple[slice, slice, ConvParams]:
    """Computes how to crop a kernel to the offsets that multiply pixels.

    Returns:
      Slices of the kernel's rows and columns to keep (all of them if no offset multiplies a pixel), and the parameters
      of the convolution with the cropped kernel.
    """
    positions = [offset.position for offset in valid_offsets(image, kernel, params)]
    positions = positions or [(0, 0), (kernel[0] - 1, kernel[1] - 1)]
    down, right = (slice(min(along), max(along) + 1) for along in zip(*positions, strict=True))

    def cropped(rows: slice, size: int, pads: tuple[int, int]) -> tuple[int, int]:
        return pads[0] - rows.start, pads[1] - (size - rows.stop)

    pads = cropped(down, kernel[0], params.pads[0]), cropped(right, kernel[1], params.pads[1])
    return down, right, params._replace(pads=pads)


def valid_fraction(image: Sequence[int], kernel: Sequence[int], params: ConvParams) -> float:
    """Returns the fraction of the convolution's products that multiply pixels instead of padding."""
    valid = 0
    for _, (down, right), _ in valid_offsets(image, kernel, params):
        valid += (down.stop - down.start) * (right.stop - right.start)
    return valid / (math.prod(output_size(image, kernel, params)) * kernel[0] * kernel[1])


def per_offset_gemm(x: jax.Array, kernel: jax.Array, params: ConvParams) -> jax.Array:
    """Computes a convolution as one matrix product for each kernel offset, without multiplying padding."""
    height, width = output_size(x.shape, kernel.shape, params)
    # Accumulate half precision in float32, as a matrix product does.
    output = jnp.zeros((x.shape[0], height, width, kernel.shape[3]), jnp.promote_types(x.dtype, jnp.float32))
    for position, (down, right), pixels in valid_offsets(x.shape, kernel.shape, params):
        contribution = _gemm(x[:, *pixels], kernel[position], params)
        pads = (down.start, height - down.stop), (right.start, width - right.stop)
        output += jnp.pad(contribution, ((0, 0), *pads, (0, 0)))
    return output.astype(x.dtype)


def per_offset_gemm_input_grad(x: jax.Array, kernel: jax.Array, g: jax.Array, params: ConvParams) -> jax.Array:
    """Computes the input gradient of `per_offset_gemm`; slices the kernel again instead of storing the slices."""
    return vjp_input(per_offset_gemm)(x, block_cse(kernel), g, params)


def per_offset_gemm_kernel_grad(x: jax.Array, kernel: jax.Array, g: jax.Array, params: ConvParams) -> jax.Array:
    """Computes the kernel gradient as one matrix product for each offset; 0 at offsets that multiply only padding."""
    gradient = jnp.zeros(kernel.shape, kernel.dtype)
    for position, outputs, pixels in valid_offsets(x.shape, kernel.shape, params):
        columns = x[:, *pixels].reshape(-1, x.shape[-1]).T
        rows = g[:, *outputs].reshape(-1, g.shape[-1])
        gradient = gradient.at[position].set(jnp.dot(columns, rows, precision=params.precision))
    return gradient


def row_gemm_kernel_grad(x: jax.Array, kernel: jax.Array, g: jax.Array, params: ConvParams) -> jax.Array:
    """Computes the kernel gradient as one matrix product for each kernel row.

    With few channels, this algorithm copies fewer values than `im2col_kernel_grad`.
    """
    height, width = g.shape[1:3]
    down, right = params.strides
    x = jnp.pad(x, ((0, 0), *params.pads, (0, 0)))
    columns = [x[:, :, j : j + right * (width - 1) + 1 : right] for j in range(kernel.shape[1])]
    x = jnp.concatenate(columns, axis=-1)  # (batch, h + padding, w', kw·channels)
    g = g.reshape(-1, g.shape[-1])
    rows = [x[:, i : i + down * (height - 1) + 1 : down].reshape(-1, x.shape[-1]) for i in range(kernel.shape[0])]
    return jnp.stack([jnp.dot(row.T, g, precision=params.precision) for row in rows]).reshape(kernel.shape)


def im2col_kernel_grad(x: jax.Array, kernel: jax.Array, g: jax.Array, params: ConvParams) -> jax.Array:
    """Computes the kernel gradient of `im2col`; builds the rows again instead of storing them."""
    return vjp_kernel(im2col)(block_cse(x), kernel, g, params)


def block_cse(x: jax.Array) -> jax.Array:
    """Returns a float array equal to x that blocks XLA's common-subexpression elimination (CSE).

    With CSE, XLA would keep values that the forward pass computes from x until the backward pass. Values computed from
    the returned array are computed again instead.
    """
    info = jnp.finfo(x.dtype)
    return lax.reduce_precision(x, info.nexp, info.nmant)


def vjp_input(forward: Forward) -> Gradient:
    """Returns the function that computes an algorithm's input gradient by automatic differentiation."""
    return lambda x, kernel, g, params: jax.vjp(lambda x: forward(x, kernel, params), x)[1](g)[0]


def vjp_kernel(forward: Forward) -> Gradient:
    """Returns the function that computes an algorithm's kernel gradient by automatic differentiation."""
    return lambda x, kernel, g, params: jax.vjp(lambda kernel: forward(x, kernel, params), kernel)[1](g)[0]
