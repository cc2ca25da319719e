"""A convolution layer that uses the fastest algorithm for each platform and shape.

XLA's convolution is fast on GPUs and TPUs. On CPUs, it is fast for large images, slow for 1×1 kernels, and slower still
for gradients with respect to the kernel. It is slowest for very small images: a 3×3 convolution of 2×2 images takes
fifty times as long as the same arithmetic in a matrix product. A bottleneck ResNet has 1×1 kernels in every block and,
for small inputs, very small feature maps in its last stages.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from flaxresnet.models.cpu.conv_algorithms import (
    LAYOUT,
    ROWS,
    ConvParams,
    crop_kernel_to_support,
    native,
    ohwi_gemm,
    output_size,
)
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

# Options of `lax.conv_general_dilated` that the algorithms honor or `_is_supported` checks. Any other option selects
# XLA's convolution.
SUPPORTED_OPTIONS = {
    "lhs_dilation",
    "rhs_dilation",
    "dimension_numbers",
    "feature_group_count",
    "batch_group_count",
    "precision",
    "preferred_element_type",
}
MIN_OHWI_ELEMENTS = 200_000  # from this kernel size on, the memory layout decides the latency of one image

Padding = str | Sequence[tuple[int, int]]


# `jax.jit` lets JAX reuse one trace of `_output` and `_gradients` for all layers of the same shape.
@functools.partial(jax.jit, static_argnames=("params", "algorithms"))
def _output(x: jax.Array, kernel: jax.Array, params: ConvParams, algorithms: ConvAlgorithms) -> jax.Array:
    forward = FORWARD[algorithms.forward]
    return lax.platform_dependent(
        x, kernel, cpu=lambda x, k: forward(x, k, params), default=lambda x, k: native(x, k, params)
    )


@functools.partial(jax.jit, static_argnames=("params", "algorithms"))
def _gradients(
    x: jax.Array, kernel: jax.Array, g: jax.Array, params: ConvParams, algorithms: ConvAlgorithms
) -> tuple[jax.Array, jax.Array]:
    def both(algorithms: ConvAlgorithms) -> Any:
        return lambda x, kernel, g: (
            psum_to_match(x, INPUT_GRADIENT[algorithms.input_gradient](x, kernel, g, params)),
            psum_to_match(kernel, KERNEL_GRADIENT[algorithms.kernel_gradient](x, kernel, g, params)),
        )

    return lax.platform_dependent(x, kernel, g, cpu=both(algorithms), default=both(NATIVE))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: jax.Array, kernel: jax.Array, params: ConvParams, algorithms: ConvAlgorithms) -> jax.Array:
    return _output(x, kernel, params, algorithms)


def _forward(x: jax.Array, kernel: jax.Array, params: ConvParams, algorithms: ConvAlgorithms) -> tuple[jax.Array, Any]:
    return _output(x, kernel, params, algorithms), (x, kernel)


def _backward(
    params: ConvParams, algorithms: ConvAlgorithms, residuals: Any, g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return _gradients(*residuals, g, params, algorithms)


_convolve.defvjp(_forward, _backward)


def conv_general_dilated(
    lhs: jax.Array, rhs: jax.Array, window_strides: Sequence[int], padding: Padding, **options: Any
) -> jax.Array:
    """Computes `lax.conv_general_dilated` with the fastest algorithm for the platform it is compiled for.

    It supports reverse-mode differentiation (`jax.grad`, `jax.vjp`), including second derivatives. Unlike `nn.Conv`, it
    does not support forward mode (`jax.jvp`).

    Args:
      lhs: images, (batch, height, width, channels) with the `dimension_numbers` that `nn.Conv` passes. Other layouts
        and ranks use XLA's convolution.
      rhs: kernel, (kernel height, kernel width, channels, features).
      window_strides: the stride in each spatial dimension.
      padding: `"SAME"`, `"VALID"` or explicit (low, high) pairs, one for each spatial dimension.
      **options: the other arguments of `lax.conv_general_dilated`.

    Returns:
      (batch, height', width', features). It equals the result of `lax.conv_general_dilated` up to rounding if all
      inputs are finite. If padding crops one end of an axis and extends the other, XLA on CPU reads outside the image;
      this function does not.
    """
    return _convolve_with(choose, lhs, rhs, window_strides, padding, **options)


def _convolve_with(
    choose_algorithms: Callable[..., ConvAlgorithms],
    lhs: jax.Array,
    rhs: jax.Array,
    strides: Sequence[int],
    padding: Padding,
    **options: Any,
) -> jax.Array:
    """Computes `conv_general_dilated` with the algorithms that `choose_algorithms` returns."""
    lhs, padding = _pre_pad(lhs, rhs, padding, options)
    if not _is_supported(lhs, rhs, options):
        return lax.conv_general_dilated(lhs, rhs, strides, padding, **options)
    down, right = strides
    pads = _explicit_padding(lhs.shape[1:3], rhs.shape[:2], strides, padding)
    precision = options.get("precision")
    if isinstance(precision, list):
        precision = tuple(precision)
    params = ConvParams((down, right), pads, precision)
    if min(output_size(lhs.shape, rhs.shape, params)) <= 0:
        return native(lhs, rhs, params)
    return _convolve(lhs, rhs, params, choose_algorithms(lhs.shape, rhs.shape, params, bits=8 * lhs.dtype.itemsize))


class Conv(nn.Conv):
    """`nn.Conv` with this module's `conv_general_dilated`; fields, parameters, shapes and initializers are the same.

    Checkpoints of the two layers are interchangeable. The layers differ only in two respects: `Conv` is faster on CPUs,
    and it supports only reverse-mode differentiation.
    """

    conv_general_dilated: Any = conv_general_dilated


def use_ohwi_layout(shape: Sequence[int]) -> bool:
    """Returns whether to store a kernel of shape (h, w, channels, features) as (features, h, w, channels).

    This layout is faster for large kernels and one image at a time, because reading the kernel then takes as long as
    the matrix product.
    """
    return math.prod(shape) >= MIN_OHWI_ELEMENTS


class FoldedConv(nn.Module):
    """A convolution for inference that stores large kernels (`use_ohwi_layout`) as (features, h, w, channels).

    `__call__(x)` takes (batch, height, width, channels) and returns (batch, height', width', features). The fields are
    those of `nn.Conv` that `ResNet` sets.
    """

    features: int
    kernel_size: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: Padding = "SAME"
    use_bias: bool = True
    dtype: Any = None
    feature_group_count: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*self.kernel_size, x.shape[-1] // self.feature_group_count, self.features)
        ohwi = use_ohwi_layout(shape)
        kernel = self.param("kernel", nn.initializers.zeros, (shape[3], *shape[:3]) if ohwi else shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else jnp.zeros(())
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        pads = _explicit_padding(x.shape[1:3], shape[:2], self.strides, self.padding)
        if ohwi and self.feature_group_count == 1:
            return _convolve_ohwi(x, kernel, ConvParams(self.strides, pads)) + bias
        if ohwi:
            kernel = jnp.moveaxis(kernel, 0, -1)
        options = {"feature_group_count": self.feature_group_count, "dimension_numbers": LAYOUT}
        return _convolve_with(choose_for_inference, x, kernel, self.strides, pads, **options) + bias


@functools.partial(jax.jit, static_argnames="params")
def _convolve_ohwi(x: jax.Array, kernel: jax.Array, params: ConvParams) -> jax.Array:
    """Convolves images with a kernel (features, h, w, channels)."""
    shape = (*kernel.shape[1:], kernel.shape[0])
    down, right, cropped = crop_kernel_to_support(x.shape, shape, params)  # one of nine offsets for 1×1 images
    cropped_shape = (down.stop - down.start, right.stop - right.start, *shape[2:])
    algorithm = choose_for_inference(x.shape, cropped_shape, cropped, bits=8 * x.dtype.itemsize).forward
    if algorithm == "per_offset_gemm":
        algorithm = "im2col"  # reads the kernel in one piece instead of one offset at a time

    def on_cpu(x: jax.Array, kernel: jax.Array) -> jax.Array:
        kernel = kernel[:, down, right]
        if algorithm in ROWS:
            return ohwi_gemm(algorithm, x, kernel, cropped)
        return FORWARD[algorithm](x, jnp.moveaxis(kernel, 0, -1), cropped)

    def on_accelerator(x: jax.Array, kernel: jax.Array) -> jax.Array:
        layout = ("NHWC", "OHWI", "NHWC")
        return lax.conv_general_dilated(x, kernel, params.strides, params.pads, dimension_numbers=layout)

    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=on_accelerator)


def _pre_pad(lhs: jax.Array, rhs: jax.Array, padding: Padding, options: dict[str, Any]) -> tuple[jax.Array, Padding]:
    """Pads explicitly along axes with negative padding, or with more padding than the kernel reaches.

    XLA (jaxlib 0.10, CPU) computes a wrong result if the low padding of an axis is negative and the high padding is
    positive. It also computes a wrong gradient if the low padding exceeds the kernel's reach.

    Returns:
      The images and the remaining padding.
    """
    if isinstance(padding, str) or {*(options.get("lhs_dilation") or ())} - {1}:
        return lhs, padding
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, options.get("dimension_numbers"))
    dilations = options.get("rhs_dilation") or (1,) * len(padding)
    config = [(0, 0, 0)] * lhs.ndim
    remaining = list(padding)
    for i, pads in enumerate(padding):
        axis = numbers.lhs_spec[2 + i]
        reach = (rhs.shape[numbers.rhs_spec[2 + i]] - 1) * dilations[i]
        if (min(pads) < 0 or max(pads) > reach) and lhs.shape[axis] + sum(pads) > 0:
            config[axis] = (*pads, 0)
            remaining[i] = (0, 0)
    if any(map(any, config)):
        lhs = lax.pad(lhs, jnp.zeros((), lhs.dtype), config)
    return lhs, remaining


def _is_supported(lhs: jax.Array, rhs: jax.Array, options: dict[str, Any]) -> bool:
    """Returns whether the algorithms apply and agree with XLA's convolution.

    The algorithms take nonempty floating-point images of fixed size with two spatial dimensions in Flax's layout. They
    do not support groups, dilation, another result type, or a mesh with explicit axes, for which every intermediate
    result would need a sharding.
    """
    if is_explicit(lhs) or is_explicit(rhs) or options.keys() - SUPPORTED_OPTIONS:
        return False
    if lhs.ndim != 4 or not jnp.issubdtype(lhs.dtype, jnp.floating) or 0 in lhs.shape:
        return False
    if not all(isinstance(side, int) for side in lhs.shape[1:]):  # a program exported for images of any size
        return False
    dilations = {*(options.get("lhs_dilation") or ()), *(options.get("rhs_dilation") or ())}
    groups = options.get("feature_group_count", 1) * options.get("batch_group_count", 1)
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, options.get("dimension_numbers"))
    return (
        groups == 1
        and dilations <= {1}
        and numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, LAYOUT)
        and options.get("preferred_element_type") in (None, lhs.dtype)
    )


def _explicit_padding(image: Sequence[int], kernel: Sequence[int], strides: Sequence[int], padding: Padding) -> Any:
    """Returns ((top, bottom), (left, right)) from the sizes (height, width) of image and kernel."""
    pads = lax.padtype_to_pads(image, kernel, strides, padding) if isinstance(padding, str) else padding
    return tuple((int(low), int(high)) for low, high in pads)
