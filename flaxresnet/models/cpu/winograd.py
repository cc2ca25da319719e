"""Winograd's form of a 3×3 convolution in steps of 1: up to 4 times fewer products, for transforms that are additions.

A tile of m×m results takes (m + 2)² products of transformed values and a transformed kernel, instead of 9m²: minimal
filtering F(m×m, 3×3), Lavin & Gray 2016, arXiv:1509.09308, section 4. Shapes are those of `conv_algorithms.py`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flaxresnet.models.cpu.conv_algorithms import ConvParams, block_cse, result_size

Matrix = tuple[tuple[float, ...], ...]


class WinogradTransform(NamedTuple):
    """The transforms along one dimension, of m + 2 values, 3 places of the kernel, and to m results."""

    values: Matrix
    kernel: Matrix
    result: Matrix


BY_TWO = WinogradTransform(
    values=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    kernel=((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    result=((1, 1, 1, 0), (0, 1, -1, -1)),
)
BY_FOUR = WinogradTransform(
    values=(
        (4, 0, -5, 0, 1, 0),
        (0, -4, -4, 1, 1, 0),
        (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    ),
    kernel=(
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
    result=((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
)


def tiling_for(size: Sequence[int]) -> WinogradTransform:
    """The tiles that take the fewest products for a result of this size (h', w'); if as many, the more exact."""

    def products(tiling: WinogradTransform) -> int:
        down, right = (len(tiling.values) * count for count in _counts(size, tiling))
        return down * right

    return min(BY_TWO, BY_FOUR, key=products)


def winograd(x: jax.Array, kernel: jax.Array, window: ConvParams) -> jax.Array:
    """F(2×2, 3×3) or F(4×4, 3×3), for 3×3 kernels in steps of 1."""
    return _filtered("npc,ncf->npf", x, kernel, window)


def winograd_input_gradient(x: jax.Array, kernel: jax.Array, g: jax.Array, window: ConvParams) -> jax.Array:
    """The input's gradient is the convolution of g with the kernel turned round, channels and features exchanged."""
    rows, columns = ((2 - low, 2 - high) for low, high in window.pads)
    return _filtered("npf,ncf->npc", g, kernel[::-1, ::-1], window._replace(pads=(rows, columns)))


def _filtered(products: str, x: jax.Array, kernel: jax.Array, window: ConvParams) -> jax.Array:
    """The convolution by (m + 2)² matrix products, which sum over the kernel's channels or over its features."""
    height, width = result_size(x.shape, kernel.shape, window)
    tiling = tiling_for((height, width))
    step, places = len(tiling.result), len(tiling.values)
    across = _stack(tiling.kernel, [kernel[:, j] for j in range(3)])  # (m + 2, 3, channels, features)
    kernels = _stack(tiling.kernel, [across[:, i] for i in range(3)]).reshape(-1, *kernel.shape[2:])
    multiplied = _products(products, _values(x, kernel, window, tiling), kernels, window)
    tiles = (x.shape[0], *_counts((height, width), tiling))
    grid = multiplied.reshape(places, places, *tiles, -1)
    down = _stack(tiling.result, list(grid), axis=3)  # (m + 2, batch, tiles, m, tiles, features)
    both = _stack(tiling.result, list(down), axis=4)  # (batch, tiles, m, tiles, m, features)
    return both.reshape(tiles[0], step * tiles[1], step * tiles[2], -1)[:, :height, :width]


def winograd_kernel_gradient(x: jax.Array, kernel: jax.Array, g: jax.Array, window: ConvParams) -> jax.Array:
    """The transposes of `winograd`'s transforms, in reverse order."""
    tiling = tiling_for(g.shape[1:3])
    step, places = len(tiling.result), len(tiling.values)
    pads = [(0, -side % step) for side in g.shape[1:3]]
    g = jnp.pad(g, ((0, 0), *pads, (0, 0)))
    across = _stack(_transposed(tiling.result), [g[:, :, j::step] for j in range(step)])
    slopes = _stack(_transposed(tiling.result), [across[:, :, i::step] for i in range(step)])
    slopes = slopes.reshape(places**2, -1, g.shape[-1])
    products = _products("npc,npf->ncf", _values(block_cse(x), kernel, window, tiling), slopes, window)
    grid = products.reshape(places, places, *kernel.shape[2:])
    down = _stack(_transposed(tiling.kernel), list(grid))  # (3, m + 2, channels, features)
    return _stack(_transposed(tiling.kernel), [down[:, j] for j in range(places)], axis=1)


def _values(x: jax.Array, kernel: jax.Array, window: ConvParams, tiling: WinogradTransform) -> jax.Array:
    """Every tile transformed: ((m + 2)², batch·tiles, channels).

    First along rows of the whole image and then along columns, which adds less than tile by tile. Between the two XLA
    writes what it has, for it does not compute across the concatenation that stacking is.
    """
    step, counts = len(tiling.result), _counts(result_size(x.shape, kernel.shape, window), tiling)
    pads = [
        (low, step * count + 2 - side - low)
        for count, side, (low, _) in zip(counts, x.shape[1:3], window.pads, strict=True)
    ]
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))

    def places(x: jax.Array, axis: int, count: int) -> list[jax.Array]:
        end = step * (count - 1) + 1
        return [lax.slice_in_dim(x, i, i + end, step, axis) for i in range(len(tiling.values))]

    across = _stack(tiling.values, places(x, 2, counts[1]))  # (m + 2, batch, h, tiles, channels)
    both = _stack(tiling.values, places(across, 2, counts[0]))  # (m + 2, m + 2, batch, tiles, tiles, channels)
    return both.reshape(len(tiling.values) ** 2, -1, x.shape[-1])


def _counts(size: Sequence[int], tiling: WinogradTransform) -> list[int]:
    """Tiles down and across that cover a result of this size."""
    return [-(-side // len(tiling.result)) for side in size]


def _stack(matrix: Matrix, arrays: list[jax.Array], axis: int = 0) -> jax.Array:
    """The matrix times a column of arrays, along a new axis; without the products by 0, 1 and -1."""

    def times(factor: float, array: jax.Array) -> jax.Array:
        return array if factor == 1 else -array if factor == -1 else factor * array

    def row_times(row: tuple[float, ...]) -> jax.Array:
        terms = [times(factor, array) for factor, array in zip(row, arrays, strict=True) if factor]
        return sum(terms[1:], terms[0])

    return jnp.stack([row_times(row) for row in matrix], axis=axis)


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))


def _products(subscripts: str, a: jax.Array, b: jax.Array, window: ConvParams) -> jax.Array:
    return jnp.einsum(subscripts, a, b, precision=window.precision)
