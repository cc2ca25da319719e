"""Winograd's algorithm for 3×3 convolutions with stride 1: up to 4 times fewer products, but more additions.

A tile of m×m outputs takes (m + 2)² products of transformed inputs with a transformed kernel, instead of 9m²: minimal
filtering F(m×m, 3×3), Lavin & Gray 2016, arXiv:1509.09308, section 4. Shapes are those of `conv_algorithms.py`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flaxresnet.models.cpu.conv_algorithms import ConvParams, block_cse, output_size

Matrix = tuple[tuple[float, ...], ...]


class WinogradTransform(NamedTuple):
    """Matrices of the transforms along one dimension.

    Attributes:
      input: Bᵀ in the paper, (m + 2, m + 2).
      kernel: G, (m + 2, 3).
      output: Aᵀ, (m, m + 2).
    """

    input: Matrix
    kernel: Matrix
    output: Matrix

    @property
    def tile(self) -> int:
        """Returns m, the number of outputs of a tile along one dimension."""
        return len(self.output)

    @property
    def points(self) -> int:
        """Returns m + 2, the number of inputs of a tile along one dimension."""
        return len(self.input)


F2X2 = WinogradTransform(
    input=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    kernel=((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    output=((1, 1, 1, 0), (0, 1, -1, -1)),
)
F4X4 = WinogradTransform(
    input=(
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
    output=((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
)


def choose_transform(size: Sequence[int]) -> WinogradTransform:
    """Returns the transform with the fewest products for an output (h', w'), or the more accurate `F2X2` in a tie."""

    def products(transform: WinogradTransform) -> int:
        rows, columns = _tile_counts(size, transform)
        return rows * columns * transform.points**2

    return min(F2X2, F4X4, key=products)


def winograd(x: jax.Array, kernel: jax.Array, params: ConvParams) -> jax.Array:
    """Computes a 3×3 convolution with stride 1 by F(2×2, 3×3) or F(4×4, 3×3)."""
    return _filter("npc,ncf->npf", x, kernel, params)


def winograd_input_grad(x: jax.Array, kernel: jax.Array, g: jax.Array, params: ConvParams) -> jax.Array:
    """Computes the input gradient: g convolved with the rotated kernel, with channels and features exchanged."""
    rows, columns = ((2 - low, 2 - high) for low, high in params.pads)
    return _filter("npf,ncf->npc", g, kernel[::-1, ::-1], params._replace(pads=(rows, columns)))


def _filter(subscripts: str, x: jax.Array, kernel: jax.Array, params: ConvParams) -> jax.Array:
    """Computes the convolution with (m + 2)² matrix products. They sum over the kernel's channels or features."""
    height, width = output_size(x.shape, kernel.shape, params)
    transform = choose_transform((height, width))
    m = transform.tile
    rows, columns = _tile_counts((height, width), transform)
    across = _apply(transform.kernel, [kernel[:, j] for j in range(3)])  # (m + 2, 3, channels, features)
    kernels = _apply(transform.kernel, [across[:, i] for i in range(3)]).reshape(-1, *kernel.shape[2:])
    products = _einsum(subscripts, _transform_input(x, kernel, params, transform), kernels, params)
    grid = products.reshape(transform.points, transform.points, x.shape[0], rows, columns, -1)
    down = _apply(transform.output, list(grid), axis=3)  # (m + 2, batch, rows, m, columns, features)
    both = _apply(transform.output, list(down), axis=4)  # (batch, rows, m, columns, m, features)
    return both.reshape(x.shape[0], m * rows, m * columns, -1)[:, :height, :width]


def winograd_kernel_grad(x: jax.Array, kernel: jax.Array, g: jax.Array, params: ConvParams) -> jax.Array:
    """Computes the kernel gradient: the transposes of `winograd`'s transforms, in reverse order."""
    transform = choose_transform(g.shape[1:3])
    m = transform.tile
    points = transform.points
    pads = [(0, -side % m) for side in g.shape[1:3]]
    g = jnp.pad(g, ((0, 0), *pads, (0, 0)))
    across = _apply(_transpose(transform.output), [g[:, :, j::m] for j in range(m)])
    gradients = _apply(_transpose(transform.output), [across[:, :, i::m] for i in range(m)])
    gradients = gradients.reshape(points**2, -1, g.shape[-1])  # ((m + 2)², batch·tiles, features)
    products = _einsum("npc,npf->ncf", _transform_input(block_cse(x), kernel, params, transform), gradients, params)
    grid = products.reshape(points, points, *kernel.shape[2:])
    down = _apply(_transpose(transform.kernel), list(grid))  # (3, m + 2, channels, features)
    return _apply(_transpose(transform.kernel), [down[:, j] for j in range(points)], axis=1)


def _transform_input(x: jax.Array, kernel: jax.Array, params: ConvParams, transform: WinogradTransform) -> jax.Array:
    """Transforms every tile: ((m + 2)², batch·tiles, channels).

    It transforms the full image along the rows and then along the columns, which takes fewer additions than a separate
    transform of each tile. XLA stores the intermediate result, because it does not fuse across the concatenation in
    `jnp.stack`.
    """
    m = transform.tile
    counts = _tile_counts(output_size(x.shape, kernel.shape, params), transform)
    pads = [
        (low, m * count + 2 - side - low)
        for count, side, (low, _) in zip(counts, x.shape[1:3], params.pads, strict=True)
    ]
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))

    def points(x: jax.Array, axis: int, count: int) -> list[jax.Array]:
        end = m * (count - 1) + 1
        return [lax.slice_in_dim(x, i, i + end, m, axis) for i in range(transform.points)]

    across = _apply(transform.input, points(x, 2, counts[1]))  # (m + 2, batch, h, columns, channels)
    both = _apply(transform.input, points(across, 2, counts[0]))  # (m + 2, m + 2, batch, rows, columns, channels)
    return both.reshape(transform.points**2, -1, x.shape[-1])


def _tile_counts(size: Sequence[int], transform: WinogradTransform) -> list[int]:
    """Returns the numbers of rows and columns of tiles that cover an output (h', w')."""
    return [-(-side // transform.tile) for side in size]


def _apply(matrix: Matrix, arrays: list[jax.Array], axis: int = 0) -> jax.Array:
    """Multiplies the matrix by a column of arrays and stacks the result along `axis`; skips factors 0, 1 and -1."""

    def times(factor: float, array: jax.Array) -> jax.Array:
        return array if factor == 1 else -array if factor == -1 else factor * array

    def row_times(row: tuple[float, ...]) -> jax.Array:
        terms = [times(factor, array) for factor, array in zip(row, arrays, strict=True) if factor]
        return sum(terms[1:], terms[0])

    return jnp.stack([row_times(row) for row in matrix], axis=axis)


def _transpose(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))


def _einsum(subscripts: str, a: jax.Array, b: jax.Array, params: ConvParams) -> jax.Array:
    return jnp.einsum(subscripts, a, b, precision=params.precision)
