"""Diagrams of a network: the full graph with a box per layer, and a one-page overview with a box per group of blocks.

Matplotlib draws both. Distances are in inches, and y increases downward.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path

from flaxresnet.models.layer_graph import CHANNEL_PADDING
from flaxresnet.visualize.layer_table import LayerInfo, kind_of

ROW = 0.62  # from the top of a box to the top of the next
BOX_HEIGHT = 0.44
MAIN_WIDTH = 3.5  # of boxes on the main path
SHORTCUT_WIDTH = 3.0  # of boxes beside it
GAP = 0.75  # between the two columns; identity shortcuts run there
MARGIN = 0.4
# The overview's boxes, and the space for a heading above each example block.
STEP = 1.02
STEP_HEIGHT = 0.6
STEP_WIDTH = 3.3
HEADING = 0.55
OVERVIEW_LEFT = MARGIN + STEP_WIDTH + 1.4
TEXT_COLOR = "#222222"
SHORTCUT_COLOR = "#b3420d"
COLORS = {
    "Conv2D": "#cfe2f6",
    "BatchNormalization": "#ececec",
    "Activation": "#fdeac8",
    "Add": "#d7eed0",
    "MaxPooling2D": "#e7dbf3",
    "AveragePooling2D": "#e7dbf3",
    "GlobalAveragePooling2D": "#e7dbf3",
    "Dense": "#f8d3d8",
}


# Kind of a block's shortcut → kind of the block; the first two have the tutorials' names.
BLOCK_KINDS = {"identity": "identity block", "1×1 conv": "convolutional block", "subsample, pad": "padded block"}


class GridCell(NamedTuple):
    """Position of a layer's box.

    Attributes:
      column: 0 for the main path, 1 for shortcuts.
      row: from 0, downward.
    """

    column: int
    row: int


class Box(NamedTuple):
    """A rectangle on the page: its upper left corner and its size."""

    x: float
    y: float
    width: float
    height: float


def compute_layout(layers: Sequence[LayerInfo]) -> dict[str, GridCell]:
    """Returns a cell for each layer. The main path is column 0; a shortcut stands beside its block's first layers."""
    cells: dict[str, GridCell] = {}
    row = 0
    for _, group in groupby(layers, lambda info: info.layer.block):
        shortcut_row = row
        for info in group:
            if info.layer.block and is_shortcut(info):
                cells[info.layer.name] = GridCell(1, shortcut_row)
                shortcut_row += 1
            else:
                cells[info.layer.name] = GridCell(0, row)
                row += 1
    return cells


def _height(layers: Sequence[LayerInfo]) -> float:
    """Returns the height of the layers' layout, in inches."""
    return ROW * (1 + max(cell.row for cell in compute_layout(layers).values()))


def is_shortcut(info: LayerInfo) -> bool:
    """Returns whether the layer belongs to a block's shortcut."""
    return "_branch1" in info.layer.name


def shortcut_kind(layers: Iterable[LayerInfo]) -> str:
    """Returns the kind of a block's shortcut, a key of `BLOCK_KINDS`."""
    kinds = {info.layer.kind for info in layers if is_shortcut(info)}
    if not kinds:
        return "identity"
    return "subsample, pad" if CHANNEL_PADDING in kinds else "1×1 conv"


def draw_graph(layers: Sequence[LayerInfo], title: str) -> Figure:
    """Draws every layer with its name, kind, input and output shape, as Keras's `plot_model` does."""
    width = 2 * MARGIN + MAIN_WIDTH + GAP + SHORTCUT_WIDTH + 0.4
    figure, axes = _page(width, 2 * MARGIN + 0.4 + _height(layers))
    axes.text(MARGIN, MARGIN, title, fontsize=13, weight="bold", va="center", color=TEXT_COLOR)
    draw_layers(axes, layers, MARGIN, MARGIN + 0.4)
    return figure


def draw_layers(axes: Axes, layers: Sequence[LayerInfo], left: float, top: float) -> None:
    """Draws boxes and arrows from the upper left corner (left, top). Inputs outside `layers` get no arrow."""
    cells = compute_layout(layers)
    boxes = {name: _cell_box(cell, left, top) for name, cell in cells.items()}
    shapes = {info.layer.name: _format_shape(info.shape) for info in layers}
    for info in layers:
        name = info.layer.name
        text = shapes[name]
        inputs = [source for source in info.layer.inputs if source in cells]
        if inputs and shapes[inputs[0]] != text:
            text = f"{shapes[inputs[0]]} → {text}"
        _draw_box(axes, boxes[name], f"{name}   {kind_of(info)}", text, COLORS.get(info.layer.kind, "#ffffff"))
        for source in inputs:
            _connect(axes, cells[source], cells[name], boxes[source], boxes[name])


def _cell_box(cell: GridCell, left: float, top: float) -> Box:
    width = SHORTCUT_WIDTH if cell.column else MAIN_WIDTH
    return Box(left + cell.column * (MAIN_WIDTH + GAP), top + cell.row * ROW, width, BOX_HEIGHT)


def _connect(axes: Axes, source: GridCell, target: GridCell, start: Box, end: Box) -> None:
    """Draws an arrow between two boxes; shortcuts run beside the main path, in their own color."""
    start_middle = start.y + BOX_HEIGHT / 2
    end_middle = end.y + BOX_HEIGHT / 2
    if source.column == target.column and target.row == source.row + 1:
        center = start.x + start.width / 2
        color = SHORTCUT_COLOR if source.column else TEXT_COLOR
        _draw_arrow(axes, [(center, start.y + BOX_HEIGHT), (center, end.y)], color)
    elif source.column == target.column:  # an identity shortcut
        right = start.x + MAIN_WIDTH
        lane = right + GAP / 2
        _draw_arrow(axes, [(right, start_middle), (lane, start_middle), (lane, end_middle), (right, end_middle)])
    elif target.column:  # from the main path to a shortcut's convolution
        center = end.x + end.width / 2
        _draw_arrow(axes, [(start.x + start.width, start_middle), (center, start_middle), (center, end.y)])
    else:  # from the shortcut's convolution back to the main path
        center = start.x + start.width / 2
        points = [(center, start.y + BOX_HEIGHT), (center, end_middle), (end.x + end.width, end_middle)]
        _draw_arrow(axes, points)


def overview(layers: Sequence[LayerInfo], title: str) -> Figure:
    """Draws one page: the network as a column of boxes, and beside it the layers of the first block of each kind."""
    steps = _steps(layers)
    examples = _examples(layers)
    height = max(len(steps) * STEP, sum(_height(example) + HEADING for _, example in examples))
    width = OVERVIEW_LEFT + MAIN_WIDTH + GAP + SHORTCUT_WIDTH + MARGIN + 0.3
    figure, axes = _page(width, height + 2 * MARGIN + 0.8)
    axes.text(MARGIN, MARGIN, title, fontsize=15, weight="bold", va="center", color=TEXT_COLOR)
    top = MARGIN + 0.75
    for index, step in enumerate(steps):
        y = top + index * STEP
        _draw_box(axes, Box(MARGIN, y, STEP_WIDTH, STEP_HEIGHT), step.title, step.text, step.color)
        if index:
            center = MARGIN + STEP_WIDTH / 2
            _draw_arrow(axes, [(center, y - STEP + STEP_HEIGHT), (center, y)], TEXT_COLOR)
        if step.blocks:
            _draw_shortcut(axes, y, step)
    y = top
    for heading, example in examples:
        axes.text(OVERVIEW_LEFT, y - 0.2, heading, fontsize=11, weight="bold", va="center", color=TEXT_COLOR)
        draw_layers(axes, example, OVERVIEW_LEFT, y)
        y += _height(example) + HEADING
    return figure


class OverviewBox(NamedTuple):
    """A box of the overview: one or several layers or blocks.

    Attributes:
      title: its first line.
      text: its second line.
      color: its fill color.
      blocks: number of residual blocks in it.
      shortcut: shortcut of the blocks: "identity", "1×1 conv", or "subsample, pad" for zero-padded channels.
    """

    title: str
    text: str
    color: str
    blocks: int = 0
    shortcut: str = ""


def _steps(layers: Sequence[LayerInfo]) -> list[OverviewBox]:
    """Returns the boxes of the overview, from images to classes."""
    steps = [OverviewBox("images", _format_shape(layers[0].shape), "#ffffff")]
    by_block = [(block, list(group)) for block, group in groupby(layers, lambda info: info.layer.block)]
    (_, stem), *blocks, (_, head) = by_block
    convolution = next(info for info in stem if info.layer.kind == "Conv2D")
    window = convolution.layer.options["kernel_size"][0]
    title = f"stem: {window}×{window} convolution"
    if stem[-1].layer.kind == "MaxPooling2D":
        title += ", max-pooling"
    steps.append(OverviewBox(title, _format_shape(stem[-1].shape), COLORS["Conv2D"]))

    def stage_and_kind(item: tuple[str, list[LayerInfo]]) -> tuple[str, str]:
        name, members = item
        return name[0], shortcut_kind(members)

    for (stage, shortcut), group in groupby(blocks, stage_and_kind):
        same = list(group)
        names = [name for name, _ in same]
        kind = BLOCK_KINDS[shortcut]
        times = f" × {len(same)}" if len(same) > 1 else ""
        listed = ", ".join(names) if len(names) < 3 else f"{names[0]} … {names[-1]}"
        text = f"{listed}: {_format_shape(same[-1][1][-1].shape)}"
        color = "#eef6eb" if shortcut == "identity" else "#dfeeda"
        steps.append(OverviewBox(f"stage {stage}: {kind}{times}", text, color, len(same), shortcut))
    steps.append(OverviewBox("average pooling", _format_shape(head[0].shape), COLORS["AveragePooling2D"]))
    dense = head[-1]
    steps.append(OverviewBox(f"{dense.layer.name}: dense layer", f"{dense.shape[0]} classes", COLORS["Dense"]))
    return steps


def _examples(layers: Sequence[LayerInfo]) -> list[tuple[str, list[LayerInfo]]]:
    """Returns a heading and the layers of the first block of each kind, below the block's input layer."""
    by_name = {info.layer.name: info for info in layers}
    examples: dict[str, list[LayerInfo]] = {}
    for block, group in groupby(layers, lambda info: info.layer.block):
        members = list(group)
        if block:
            kind = BLOCK_KINDS[shortcut_kind(members)].capitalize()
            examples.setdefault(kind, [by_name[members[0].layer.inputs[0]], *members])
    return [(f"{kind}: res{examples[kind][-1].layer.block}", examples[kind]) for kind in sorted(examples)]


def _draw_shortcut(axes: Axes, y: float, step: OverviewBox) -> None:
    """Draws the shortcut beside a box of blocks, from the arrow above the box to a sum on the arrow below."""
    lane = MARGIN + STEP_WIDTH + 0.4
    center = MARGIN + STEP_WIDTH / 2
    upper = y - 0.3 * (STEP - STEP_HEIGHT)
    lower = y + STEP_HEIGHT + 0.3 * (STEP - STEP_HEIGHT)
    _draw_arrow(axes, [(center, upper), (lane, upper), (lane, lower), (center + 0.07, lower)])
    axes.add_patch(Circle((center, lower), 0.07, facecolor="white", edgecolor=SHORTCUT_COLOR, linewidth=1.2, zorder=3))
    axes.text(center, lower + 0.005, "+", fontsize=9, ha="center", va="center", color=SHORTCUT_COLOR, zorder=4)
    text = step.shortcut
    if step.blocks > 1:
        text += "\nin each"
    axes.text(lane + 0.08, (upper + lower) / 2, text, fontsize=8, color=SHORTCUT_COLOR, va="center")


def _page(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.axis("off")
    return figure, axes


def _draw_box(axes: Axes, box: Box, title: str, text: str, color: str) -> None:
    shape: Any = FancyBboxPatch(
        (box.x + 0.03, box.y + 0.03),
        box.width - 0.06,
        box.height - 0.06,
        boxstyle="round,pad=0.03,rounding_size=0.06",
        facecolor=color,
        edgecolor=TEXT_COLOR,
        linewidth=0.8,
    )
    axes.add_patch(shape)
    center = box.x + box.width / 2
    axes.text(center, box.y + box.height * 0.31, title, fontsize=8.5, ha="center", va="center", color=TEXT_COLOR)
    axes.text(center, box.y + box.height * 0.70, text, fontsize=8, ha="center", va="center", color="#444444")


def _draw_arrow(axes: Axes, points: Sequence[tuple[float, float]], color: str = SHORTCUT_COLOR) -> None:
    axes.add_patch(
        FancyArrowPatch(
            path=Path(points),
            arrowstyle="-|>",
            mutation_scale=9,
            color=color,
            linewidth=1.0 if color == TEXT_COLOR else 1.5,
            shrinkA=0,
            shrinkB=0,
            joinstyle="round",
        )
    )


def _format_shape(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
