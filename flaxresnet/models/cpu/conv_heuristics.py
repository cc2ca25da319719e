"""Which form of a convolution (`conv_algorithms.py`, `winograd.py`) is fastest on a CPU, from its shapes.

`benchmarks/conv_lowering.py` measures what the rule rests on; `benchmarks/RESULTS.md` has runs of it.
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
    per_offset_gemm,
    per_offset_gemm_input_grad,
    per_offset_gemm_kernel_grad,
    result_size,
    row_gemm_kernel_grad,
    valid_fraction,
    vjp_input,
    vjp_kernel,
)
from flaxresnet.models.cpu.winograd import winograd, winograd_input_gradient, winograd_kernel_gradient

FORWARD: dict[str, Forward] = {
    "native": native,
    "conv1x1_gemm": conv1x1_gemm,
    "im2col": im2col,
    "per_offset_gemm": per_offset_gemm,
    "winograd": winograd,
}
INPUT_GRADIENT: dict[str, Gradient] = {name: vjp_input(form) for name, form in FORWARD.items()} | {
    "per_offset_gemm": per_offset_gemm_input_grad,
    "winograd": winograd_input_gradient,
}
KERNEL_GRADIENT: dict[str, Gradient] = {name: vjp_kernel(form) for name, form in FORWARD.items()} | {
    "im2col": im2col_kernel_grad,
    "per_offset_gemm": per_offset_gemm_kernel_grad,
    "winograd": winograd_kernel_gradient,
    "rows": row_gemm_kernel_grad,
}


class ConvAlgorithms(NamedTuple):
    """Names of the forms (`conv_algorithms.py`) for the values and the two gradients."""

    forward: str
    input_gradient: str
    kernel_gradient: str


NATIVE = ConvAlgorithms("native", "native", "native")
CONV1X1_GEMM = ConvAlgorithms("conv1x1_gemm", "conv1x1_gemm", "conv1x1_gemm")
IM2COL = ConvAlgorithms("im2col", "im2col", "im2col")
PER_OFFSET_GEMM = ConvAlgorithms("per_offset_gemm", "per_offset_gemm", "per_offset_gemm")
WINOGRAD = ConvAlgorithms("winograd", "winograd", "winograd")

MAX_AREA = 49  # of a kernel whose places are taken apart: each is an operation of its own in the program
IN_PADDING = 0.5  # share of taps on pixels up to which one product a tap beats patches, half of which are zeros then
SMALL = 36  # pixels of the result up to which patches win in all three
WIDE = 32  # channels and features from which Winograd's products outweigh its transforms
MANY = 500  # pixels of all results from which Winograd's products outweigh the transform of the kernel
KERNEL_SHARE = 32  # channels × features for each pixel of all results up to which that holds in inference as well
FEW = 8  # channels up to which an image's rows, not its patches, are laid out for the kernel's gradient
LARGE_PATCHES = 400_000  # elements of an image's patches (pixels × kernel × channels) that still pay for its gradient


def choose(image: Sequence[int], kernel: Sequence[int], window: ConvParams, bits: int = 32) -> ConvAlgorithms:
    """The forms for a CPU, from the shapes of images (batch, h, w, channels) and kernel, and the bits of a number."""
    area, channels, features = kernel[0] * kernel[1], *kernel[2:]
    pixels = math.prod(result_size(image, kernel, window))
    pads = [pad for pair in window.pads for pad in pair]
    if area == 1 and not any(pads):
        return CONV1X1_GEMM
    if area > MAX_AREA:
        return NATIVE
    if valid_fraction(image, kernel, window) <= IN_PADDING:
        return PER_OFFSET_GEMM
    winograd_can = (*kernel[:2], *window.strides) == (3, 3, 1, 1) and set(pads) <= {0, 1, 2} and bits >= 32
    many = isinstance(image[0], int) and image[0] * pixels >= MANY  # an exported program's number of images is a symbol
    if winograd_can and min(channels, features) >= WIDE and many:
        return WINOGRAD
    if pixels <= SMALL:
        return IM2COL
    if channels <= FEW:
        return NATIVE._replace(kernel_gradient="rows")
    if pixels * area * channels <= LARGE_PATCHES:
        return NATIVE._replace(kernel_gradient="im2col")
    return NATIVE


def choose_for_inference(
    image: Sequence[int], kernel: Sequence[int], window: ConvParams, bits: int = 32
) -> ConvAlgorithms:
    """As `choose`, where values alone are asked for: with few results, what counts is to read the kernel once."""
    choice, (channels, features) = choose(image, kernel, window, bits), kernel[2:]
    results = image[0] * math.prod(result_size(image, kernel, window))
    if choice == WINOGRAD and channels * features > KERNEL_SHARE * results:
        return PER_OFFSET_GEMM
    if choice.forward == "native" and kernel[0] * kernel[1] <= MAX_AREA and is_at_most(results, MANY):
        return IM2COL
    return choice
