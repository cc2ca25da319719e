"""Algorithms for two-dimensional convolution that are fast on CPUs.

Shapes: images x (batch, h, w, channels), kernel (kh, kw, channels, features), output and its gradient g
(batch, h', w', features). `tests/models/test_conv.py` compares each algorithm with XLA's convolution in float64,
`benchmarks/conv_lowering.py` measures their speed, and `conv_heuristics.py` chooses between them. Winograd's algorithm
is in `winograd.py`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

LAYOUT = ("NHWC", "HWIO", "NHWC")
MAX_SUM_ROWS = 16  # in inference, up to this number of rows, sums are faster than XLA's matrix product


class ConvParams(NamedTuple):
    """Strides, zero padding (low, high) in each direction, and the precision of the products."""

    strides: tuple[int, int]
    pads: tuple[tuple[int, int], tuple[int, int]]
    precision: lax.PrecisionLike = None


def output_size(image: Sequence[int], kernel: Sequence[int], window: ConvParams) -> tuple[int, int]:
    """Returns h' and w' from the shapes of images and kernel."""
    height, width = (
        (side + sum(pad) - size) // step + 1
        for side, size, step, pad in zip(image[1:3], kernel[:2], window.strides, window.pads, strict=True)
    )
    return height, width


Forward = Callable[[jax.Array, jax.Array, ConvParams], jax.Array]  # (x, kernel, window) → output
Gradient = Callable[
    [jax.Array, jax.Array, jax.Array, ConvParams], jax.Array
]  # (x, kernel, g, window) → gradient with respect to x or kernel


def native(x: jax.Array, kernel: jax.Array, window: ConvParams) -> jax.Array:
    """Computes XLA's own convolution."""
    return lax.conv_general_dilated(
        x, kernel, window.strides, window.pads, dimension_numbers=LAYOUT, precision=window.precision
    )


def conv1x1_gemm(x: jax.Array, kernel: jax.Array, window: ConvParams) -> jax.Array:
    """Computes a 1×1 convolution without padding as one product: (batch·h'·w', channels) × (channels, features)."""
    return _gemm(pixel_rows(x, kernel.shape, window), kernel[0, 0], window)


def pixel_rows(x: jax.Array, kernel: Sequence[int], window: ConvParams) -> jax.Array:
    """Returns the pixels that a 1×1 convolution reads: (batch, h', w', channels)."""
    return x[:, :: window.strides[0], :: window.strides[1]]


def im2col(x: jax.Array, kernel: jax.Array, window: ConvParams) -> jax.Array:
    """Computes a convolution as one matrix product with a row for each window (im2col)."""
    return _gemm(patch_rows(x, kernel.shape, window), kernel.reshape(-1, kernel.shape[3]), window)


def patch_rows(x: jax.Array, kernel: Sequence[int], window: ConvParams) -> jax.Array:
    """Returns every window as one row, for a kernel of the given shape: (batch, h', w', kh · kw · channels)."""
    height, width = output_size(x.shape, kernel, window)
    x = jnp.pad(x, ((0, 0), *window.pads, (0, 0)))
    down, right = window.strides
    windows = [
        x[:, i : i + down * (height - 1) + 1 : down, j : j + right * (width - 1) + 1 : right]
        for i, j in product(range(kernel[0]), range(kernel[1]))
    ]
    return jnp.concatenate(windows, axis=-1)


def _gemm(rows: jax.Array, matrix: jax.Array, window: ConvParams) -> jax.Array:
    """Multiplies (batch, h', w', k) by (k, features)."""
    out = jnp.dot(rows.reshape(-1, rows.shape[-1]), matrix, precision=window.precision)
    return out.reshape(*rows.shape[:-1], -1)


# Algorithms that are one matrix product, with the function that returns its rows.
ROWS: dict[str, Callable[[jax.Array, Sequence[int], ConvParams], jax.Array]] = {
    "conv1x1_gemm": pixel_rows,
    "im2col": patch_rows,
}


def ohwi_gemm(algorithm: str, x: jax.Array, kernel: jax.Array, window: ConvParams) -> jax.Array:
    """Applies an algorithm of `ROWS` with a kernel (features, kh, kw, channels), which it reads in memory order."""
    features, *sizes = kernel.shape
    rows = ROWS[algorithm](x, (*sizes, features), window)
    matrix = kernel.reshape(features, -1)
    if is_at_most(math.prod(rows.shape[:-1]), MAX_SUM_ROWS):
        return _multiply_by_sums(rows, matrix)
    return _gemm(rows, matrix.T, window)


def is_at_most(count: Any, limit: int) -> bool:
    """Returns whether count ≤ limit. It is False for the symbolic number of images of an exported program."""
    return isinstance(count, int) and count <= limit


def _multiply_by_sums(rows: jax.Array, matrix: jax.Array) -> jax.Array:
    """Multiplies (batch, h', w', k) by (features, k) as sums, for which XLA reads the matrix once.

    XLA's matrix product reads the matrix again for every row or two. The sums are slow for one row, but not for two.
    """
    dtype = jnp.promote_types(rows.dtype, jnp.float32)  # accumulate half precision in float32, as a product does
    flat = rows.reshape(-1, 1, rows.shape[-1])
    flat = jnp.pad(flat, ((0, 1), (0, 0), (0, 0))) if len(flat) == 1 else flat
    # The other order of the factors takes 1.5 times as long.
    out = (matrix.astype(dtype) * flat.astype(dtype)).sum(axis=-1)[: math.prod(rows.shape[:-1])]
    return out.astype(rows.dtype).reshape(*rows.shape[:-1], -1)


class KernelOffset(NamedTuple):
    """An offset in the kernel.

    Attributes:
      position: its row and column.
      outputs: rows and columns of the outputs to which it contributes.
      pixels: rows and columns of the pixels that it multiplies for them.
    """

    position: tuple[int, int]
    outputs: tuple[slice, slice]
    pixels: tuple[slice, slice]


def valid_offsets(image: Sequence[int], kernel: Sequence[int], window: ConvParams) -> Iterator[KernelOffset]:
    """Yields the kernel's offsets that multiply pixels. All others multiply only padding."""
    size = output_size(image, kernel, window)
    rows = list(_offsets_along(0, image, kernel, window, size))
    columns = list(_offsets_along(1, image, kernel, window, size))
    for (i, down, y), (j, right, x) in product(rows, columns):
        yield KernelOffset((i, j), (down, right), (y, x))


def _offsets_along(
    axis: int, image: Sequence[int], kernel: Sequence[int], window: ConvParams, size: tuple[int, int]
) -> Iterator[tuple[int, slice, slice]]:
    """Yields the valid offsets along one spatial axis: index, outputs and pixels."""
    step = window.strides[axis]
    for index in range(kernel[axis]):
        shift = index - window.pads[axis][0]  # from the first output to its pixel
        first = max(0, -(shift // step))
        end = min(size[axis], (image[1 + axis] - 1 - shift) // step + 1)
        if first < end:
            yield index, slice(first, end), slice(first * step + shift, (end - 1) * step + shift + 1, step)


def crop_kernel_to_support(
    image: Sequence[int], kernel: Sequence[int], window: ConvParams
) -> tuple[slice, slice, ConvParams]:
    """Crops a kernel to the offsets that multiply pixels.

    Returns:
      The kernel's rows and columns to keep (all, if no offset multiplies a pixel), and the parameters of the
      convolution with the cropped kernel.
    """
    positions = [offset.position for offset in valid_offsets(image, kernel, window)]
    positions = positions or [(0, 0), (kernel[0] - 1, kernel[1] - 1)]
    down, right = (slice(min(along), max(along) + 1) for along in zip(*positions, strict=True))

    def cropped(rows: slice, size: int, pads: tuple[int, int]) -> tuple[int, int]:
        return pads[0] - rows.start, pads[1] - (size - rows.stop)

    pads = cropped(down, kernel[0], window.pads[0]), cropped(right, kernel[1], window.pads[1])
    return down, right, window._replace(pads=pads)


def valid_fraction(image: Sequence[int], kernel: Sequence[int], window: ConvParams) -> float:
    """Returns the fraction of the convolution's products that multiply pixels instead of padding."""
    valid = 0
    for _, (down, right), _ in valid_offsets(image, kernel, window):
        valid += (down.stop - down.start) * (right.stop - right.start)
    return valid / (math.prod(output_size(image, kernel, window)) * kernel[0] * kernel[1])


def per_offset_gemm(x: jax.Array, kernel: jax.Array, window: ConvParams) -> jax.Array:
    """Computes a convolution as one matrix product for each kernel offset, without products of padding."""
    height, width = output_size(x.shape, kernel.shape, window)
    # Accumulate half precision in float32, as a matrix product does.
    output = jnp.zeros((x.shape[0], height, width, kernel.shape[3]), jnp.promote_types(x.dtype, jnp.float32))
    for position, (down, right), pixels in valid_offsets(x.shape, kernel.shape, window):
        contribution = _gemm(x[:, *pixels], kernel[position], window)
        pads = (down.start, height - down.stop), (right.start, width - right.stop)
        output += jnp.pad(contribution, ((0, 0), *pads, (0, 0)))
    return output.astype(x.dtype)


def per_offset_gemm_input_grad(x: jax.Array, kernel: jax.Array, g: jax.Array, window: ConvParams) -> jax.Array:
    """Computes the input gradient of `per_offset_gemm`. It slices the kernel again instead of storing the slices."""
    return vjp_input(per_offset_gemm)(x, block_cse(kernel), g, window)


def per_offset_gemm_kernel_grad(x: jax.Array, kernel: jax.Array, g: jax.Array, window: ConvParams) -> jax.Array:
    """Computes the kernel gradient as one matrix product for each offset. It is zero at offsets on padding alone."""
    gradient = jnp.zeros(kernel.shape, kernel.dtype)
    for position, outputs, pixels in valid_offsets(x.shape, kernel.shape, window):
        columns = x[:, *pixels].reshape(-1, x.shape[-1]).T
        rows = g[:, *outputs].reshape(-1, g.shape[-1])
        gradient = gradient.at[position].set(jnp.dot(columns, rows, precision=window.precision))
    return gradient


def row_gemm_kernel_grad(x: jax.Array, kernel: jax.Array, g: jax.Array, window: ConvParams) -> jax.Array:
    """Computes the kernel gradient as one matrix product for each kernel row.

    With few channels, this copies less than im2col.
    """
    height, width = g.shape[1:3]
    down, right = window.strides
    x = jnp.pad(x, ((0, 0), *window.pads, (0, 0)))
    columns = [x[:, :, j : j + right * (width - 1) + 1 : right] for j in range(kernel.shape[1])]
    x = jnp.concatenate(columns, axis=-1)  # (batch, h + padding, w', kw·channels)
    g = g.reshape(-1, g.shape[-1])
    rows = [x[:, i : i + down * (height - 1) + 1 : down].reshape(-1, x.shape[-1]) for i in range(kernel.shape[0])]
    return jnp.stack([jnp.dot(row.T, g, precision=window.precision) for row in rows]).reshape(kernel.shape)


def im2col_kernel_grad(x: jax.Array, kernel: jax.Array, g: jax.Array, window: ConvParams) -> jax.Array:
    """Computes the kernel gradient of `im2col`. It builds the rows again instead of storing them."""
    return vjp_kernel(im2col)(block_cse(x), kernel, g, window)


def block_cse(x: jax.Array) -> jax.Array:
    """Returns x as an array that XLA treats as another one, which blocks common-subexpression elimination.

    Without it, XLA would keep values computed from x in the forward pass until the backward pass.
    """
    info = jnp.finfo(x.dtype)
    return lax.reduce_precision(x, info.nexp, info.nmant)


def vjp_input(forward: Forward) -> Gradient:
    """Returns the input gradient of an algorithm by automatic differentiation."""
    return lambda x, kernel, g, window: jax.vjp(lambda x: forward(x, kernel, window), x)[1](g)[0]


def vjp_kernel(forward: Forward) -> Gradient:
    """Returns the kernel gradient of an algorithm by automatic differentiation."""
    return lambda x, kernel, g, window: jax.vjp(lambda kernel: forward(x, kernel, window), kernel)[1](g)[0]
