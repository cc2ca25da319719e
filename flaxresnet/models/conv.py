"""A convolution layer that picks, for each platform and shape, the form that runs fastest there.

XLA's convolution is excellent on GPUs and TPUs. On CPUs it is good for large images, slow for 1×1 kernels and
falls off a cliff on very small images (a 3×3 convolution of 2×2 images takes sixty times as long as the same
arithmetic as a matrix product; `benchmarks/RESULTS.md` has the figures), and a ResNet ends in very small images.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

# Elements of an image's matrix of patches (output pixels × window × channels) up to which that form is taken.
PATCHES_UP_TO = 200_000


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> jax.Array:
    """`lax.conv_general_dilated` with the fastest lowering for the platform that it is compiled for.

    Args:
      lhs: images, (batch, height, width, channels), as `nn.Conv` passes them.
      rhs: kernel, (kernel height, kernel width, channels, features).
      window_strides: the step between windows, one a spatial dimension.
      padding: `"SAME"`, `"VALID"` or explicit (low, high) pairs, one a spatial dimension.
      **options: the other arguments of `lax.conv_general_dilated`.

    Returns:
      What `lax.conv_general_dilated` returns, to rounding: (batch, height', width', features).
    """

    def native(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)

    if not _is_plain(lhs, options):
        return native(lhs, rhs)

    pads = _explicit_padding(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
    height, width = jax.eval_shape(native, lhs, rhs).shape[1:3]
    precision = options.get("precision")

    if rhs.shape[:2] == (1, 1) and not any(map(any, pads)):
        return lax.platform_dependent(
            lhs, rhs, cpu=lambda x, k: _pointwise(x, k, window_strides, precision), default=native
        )
    if 0 < height * width * math.prod(rhs.shape[:3]) <= PATCHES_UP_TO:
        return lax.platform_dependent(
            lhs, rhs, cpu=lambda x, k: _patches(x, k, window_strides, pads, precision), default=native
        )
    return native(lhs, rhs)


class Conv(nn.Conv):
    """`nn.Conv` (same fields, parameters, shapes and initialisers) with `conv_general_dilated` of this file.

    Checkpoints exchange freely with `nn.Conv`; only the arithmetic's form differs, and only on CPU.
    """

    conv_general_dilated: Any = conv_general_dilated


def _is_plain(lhs: jax.Array, options: dict[str, Any]) -> bool:
    """Whether this is a two-dimensional convolution without groups or dilation, the case worth rewriting."""
    dilations = (*(options.get("lhs_dilation") or ()), *(options.get("rhs_dilation") or ()))
    groups = options.get("feature_group_count", 1) * options.get("batch_group_count", 1)
    return lhs.ndim == 4 and groups == 1 and all(d == 1 for d in dilations)


def _explicit_padding(
    image: Sequence[int], window: Sequence[int], strides: Sequence[int], padding: str | Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    if isinstance(padding, str):
        return lax.padtype_to_pads(image, window, strides, padding)
    return [(low, high) for low, high in padding]


def _pointwise(x: jax.Array, kernel: jax.Array, strides: Sequence[int], precision: Any) -> jax.Array:
    """A 1×1 convolution as one matrix product: (batch·h·w, channels) × (channels, features)."""
    x = x[:, :: strides[0], :: strides[1]]
    return jnp.dot(x.reshape(-1, x.shape[-1]), kernel[0, 0], precision=precision).reshape(*x.shape[:-1], -1)


def _patches(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], pads: list[tuple[int, int]], precision: Any
) -> jax.Array:
    """Every window laid out as one row, then one matrix product (im2col)."""
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))  # (batch, h + pad, w + pad, channels)
    kernel_height, kernel_width, channels, features = kernel.shape
    height = (x.shape[1] - kernel_height) // strides[0] + 1
    width = (x.shape[2] - kernel_width) // strides[1] + 1
    windows = [
        x[:, i : i + strides[0] * (height - 1) + 1 : strides[0], j : j + strides[1] * (width - 1) + 1 : strides[1]]
        for i in range(kernel_height)
        for j in range(kernel_width)
    ]
    rows = jnp.concatenate(windows, axis=-1).reshape(-1, kernel_height * kernel_width * channels)
    out = jnp.dot(rows, kernel.reshape(-1, features), precision=precision)
    return out.reshape(-1, height, width, features)
