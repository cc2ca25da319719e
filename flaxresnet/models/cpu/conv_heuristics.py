"""Which form of a convolution (`conv_algorithms.py`, `winograd.py`) is fastest on a CPU, from its shapes.

`benchmarks/conv_lowering.py` measures what the rule rests on; `benchmarks/RESULTS.md` has runs of it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from flaxresnet.models.cpu.conv_algorithms import (
    Forward,
    Gradient,
    Window,
    by_input,
    by_kernel,
    few,
    native,
    patches,
    patches_kernel_gradient,
    pointwise,
    result_size,
    rows_kernel_gradient,
    share_of_taps,
    taps,
    taps_input_gradient,
    taps_kernel_gradient,
)
from flaxresnet.models.cpu.winograd import winograd, winograd_input_gradient, winograd_kernel_gradient

FORWARD: dict[str, Forward] = {
    "native": native,
    "pointwise": pointwise,
    "patches": patches,
    "taps": taps,
    "winograd": winograd,
}
INPUT_GRADIENT: dict[str, Gradient] = {name: by_input(form) for name, form in FORWARD.items()} | {
    "taps": taps_input_gradient,
    "winograd": winograd_input_gradient,
}
KERNEL_GRADIENT: dict[str, Gradient] = {name: by_kernel(form) for name, form in FORWARD.items()} | {
    "patches": patches_kernel_gradient,
    "taps": taps_kernel_gradient,
    "winograd": winograd_kernel_gradient,
    "rows": rows_kernel_gradient,
}


class Choice(NamedTuple):
    """Names of the forms (`conv_algorithms.py`) for the values and the two gradients."""

    forward: str
    input_gradient: str
    kernel_gradient: str


NATIVE = Choice("native", "native", "native")
POINTWISE = Choice("pointwise", "pointwise", "pointwise")
PATCHES = Choice("patches", "patches", "patches")
TAPS = Choice("taps", "taps", "taps")
WINOGRAD = Choice("winograd", "winograd", "winograd")

LARGEST_AREA = 49  # of a kernel whose places are taken apart: each is an operation of its own in the program
IN_PADDING = 0.5  # share of taps on pixels up to which one product a tap beats patches, half of which are zeros then
SMALL = 36  # pixels of the result up to which patches win in all three
WIDE = 32  # channels and features from which Winograd's products outweigh its transforms
MANY = 500  # pixels of all results from which Winograd's products outweigh the transform of the kernel
KERNEL_SHARE = 32  # channels × features for each pixel of all results up to which that holds in inference as well
FEW = 8  # channels up to which an image's rows, not its patches, are laid out for the kernel's gradient
LARGE_PATCHES = 400_000  # elements of an image's patches (pixels × kernel × channels) that still pay for its gradient


def choose(image: Sequence[int], kernel: Sequence[int], window: Window, bits: int = 32) -> Choice:
    """The forms for a CPU, from the shapes of images (batch, h, w, channels) and kernel, and the bits of a number."""
    area, channels, features = kernel[0] * kernel[1], *kernel[2:]
    pixels = math.prod(result_size(image, kernel, window))
    pads = [pad for pair in window.pads for pad in pair]
    if area == 1 and not any(pads):
        return POINTWISE
    if area > LARGEST_AREA:
        return NATIVE
    if share_of_taps(image, kernel, window) <= IN_PADDING:
        return TAPS
    winograd_can = (*kernel[:2], *window.strides) == (3, 3, 1, 1) and set(pads) <= {0, 1, 2} and bits >= 32
    many = isinstance(image[0], int) and image[0] * pixels >= MANY  # an exported program's number of images is a symbol
    if winograd_can and min(channels, features) >= WIDE and many:
        return WINOGRAD
    if pixels <= SMALL:
        return PATCHES
    if channels <= FEW:
        return NATIVE._replace(kernel_gradient="rows")
    if pixels * area * channels <= LARGE_PATCHES:
        return NATIVE._replace(kernel_gradient="patches")
    return NATIVE


def choose_for_inference(image: Sequence[int], kernel: Sequence[int], window: Window, bits: int = 32) -> Choice:
    """As `choose`, where values alone are asked for: with few results, what counts is to read the kernel once."""
    choice, (channels, features) = choose(image, kernel, window, bits), kernel[2:]
    results = image[0] * math.prod(result_size(image, kernel, window))
    if choice == WINOGRAD and channels * features > KERNEL_SHARE * results:
        return TAPS
    if choice.forward == "native" and kernel[0] * kernel[1] <= LARGEST_AREA and few(results, MANY):
        return PATCHES
    return choice
