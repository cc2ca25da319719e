"""A convolution layer that picks, for each platform and shape, the form that runs fastest there.

XLA's convolution is excellent on GPUs and TPUs. On CPUs it is good for large images, slow for 1×1 kernels, slower for
the kernel's gradient, and falls off a cliff on very small images (a 3×3 convolution of 2×2 images takes fifty times as
long as the same arithmetic as a matrix product). A ResNet has 1×1 kernels throughout and ends in very small images.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from flaxresnet.models.cpu import conv_algorithms as forms
from flaxresnet.models.cpu.conv_algorithms import LAYOUT, ROWS, ConvParams, native, result_size
from flaxresnet.models.cpu.conv_heuristics import (
    FORWARD,
    INPUT_GRADIENT,
    KERNEL_GRADIENT,
    NATIVE,
    ConvAlgorithms,
    choose,
    choose_for_inference,
)
from flaxresnet.models.sharding import is_explicit, psum_to_match

# Options of `lax.conv_general_dilated` that `_is_supported` looks at or the forms honour; with others it is left to
# XLA.
SUPPORTED_OPTIONS = {
    "lhs_dilation",
    "rhs_dilation",
    "dimension_numbers",
    "feature_group_count",
    "batch_group_count",
    "precision",
    "preferred_element_type",
}
LARGE_KERNEL = 200_000  # numbers in a kernel from which its order in memory decides how soon one photo is answered


# Compiled functions in themselves, so that layers of the same shape are traced once.
@functools.partial(jax.jit, static_argnames=("window", "choice"))
def _values(x: jax.Array, kernel: jax.Array, window: ConvParams, choice: ConvAlgorithms) -> jax.Array:
    chosen = FORWARD[choice.forward]
    return lax.platform_dependent(
        x, kernel, cpu=lambda x, k: chosen(x, k, window), default=lambda x, k: native(x, k, window)
    )


@functools.partial(jax.jit, static_argnames=("window", "choice"))
def _gradients(
    x: jax.Array, kernel: jax.Array, g: jax.Array, window: ConvParams, choice: ConvAlgorithms
) -> tuple[jax.Array, jax.Array]:
    def both(forms: ConvAlgorithms) -> Any:
        return lambda x, kernel, g: (
            psum_to_match(x, INPUT_GRADIENT[forms.input_gradient](x, kernel, g, window)),
            psum_to_match(kernel, KERNEL_GRADIENT[forms.kernel_gradient](x, kernel, g, window)),
        )

    return lax.platform_dependent(x, kernel, g, cpu=both(choice), default=both(NATIVE))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: jax.Array, kernel: jax.Array, window: ConvParams, choice: ConvAlgorithms) -> jax.Array:
    return _values(x, kernel, window, choice)


def _forward(x: jax.Array, kernel: jax.Array, window: ConvParams, choice: ConvAlgorithms) -> tuple[jax.Array, Any]:
    return _values(x, kernel, window, choice), (x, kernel)


def _backward(window: ConvParams, choice: ConvAlgorithms, residuals: Any, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _gradients(*residuals, g, window, choice)


_convolve.defvjp(_forward, _backward)


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> jax.Array:
    """`lax.conv_general_dilated` with the fastest lowering for the platform that it is compiled for.

    It can be differentiated in reverse (`jax.grad`, `jax.vjp`, also twice), not forwards (`jax.jvp`); `nn.Conv` can.

    Args:
      lhs: images, (batch, height, width, channels), as `nn.Conv` passes them.
      rhs: kernel, (kernel height, kernel width, channels, features).
      window_strides: the step between windows, one a spatial dimension.
      padding: `"SAME"`, `"VALID"` or explicit (low, high) pairs, one a spatial dimension.
      **options: the other arguments of `lax.conv_general_dilated`.

    Returns:
      What `lax.conv_general_dilated` returns, (batch, height', width', features), to rounding where all is finite.
      Where an axis is cropped on one side and padded on the other, XLA's own on CPU reads what lies beyond the image;
      this one does not.
    """
    return _chosen_by(choose, lhs, rhs, window_strides, padding, **options)


def _chosen_by(
    choose: Callable[..., ConvAlgorithms],
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> jax.Array:
    lhs, padding = _pre_pad(lhs, rhs, padding, options)
    if not _is_supported(lhs, rhs, options):
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
    down, right = window_strides
    pads = _explicit_padding(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
    precision = options.get("precision")
    window = ConvParams((down, right), pads, tuple(precision) if isinstance(precision, list) else precision)
    if min(result_size(lhs.shape, rhs.shape, window)) <= 0:
        return native(lhs, rhs, window)
    choice = choose(lhs.shape, rhs.shape, window, bits=8 * lhs.dtype.itemsize)
    return _convolve(lhs, rhs, window, choice)


class Conv(nn.Conv):
    """`nn.Conv` (same fields, parameters, shapes and initialisers) with `conv_general_dilated` of this file.

    Checkpoints exchange freely with `nn.Conv`; only the arithmetic's form differs, and only on CPU. It can be
    differentiated in reverse alone, as `conv_general_dilated`.
    """

    conv_general_dilated: Any = conv_general_dilated


def use_ohwi_layout(shape: Sequence[int]) -> bool:
    """Whether a kernel of this shape, (h, w, channels, features), had better lie (features, h, w, channels).

    It had where the matrix product is over before the kernel has been read twice: one photo at a time.
    """
    return math.prod(shape) >= LARGE_KERNEL


class FoldedConv(nn.Module):
    """`Conv` for inference, whose large kernels (`use_ohwi_layout`) lie (features, h, w, channels).

    Fields as in `nn.Conv`, as far as `ResNet` gives them.
    """

    features: int
    kernel_size: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: str | Sequence[tuple[int, int]] = "SAME"
    use_bias: bool = True
    dtype: Any = None
    feature_group_count: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*self.kernel_size, x.shape[-1] // self.feature_group_count, self.features)
        turned = use_ohwi_layout(shape)
        kernel = self.param("kernel", nn.initializers.zeros, (shape[3], *shape[:3]) if turned else shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else jnp.zeros(())
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        window = ConvParams(self.strides, _explicit_padding(x.shape[1:3], shape[:2], self.strides, self.padding))
        if not turned or self.feature_group_count > 1:
            kernel = jnp.moveaxis(kernel, 0, -1) if turned else kernel
            options = {"feature_group_count": self.feature_group_count, "dimension_numbers": LAYOUT}
            return _chosen_by(choose_for_inference, x, kernel, window.strides, window.pads, **options) + bias
        return _convolve_features_first(x, kernel, window) + bias


@functools.partial(jax.jit, static_argnames="window")
def _convolve_features_first(x: jax.Array, kernel: jax.Array, window: ConvParams) -> jax.Array:
    shape = (*kernel.shape[1:], kernel.shape[0])
    down, right, cut = forms.crop_kernel_to_support(
        x.shape, shape, window
    )  # one of nine places, for images of one pixel
    met = (down.stop - down.start, right.stop - right.start, *shape[2:])
    form = choose_for_inference(x.shape, met, cut, bits=8 * x.dtype.itemsize).forward
    form = "im2col" if form == "per_offset_gemm" else form  # which reads the kernel in one piece, not a tap at a time

    def on_cpu(x: jax.Array, kernel: jax.Array) -> jax.Array:
        kernel = kernel[:, down, right]
        if form in ROWS:
            return forms.ohwi_gemm(form, x, kernel, cut)
        return FORWARD[form](x, jnp.moveaxis(kernel, 0, -1), cut)

    def elsewhere(x: jax.Array, kernel: jax.Array) -> jax.Array:
        layout = ("NHWC", "OHWI", "NHWC")
        return lax.conv_general_dilated(x, kernel, window.strides, window.pads, dimension_numbers=layout)

    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=elsewhere)


def _pre_pad(
    lhs: jax.Array, rhs: jax.Array, padding: str | Sequence[tuple[int, int]], options: dict[str, Any]
) -> tuple[jax.Array, str | Sequence[tuple[int, int]]]:
    """The images with the axes padded that are cropped, or padded by more than the kernel reaches; what is left to pad.

    XLA (jaxlib 0.10, CPU) convolves wrongly where the padding before an axis is negative and the padding after it
    positive, in its gradient also where the padding before is larger than the kernel reaches.
    """
    if isinstance(padding, str) or any(dilation != 1 for dilation in options.get("lhs_dilation") or ()):
        return lhs, padding
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, options.get("dimension_numbers"))
    dilations = options.get("rhs_dilation") or (1,) * len(padding)
    first, left = [(0, 0, 0)] * lhs.ndim, list(padding)
    for i, (pads, axis, over, dilation) in enumerate(
        zip(padding, numbers.lhs_spec[2:], numbers.rhs_spec[2:], dilations, strict=True)
    ):
        reach = (rhs.shape[over] - 1) * dilation
        if not all(0 <= pad <= reach for pad in pads) and lhs.shape[axis] + sum(pads) > 0:
            first[axis], left[i] = (*pads, 0), (0, 0)
    return (lax.pad(lhs, jnp.zeros((), lhs.dtype), first) if any(map(any, first)) else lhs), left


def _is_supported(lhs: jax.Array, rhs: jax.Array, options: dict[str, Any]) -> bool:
    """Whether this is the case worth rewriting, on which the forms agree with XLA's convolution.

    That is: two dimensions, laid out as Flax lays them out, no groups, dilation or other type of result, and
    no mesh with explicit axes, for which each form would have to say how what it makes is divided.
    """
    if is_explicit(lhs) or is_explicit(rhs) or options.keys() - SUPPORTED_OPTIONS:
        return False
    if lhs.ndim != 4 or not jnp.issubdtype(lhs.dtype, jnp.floating) or 0 in lhs.shape:
        return False
    if not all(isinstance(side, int) for side in lhs.shape[1:]):  # exported for images of any size
        return False
    dilations = (*(options.get("lhs_dilation") or ()), *(options.get("rhs_dilation") or ()))
    groups = options.get("feature_group_count", 1) * options.get("batch_group_count", 1)
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, options.get("dimension_numbers"))
    return (
        groups == 1
        and all(dilation == 1 for dilation in dilations)
        and numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, LAYOUT)
        and options.get("preferred_element_type") in (None, lhs.dtype)
    )


def _explicit_padding(
    image: Sequence[int], window: Sequence[int], strides: Sequence[int], padding: str | Sequence[tuple[int, int]]
) -> Any:
    pads = lax.padtype_to_pads(image, window, strides, padding) if isinstance(padding, str) else padding
    return tuple((int(low), int(high)) for low, high in pads)
