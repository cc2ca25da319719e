"""Winograd's form of a 3×3 convolution in steps of 1: 2.25 times fewer products, for transforms that are additions.

A tile of 2×2 results takes 16 products of a transformed 4×4 tile of values and the transformed kernel, instead of 36:
minimal filtering F(2×2, 3×3), Lavin & Gray 2016, arXiv:1509.09308, section 4.1. Shapes are those of `conv_forms.py`.
"""

import jax
import jax.numpy as jnp

from flaxresnet.models.conv_forms import Window, anew, result_size

Matrix = tuple[tuple[float, ...], ...]
OF_VALUES: Matrix = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
OF_KERNEL: Matrix = ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1))
OF_RESULT: Matrix = ((1, 1, 1, 0), (0, 1, -1, -1))


def winograd(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """F(2×2, 3×3), for 3×3 kernels in steps of 1."""
    return _filtered("npc,ncf->npf", x, kernel, window)


def winograd_input_gradient(x: jax.Array, kernel: jax.Array, g: jax.Array, window: Window) -> jax.Array:
    """The input's gradient is the convolution of g with the kernel turned round, channels and features exchanged."""
    rows, columns = ((2 - low, 2 - high) for low, high in window.pads)
    return _filtered("npf,ncf->npc", g, kernel[::-1, ::-1], window._replace(pads=(rows, columns)))


def _filtered(products: str, x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """The convolution by 16 matrix products, which sum over the kernel's channels or over its features."""
    height, width = result_size(x.shape, kernel.shape, window)
    values = _along(_tiles(x, kernel, window), OF_VALUES)  # [4][4] of (batch, tiles, tiles, channels)
    kernels = _along([[kernel[i, j] for j in range(3)] for i in range(3)], OF_KERNEL)  # [4][4] of (channels, features)
    multiplied = _products(products, _stack(values), jnp.stack(_flat(kernels)), window)
    tiles = (x.shape[0], -(-height // 2), -(-width // 2), multiplied.shape[-1])
    results = _along(_square(multiplied.reshape(16, *tiles)), OF_RESULT)  # [2][2]
    rows = jnp.stack([jnp.stack(row, axis=3) for row in results], axis=2)  # (batch, tiles, 2, tiles, 2, features)
    return rows.reshape(x.shape[0], 2 * tiles[1], 2 * tiles[2], tiles[3])[:, :height, :width]


def winograd_kernel_gradient(x: jax.Array, kernel: jax.Array, g: jax.Array, window: Window) -> jax.Array:
    """The transposes of `winograd`'s transforms, in reverse order."""
    height, width = g.shape[1:3]
    values = _along(_tiles(anew(x), kernel, window), OF_VALUES)
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
