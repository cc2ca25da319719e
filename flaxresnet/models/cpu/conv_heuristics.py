"""Heuristics that choose the convolution algorithm (`conv_algorithms.py`, `winograd.py`) on a CPU from the shapes.

`benchmarks/conv_lowering.py` measures the algorithms. `benchmarks/RESULTS.md` lists the results.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from flaxresnet.models.cpu.conv_algorithms import (
    ConvParams,
    Forward,
    Gradient,
    conv1x1_gemm,
    im2col,
    im2col_kernel_grad,
    is_at_most,
    native,
    output_size,
    per_offset_gemm,
    per_offset_gemm_input_grad,
    per_offset_gemm_kernel_grad,
    row_gemm_kernel_grad,
    valid_fraction,
    vjp_input,
    vjp_kernel,
)
from flaxresnet.models.cpu.winograd import winograd, winograd_input_grad, winograd_kernel_grad

FORWARD: dict[str, Forward] = {
    "native": native,
    "conv1x1_gemm": conv1x1_gemm,
    "im2col": im2col,
    "per_offset_gemm": per_offset_gemm,
    "winograd": winograd,
}
INPUT_GRADIENT: dict[str, Gradient] = {name: vjp_input(forward) for name, forward in FORWARD.items()} | {
    "per_offset_gemm": per_offset_gemm_input_grad,
    "winograd": winograd_input_grad,
}
KERNEL_GRADIENT: dict[str, Gradient] = {name: vjp_kernel(forward) for name, forward in FORWARD.items()} | {
    "im2col": im2col_kernel_grad,
    "per_offset_gemm": per_offset_gemm_kernel_grad,
    "winograd": winograd_kernel_grad,
    "row_gemm": row_gemm_kernel_grad,
}


class ConvAlgorithms(NamedTuple):
    """Names of the algorithms for the output (a key of `FORWARD`) and the two gradients."""

    forward: str
    input_gradient: str
    kernel_gradient: str


NATIVE = ConvAlgorithms("native", "native", "native")
CONV1X1_GEMM = ConvAlgorithms("conv1x1_gemm", "conv1x1_gemm", "conv1x1_gemm")
IM2COL = ConvAlgorithms("im2col", "im2col", "im2col")
PER_OFFSET_GEMM = ConvAlgorithms("per_offset_gemm", "per_offset_gemm", "per_offset_gemm")
WINOGRAD = ConvAlgorithms("winograd", "winograd", "winograd")

MAX_KERNEL_AREA = 49  # pixels; larger kernels use XLA, because the program grows by an operation for each pixel
MAX_VALID_FRACTION = 0.5  # up to here im2col multiplies at least as many zeros as pixels, so per_offset_gemm is faster
MAX_IM2COL_PIXELS = 36  # of an image's output; up to this number, im2col is fastest for output and gradients
MIN_WINOGRAD_CHANNELS = 32  # and features; from this number on, Winograd saves more than its transforms cost
MIN_WINOGRAD_PIXELS = 500  # of the batch's output; from here on, Winograd's kernel transform also pays off
MAX_KERNEL_RATIO = 32  # channels · features / output pixels; the highest ratio for which inference uses Winograd
MAX_ROW_GEMM_CHANNELS = 8  # up to this number, row_gemm is faster than im2col for the kernel's gradient
MAX_PATCH_ELEMENTS = 400_000  # output pixels · area · channels; up to here, im2col is faster for the kernel's gradient


def choose(image: Sequence[int], kernel: Sequence[int], params: ConvParams, bits: int = 32) -> ConvAlgorithms:
    """Returns the fastest algorithms for training on a CPU.

    Args:
      image: shape of the images, (batch, h, w, channels). The batch may be symbolic.
      kernel: shape of the kernel, (kh, kw, channels, features).
      params: strides and padding.
      bits: bits of the dtype. Winograd's algorithm needs 32 or more.
    """
    area = kernel[0] * kernel[1]
    channels, features = kernel[2:]
    pixels = math.prod(output_size(image, kernel, params))
    pads = {*params.pads[0], *params.pads[1]}
    if area == 1 and pads == {0}:
        return CONV1X1_GEMM
    if area > MAX_KERNEL_AREA:
        return NATIVE
    if valid_fraction(image, kernel, params) <= MAX_VALID_FRACTION:
        return PER_OFFSET_GEMM
    winograd_applies = (*kernel[:2], *params.strides) == (3, 3, 1, 1) and pads <= {0, 1, 2} and bits >= 32
    has_many_pixels = isinstance(image[0], int) and image[0] * pixels >= MIN_WINOGRAD_PIXELS
    if winograd_applies and min(channels, features) >= MIN_WINOGRAD_CHANNELS and has_many_pixels:
        return WINOGRAD
    if pixels <= MAX_IM2COL_PIXELS:
        return IM2COL
    if channels <= MAX_ROW_GEMM_CHANNELS:
        return NATIVE._replace(kernel_gradient="row_gemm")
    if pixels * area * channels <= MAX_PATCH_ELEMENTS:
        return NATIVE._replace(kernel_gradient="im2col")
    return NATIVE


def choose_for_inference(
    image: Sequence[int], kernel: Sequence[int], params: ConvParams, bits: int = 32
) -> ConvAlgorithms:
    """Returns the fastest algorithms for inference on a CPU. The arguments are as in `choose`.

    With few output pixels, reading the kernel dominates, so an algorithm that reads it once is fastest.
    """
    algorithms = choose(image, kernel, params, bits)
    channels, features = kernel[2:]
    pixels = image[0] * math.prod(output_size(image, kernel, params))
    if algorithms == WINOGRAD and channels * features > MAX_KERNEL_RATIO * pixels:
        return PER_OFFSET_GEMM
    is_small = kernel[0] * kernel[1] <= MAX_KERNEL_AREA and is_at_most(pixels, MIN_WINOGRAD_PIXELS)
    if algorithms.forward == "native" and is_small:
        return IM2COL
    return algorithms
