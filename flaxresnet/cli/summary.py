"""`flaxresnet summary RUN|NAME`: the tutorials' `model.summary()`."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table

from flaxresnet.cli.model_args import ModelArguments, ModelSpec, model_spec
from flaxresnet.models.layer_graph import CHANNEL_PADDING
from flaxresnet.visualize.layer_table import LayerInfo, inspect, kind_of

MIN_WIDTH = 100  # columns of the table; a narrower terminal wraps its lines


@dataclass(frozen=True)
class Arguments(ModelArguments):
    """Lists a network's layers with output shapes, parameters and FLOPs, as the tutorials' model.summary() does.

    Example: flaxresnet summary resnet18 --variant torchvision --depth blocks
    """

    depth: Literal["layers", "blocks", "parts"] = "layers"
    """Unit of a line: a layer, a residual block, or a part of the network (stem, stage, head)."""


def main(arguments: Arguments) -> int:
    spec = model_spec(arguments)
    layers = inspect(spec.model, spec.image_size)
    terminal_width = Console().width if sys.stdout.isatty() else 0
    console = Console(width=max(MIN_WIDTH, terminal_width))
    console.print(as_table(spec, rows(layers, arguments.depth)))
    for line in totals(layers):
        console.print(line, highlight=False)
    return 0


@dataclass(frozen=True)
class Row:
    """A line of the table: a layer, or a group of adjacent layers."""

    name: str
    kind: str
    layers: tuple[LayerInfo, ...]


def rows(layers: Iterable[LayerInfo], depth: str) -> list[Row]:
    """Returns the lines of the table: one per layer, block or part, depending on `depth`."""
    if depth == "layers":
        return [Row(info.layer.name, kind_of(info), (info,)) for info in layers]

    def group_name(info: LayerInfo) -> str:
        return f"res{info.layer.block}" if info.layer.block and depth == "blocks" else info.part

    grouped = []
    for name, group in groupby(layers, group_name):
        members = tuple(group)
        grouped.append(Row(name, group_type(members), members))
    return grouped


def group_type(layers: tuple[LayerInfo, ...]) -> str:
    """Returns the type of a group of adjacent layers; blocks have the tutorials' names."""
    blocks = {info.layer.block for info in layers}
    if blocks == {""}:
        if layers[0].part != "stem":
            return "pooling, dense layer"
        has_pooling = any(info.layer.kind == "MaxPooling2D" for info in layers)
        return "convolution, pooling" if has_pooling else "convolution"
    if len(blocks) > 1:
        return f"{len(blocks)} blocks"
    if any(info.layer.kind == CHANNEL_PADDING for info in layers):
        return "padded block"
    has_projection = any(info.layer.name.endswith("branch1") for info in layers)
    return "convolutional block" if has_projection else "identity block"


def as_table(spec: ModelSpec, lines: Iterable[Row]) -> Table:
    """Returns the table of the layers."""
    height, width = spec.image_size
    table = Table(
        box=box.SIMPLE,
        pad_edge=False,
        collapse_padding=True,
        title=f"{spec.title}, images of {height}×{width}",
        title_justify="left",
    )
    for heading in ("layer", "type"):
        table.add_column(heading, no_wrap=True)
    for heading in ("output shape", "parameters", "MFLOPs", "trainable"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in lines:
        parameters = sum(info.parameters + info.statistics for info in row.layers)
        flops = sum(info.flops for info in row.layers)
        shape = ", ".join(map(str, ("None", *row.layers[-1].shape)))
        table.add_row(
            row.name,
            row.kind,
            f"({shape})",
            f"{parameters:,}" if parameters else "",
            f"{flops / 1e6:,.2f}" if flops else "",
            _trainable(row.layers),
        )
    return table


def _trainable(layers: Iterable[LayerInfo]) -> str:
    """Returns "yes", "no" or "partly", or "" for layers without parameters."""
    values = {info.learns for info in layers if info.parameters}
    if len(values) > 1:
        return "partly"
    return "".join("yes" if value else "no" for value in values)


def totals(layers: list[LayerInfo]) -> list[str]:
    """Returns the lines under the table: the three parameter counts that Keras prints, and the FLOPs."""
    trainable = sum(info.parameters for info in layers if info.learns)
    total = sum(info.parameters + info.statistics for info in layers)
    others = "batch norm's averages"
    if not all(info.learns for info in layers):
        others += ", frozen parts"
    return [
        f"Total params: {total:,} ({total * 4 / 2**20:.1f} MiB as float32)",
        f"Trainable params: {trainable:,}",
        f"Non-trainable params: {total - trainable:,} ({others})",
        f"FLOPs of one image, forward: {sum(info.flops for info in layers):,} (a multiply-add counts as two)",
    ]
