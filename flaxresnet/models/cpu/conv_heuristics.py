"""Choice of the fastest convolution algorithm (`conv_algorithms.py`, `winograd.py`) on a CPU from the shapes.

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

MAX_KERNEL_AREA = 49  # pixels; the program grows with the area, by an operation for each offset
MAX_VALID_FRACTION = 0.5  # up to here per_offset_gemm beats im2col, which multiplies at least as many zeros as pixels
MAX_IM2COL_PIXELS = 36  # of an image's output; up to here im2col is fastest for the output and both gradients
MIN_WINOGRAD_CHANNELS = 32  # and features; from here on Winograd's savings exceed the cost of its transforms
MIN_WINOGRAD_PIXELS = 500  # of all outputs; from here on they also exceed the cost of the kernel's transform
MAX_KERNEL_RATIO = 32  # channels × features for each output pixel, up to which this also holds in inference
MAX_ROW_GEMM_CHANNELS = 8  # up to here row_gemm beats im2col for the kernel's gradient
MAX_PATCH_ELEMENTS = 400_000  # of an image (pixels × area × channels); up to here im2col pays for the kernel's gradient


def choose(image: Sequence[int], kernel: Sequence[int], window: ConvParams, bits: int = 32) -> ConvAlgorithms:
    """Returns the fastest algorithms for training on a CPU.

    Args:
      image: shape of the images, (batch, h, w, channels). The batch may be symbolic.
      kernel: shape of the kernel, (kh, kw, channels, features).
      window: strides and padding.
      bits: bits of a number. Winograd's algorithm needs 32 or more.
    """
    area = kernel[0] * kernel[1]
    channels, features = kernel[2:]
    pixels = math.prod(output_size(image, kernel, window))
    pads = {*window.pads[0], *window.pads[1]}
    if area == 1 and pads == {0}:
        return CONV1X1_GEMM
    if area > MAX_KERNEL_AREA:
        return NATIVE
    if valid_fraction(image, kernel, window) <= MAX_VALID_FRACTION:
        return PER_OFFSET_GEMM
    winograd_applies = (*kernel[:2], *window.strides) == (3, 3, 1, 1) and pads <= {0, 1, 2} and bits >= 32
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
    image: Sequence[int], kernel: Sequence[int], window: ConvParams, bits: int = 32
) -> ConvAlgorithms:
    """Returns the fastest algorithms for inference on a CPU, for the arguments of `choose`.

    With few output pixels, reading the kernel dominates, so an algorithm that reads it once is fastest.
    """
    algorithms = choose(image, kernel, window, bits)
    channels, features = kernel[2:]
    pixels = image[0] * math.prod(output_size(image, kernel, window))
    if algorithms == WINOGRAD and channels * features > MAX_KERNEL_RATIO * pixels:
        return PER_OFFSET_GEMM
    is_small = kernel[0] * kernel[1] <= MAX_KERNEL_AREA and is_at_most(pixels, MIN_WINOGRAD_PIXELS)
    if algorithms.forward == "native" and is_small:
        return IM2COL
    return algorithms
