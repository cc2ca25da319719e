"""Forms of a two-dimensional convolution: the same sums, arranged so that a CPU does them well.

Shapes: images x (batch, h, w, channels), kernel (kh, kw, channels, features), result and its gradient g
(batch, h', w', features). Each form is proved against XLA's own convolution in float64 (`tests/models/test_conv.py`),
and `benchmarks/conv_lowering.py` times them.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

LAYOUT = ("NHWC", "HWIO", "NHWC")


class Window(NamedTuple):
    """How the kernel moves over the images: steps, zeros around (low, high) and the products' precision."""

    strides: tuple[int, int]
    pads: tuple[tuple[int, int], tuple[int, int]]
    precision: lax.PrecisionLike = None


def result_size(image: Sequence[int], kernel: Sequence[int], window: Window) -> tuple[int, int]:
    """h' and w', from the shapes of images and kernel."""
    height, width = (
        (side + sum(pad) - size) // step + 1
        for side, size, step, pad in zip(image[1:3], kernel[:2], window.strides, window.pads, strict=True)
    )
    return height, width


Forward = Callable[[jax.Array, jax.Array, Window], jax.Array]  # (x, kernel, window) → result
Gradient = Callable[[jax.Array, jax.Array, jax.Array, Window], jax.Array]  # (x, kernel, g, window) → like x or kernel


def native(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """XLA's own convolution."""
    return lax.conv_general_dilated(
        x, kernel, window.strides, window.pads, dimension_numbers=LAYOUT, precision=window.precision
    )


def pointwise(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """A 1×1 convolution without padding as one matrix product: (batch·h·w, channels) × (channels, features)."""
    return _product(pixel_rows(x, kernel.shape, window), kernel[0, 0], window)


def pixel_rows(x: jax.Array, kernel: Sequence[int], window: Window) -> jax.Array:
    """What a 1×1 convolution weights: (batch, h', w', channels)."""
    return x[:, :: window.strides[0], :: window.strides[1]]


def patches(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Every window laid out as one row, then one matrix product (im2col)."""
    return _product(patch_rows(x, kernel.shape, window), kernel.reshape(-1, kernel.shape[3]), window)


def patch_rows(x: jax.Array, kernel: Sequence[int], window: Window) -> jax.Array:
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


def _product(rows: jax.Array, matrix: jax.Array, window: Window) -> jax.Array:
    """(batch, h', w', k) × (k, features)."""
    out = jnp.dot(rows.reshape(-1, rows.shape[-1]), matrix, precision=window.precision)
    return out.reshape(*rows.shape[:-1], -1)


# The forms that are one matrix product: what they make rows of.
ROWS: dict[str, Callable[[jax.Array, Sequence[int], Window], jax.Array]] = {
    "pointwise": pixel_rows,
    "patches": patch_rows,
}


def features_first(form: str, x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """A form of `ROWS` with a kernel (features, kh, kw, channels), which is read in the order in which it lies."""
    features, *sizes = kernel.shape
    return _product(ROWS[form](x, (*sizes, features), window), kernel.reshape(features, -1).T, window)


# Winograd's minimal filtering (Lavin & Gray 2016, arXiv:1509.09308, section 4.1): a tile of 2×2 results of a 3×3 kernel
# takes 16 products of a transformed 4×4 tile of values and the transformed kernel, instead of 36.
Matrix = tuple[tuple[float, ...], ...]
OF_VALUES: Matrix = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
OF_KERNEL: Matrix = ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1))
OF_RESULT: Matrix = ((1, 1, 1, 0), (0, 1, -1, -1))


def winograd(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """F(2×2, 3×3), for 3×3 kernels in steps of 1: 2.25 times fewer products."""
    height, width = result_size(x.shape, kernel.shape, window)
    values = _along(_tiles(x, kernel, window), OF_VALUES)  # [4][4] of (batch, tiles, tiles, channels)
    kernels = _along([[kernel[i, j] for j in range(3)] for i in range(3)], OF_KERNEL)  # [4][4] of (channels, features)
    products = _products("npc,ncf->npf", _stack(values), jnp.stack(_flat(kernels)), window)
    tiles = (x.shape[0], -(-height // 2), -(-width // 2), -1)
    results = _along(_square(products.reshape(16, *tiles)), OF_RESULT)  # [2][2]
    rows = jnp.stack([jnp.stack(row, axis=3) for row in results], axis=2)  # (batch, tiles, 2, tiles, 2, features)
    return rows.reshape(x.shape[0], 2 * tiles[1], 2 * tiles[2], -1)[:, :height, :width]


def winograd_input_gradient(x: jax.Array, kernel: jax.Array, g: jax.Array, window: Window) -> jax.Array:
    """The input's gradient is the convolution of g with the kernel turned round."""
    rows, columns = ((2 - low, 2 - high) for low, high in window.pads)
    return winograd(g, kernel[::-1, ::-1].swapaxes(2, 3), window._replace(pads=(rows, columns)))


def winograd_kernel_gradient(x: jax.Array, kernel: jax.Array, g: jax.Array, window: Window) -> jax.Array:
    """The transposes of `winograd`'s transforms, in reverse order."""
    height, width = g.shape[1:3]
    values = _along(_tiles(_anew(x), kernel, window), OF_VALUES)
    g = jnp.pad(g, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    slopes = _along([[g[:, i::2, j::2] for j in range(2)] for i in range(2)], _transposed(OF_RESULT))
    products = _products("npc,npf->ncf", _stack(values), _stack(slopes), window)
    kernels = _along(_square(products), _transposed(OF_KERNEL))
    return jnp.stack([jnp.stack(row) for row in kernels])


def _tiles(x: jax.Array, kernel: jax.Array, window: Window) -> list[list[jax.Array]]:
    """[i][j]: place (i, j) of every 4×4 tile, (batch, tiles, tiles, channels)."""
    count = [-(-side // 2) for side in result_size(x.shape, kernel.shape, window)]
    pads = [
        (low, 2 * tiles + 2 - side - low)
        for tiles, side, (low, _) in zip(count, x.shape[1:3], window.pads, strict=True)
    ]
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    down, right = (2 * tiles - 1 for tiles in count)
    return [[x[:, i : i + down : 2, j : j + right : 2] for j in range(4)] for i in range(4)]


def _along(grid: list[list[jax.Array]], matrix: Matrix) -> list[list[jax.Array]]:
    """matrix · grid · matrixᵀ for a square grid of arrays."""
    columns = [_combine(matrix, [row[j] for row in grid]) for j in range(len(grid))]  # [j][a]
    return [_combine(matrix, [column[a] for column in columns]) for a in range(len(matrix))]


def _combine(matrix: Matrix, arrays: list[jax.Array]) -> list[jax.Array]:
    """The matrix times a column of arrays, without the products by 0 and 1."""

    def row_times(row: tuple[float, ...]) -> jax.Array:
        terms = [array if factor == 1 else factor * array for factor, array in zip(row, arrays, strict=True) if factor]
        return sum(terms[1:], terms[0])

    return [row_times(row) for row in matrix]


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))


def _flat(grid: list[list[jax.Array]]) -> list[jax.Array]:
    return [array for row in grid for array in row]


def _stack(grid: list[list[jax.Array]]) -> jax.Array:
    """(16, batch·tiles·tiles, channels)."""
    return jnp.stack([array.reshape(-1, array.shape[-1]) for array in _flat(grid)])


def _square(stacked: jax.Array) -> list[list[jax.Array]]:
    return [[stacked[4 * i + j] for j in range(4)] for i in range(4)]


def _products(subscripts: str, a: jax.Array, b: jax.Array, window: Window) -> jax.Array:
    return jnp.einsum(subscripts, a, b, precision=window.precision)


def rows_kernel_gradient(x: jax.Array, kernel: jax.Array, g: jax.Array, window: Window) -> jax.Array:
    """One matrix product for each row of the kernel: fewer copies than patches where there are few channels."""
    (height, width), (down, right) = g.shape[1:3], window.strides
    x = jnp.pad(x, ((0, 0), *window.pads, (0, 0)))
    columns = [x[:, :, j : j + right * (width - 1) + 1 : right] for j in range(kernel.shape[1])]
    x, g = jnp.concatenate(columns, axis=-1), g.reshape(-1, g.shape[-1])  # (batch, h + pad, w', kw·channels)
    rows = [x[:, i : i + down * (height - 1) + 1 : down].reshape(-1, x.shape[-1]) for i in range(kernel.shape[0])]
    return jnp.stack([jnp.dot(row.T, g, precision=window.precision) for row in rows]).reshape(kernel.shape)


def patches_kernel_gradient(x: jax.Array, kernel: jax.Array, g: jax.Array, window: Window) -> jax.Array:
    """The derivative of `patches`."""
    return by_kernel(patches)(_anew(x), kernel, g, window)


def _anew(x: jax.Array) -> jax.Array:
    """x, but not to XLA, which would keep from the forward pass on whatever is computed from the very same array."""
    kept = jnp.finfo(x.dtype)
    return lax.reduce_precision(x, kept.nexp, kept.nmant)


def by_input(form: Forward) -> Gradient:
    """The input's gradient as the derivative of a form."""
    return lambda x, kernel, g, window: jax.vjp(lambda x: form(x, kernel, window), x)[1](g)[0]


def by_kernel(form: Forward) -> Gradient:
    """The kernel's gradient as the derivative of a form."""
    return lambda x, kernel, g, window: jax.vjp(lambda kernel: form(x, kernel, window), kernel)[1](g)[0]


FORWARD: dict[str, Forward] = {"native": native, "pointwise": pointwise, "patches": patches, "winograd": winograd}
INPUT_GRADIENT: dict[str, Gradient] = {name: by_input(form) for name, form in FORWARD.items()} | {
    "winograd": winograd_input_gradient
}
KERNEL_GRADIENT: dict[str, Gradient] = {name: by_kernel(form) for name, form in FORWARD.items()} | {
    "patches": patches_kernel_gradient,
    "winograd": winograd_kernel_gradient,
    "rows": rows_kernel_gradient,
}
