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
from flaxresnet.visualize.layer_table import LayerInfo, inspect, kind_of

WIDTH = 100  # columns of the table at most; a narrower terminal breaks its lines


@dataclass(frozen=True)
class Arguments(ModelArguments):
    """Lists a network's layers with their output shapes, parameters and work, as the tutorials' model.summary() does.

    Example: flaxresnet summary resnet18 --variant torchvision --depth blocks
    """

    depth: Literal["layers", "blocks", "parts"] = "layers"
    """How far to unfold: every layer, blocks as one line each, or the network's parts as one line each."""


def main(arguments: Arguments) -> int:
    subject = model_spec(arguments)
    layers = inspect(subject.model, subject.image_size)
    console = Console(width=max(WIDTH, Console().width if sys.stdout.isatty() else 0))
    console.print(as_table(subject, rows(layers, arguments.depth)))
    for line in totals(layers):
        console.print(line, highlight=False)
    return 0


@dataclass(frozen=True)
class Row:
    """A line of the table: a layer, or several that stand together."""

    name: str
    kind: str
    layers: tuple[LayerInfo, ...]


def rows(layers: Iterable[LayerInfo], depth: str) -> list[Row]:
    """The table's lines, as far unfolded as asked for."""
    if depth == "layers":
        return [Row(one.layer.name, kind_of(one), (one,)) for one in layers]

    def name_of(one: LayerInfo) -> str:
        return f"res{one.layer.block}" if one.layer.block and depth == "blocks" else one.part

    grouped = ((name, tuple(group)) for name, group in groupby(layers, name_of))
    return [Row(name, group_type(group), group) for name, group in grouped]


def group_type(layers: tuple[LayerInfo, ...]) -> str:
    """What adjacent layers are together; a block as the tutorials call it."""
    blocks = {one.layer.block for one in layers}
    if blocks == {""}:
        return "convolution, pooling" if layers[0].part == "stem" else "pooling, dense layer"
    if len(blocks) > 1:
        return f"{len(blocks)} blocks"
    shortcut = any(one.layer.name.endswith("branch1") for one in layers)
    return "convolutional block" if shortcut else "identity block"


def as_table(subject: ModelSpec, lines: Iterable[Row]) -> Table:
    height, width = subject.image_size
    table = Table(
        box=box.SIMPLE,
        pad_edge=False,
        collapse_padding=True,
        title=f"{subject.title}, images of {height}×{width}",
        title_justify="left",
    )
    for heading in ("layer", "type"):
        table.add_column(heading, no_wrap=True)
    for heading in ("output shape", "parameters", "MFLOPs", "learns"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in lines:
        parameters = sum(one.parameters + one.statistics for one in row.layers)
        learning = {one.learns for one in row.layers if one.parameters}
        learns = {(): "", (True,): "yes", (False,): "no"}.get(tuple(learning), "partly")
        flops = sum(one.flops for one in row.layers)
        shape = ", ".join(map(str, ("None", *row.layers[-1].shape)))
        table.add_row(row.name, row.kind, f"({shape})", _count(parameters), _mega(flops), learns)
    return table


def totals(layers: list[LayerInfo]) -> list[str]:
    """The lines under the table: Keras's three, and the work."""
    learning = sum(one.parameters for one in layers if one.learns)
    total = sum(one.parameters + one.statistics for one in layers)
    others = "batch norm's averages" + ("" if all(one.learns for one in layers) else ", frozen parts")
    return [
        f"Total params: {total:,} ({total * 4 / 2**20:.1f} MiB as float32)",
        f"Trainable params: {learning:,}",
        f"Non-trainable params: {total - learning:,} ({others})",
        f"FLOPs of one image, forward: {sum(one.flops for one in layers):,} (a multiply-add counts as two)",
    ]


def _count(number: int) -> str:
    return f"{number:,}" if number else ""


def _mega(flops: int) -> str:
    return f"{flops / 1e6:,.2f}" if flops else ""
