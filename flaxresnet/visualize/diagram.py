"""Pictures of a network: the whole graph, a box a layer, and an overview of one page in which blocks fold.

Drawn with Matplotlib alone. Distances are in inches, y grows downwards.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path

from flaxresnet.visualize.layer_table import LayerInfo, kind_of

ROW, BOX = 0.62, 0.44  # from box to box, and a box's height
WIDE, SIDE = 3.5, 3.0  # widths of boxes on the main path and beside it
GAP = 0.75  # between the two columns, where shortcuts run
MARGIN = 0.4
# Of the overview: its boxes, and what is written over the examples beside them.
STEP, STEP_HIGH, STEP_WIDE, HEADING = 1.02, 0.6, 3.3, 0.55
OVERVIEW_LEFT = MARGIN + STEP_WIDE + 1.4
INK, SHORTCUT = "#222222", "#b3420d"
COLOURS = {
    "Conv2D": "#cfe2f6",
    "BatchNormalization": "#ececec",
    "Activation": "#fdeac8",
    "Add": "#d7eed0",
    "MaxPooling2D": "#e7dbf3",
    "AveragePooling2D": "#e7dbf3",
    "GlobalAveragePooling2D": "#e7dbf3",
    "Dense": "#f8d3d8",
}


class GridCell(NamedTuple):
    """Where a layer's box is: 0, the main path, or 1, beside it; and in which row."""

    column: int
    row: int


def compute_layout(layers: Sequence[LayerInfo]) -> dict[str, GridCell]:
    """A place for each layer: the main path one under the other, a block's shortcut beside its first layers."""
    places: dict[str, GridCell] = {}
    row = 0
    for _, group in groupby(layers, lambda one: one.layer.block):
        start = row
        beside = start
        for one in group:
            if one.layer.block and is_shortcut(one):
                places[one.layer.name] = GridCell(1, beside)
                beside += 1
            else:
                places[one.layer.name] = GridCell(0, row)
                row += 1
    return places


def _height(layers: Sequence[LayerInfo]) -> float:
    """Of the boxes, one under the other."""
    return ROW * (1 + max(place.row for place in compute_layout(layers).values()))


def is_shortcut(one: LayerInfo) -> bool:
    return "_branch1" in one.layer.name


def draw_graph(layers: Sequence[LayerInfo], title: str) -> Figure:
    """Every layer with its name, kind and the shapes of what it takes and gives, as Keras's `plot_model` draws it."""
    figure, axes = _page(2 * MARGIN + WIDE + GAP + SIDE + 0.4, 2 * MARGIN + 0.4 + _height(layers))
    axes.text(MARGIN, MARGIN, title, fontsize=13, weight="bold", va="center", color=INK)
    draw_layers(axes, layers, MARGIN, MARGIN + 0.4)
    return figure


def draw_layers(axes: Axes, layers: Sequence[LayerInfo], left: float, top: float) -> None:
    """Boxes and arrows of layers, from a corner down; there is no arrow from layers that are not among them."""
    places = compute_layout(layers)
    shapes = {one.layer.name: one.shape for one in layers}
    for one in layers:
        place = places[one.layer.name]
        x, y = _corner(place, left, top)
        taken = [_times(shapes[name]) for name in one.layer.inputs if name in shapes]
        words = f"{taken[0]} → {_times(one.shape)}" if taken and taken[0] != _times(one.shape) else _times(one.shape)
        width = SIDE if place.column else WIDE
        _box(axes, x, y, width, f"{one.layer.name}   {kind_of(one)}", words, COLOURS.get(one.layer.kind, "#ffffff"))
        for name in one.layer.inputs:
            if name in places:
                _join(axes, places[name], place, left, top)


def _corner(place: GridCell, left: float, top: float) -> tuple[float, float]:
    return left + place.column * (WIDE + GAP), top + place.row * ROW


def _join(axes: Axes, source: GridCell, target: GridCell, left: float, top: float) -> None:
    """An arrow from box to box; what skips layers runs beside them, in its own colour."""
    (x0, y0), (x1, y1) = _corner(source, left, top), _corner(target, left, top)
    if source.column == target.column and target.row == source.row + 1:
        middle = x0 + (SIDE if source.column else WIDE) / 2
        _arrow(axes, [(middle, y0 + BOX), (middle, y1)], SHORTCUT if source.column else INK)
    elif source.column == target.column:  # an identity shortcut
        lane = x0 + WIDE + GAP / 2
        _arrow(axes, [(x0 + WIDE, y0 + BOX / 2), (lane, y0 + BOX / 2), (lane, y1 + BOX / 2), (x1 + WIDE, y1 + BOX / 2)])
    elif target.column:  # out to a shortcut's convolution
        _arrow(axes, [(x0 + WIDE, y0 + BOX / 2), (x1 + SIDE / 2, y0 + BOX / 2), (x1 + SIDE / 2, y1)])
    else:  # and back
        _arrow(axes, [(x0 + SIDE / 2, y0 + BOX), (x0 + SIDE / 2, y1 + BOX / 2), (x1 + WIDE, y1 + BOX / 2)])


def overview(layers: Sequence[LayerInfo], title: str) -> Figure:
    """One page: the parts from images to classes with blocks folded, and beside them what is inside the blocks."""
    steps = _steps(layers)
    kinds = _examples(layers)
    inside = [compute_layout(example) for _, example in kinds]
    height = max(len(steps) * STEP, sum((1 + max(p.row for p in places.values())) * ROW + HEADING for places in inside))
    figure, axes = _page(OVERVIEW_LEFT + WIDE + GAP + SIDE + MARGIN + 0.3, height + 2 * MARGIN + 0.8)
    axes.text(MARGIN, MARGIN, title, fontsize=15, weight="bold", va="center", color=INK)
    top = MARGIN + 0.75
    for index, step in enumerate(steps):
        y = top + index * STEP
        _box(axes, MARGIN, y, STEP_WIDE, step.title, step.words, step.colour, height=STEP_HIGH)
        if index:
            middle = MARGIN + STEP_WIDE / 2
            _arrow(axes, [(middle, y - STEP + STEP_HIGH), (middle, y)], INK)
        if step.blocks:
            _skip(axes, y, step)
    y = top
    for heading, example in kinds:
        axes.text(OVERVIEW_LEFT, y - 0.2, heading, fontsize=11, weight="bold", va="center", color=INK)
        draw_layers(axes, example, OVERVIEW_LEFT, y)
        y += _height(example) + HEADING
    return figure


class OverviewBox(NamedTuple):
    """A box of the overview: one or several layers or blocks.

    Attributes:
      title, words: its two lines.
      colour: its face.
      blocks: how many residual blocks it stands for.
      projects: whether their shortcut has a convolution.
    """

    title: str
    words: str
    colour: str
    blocks: int = 0
    projects: bool = False


def _steps(layers: Sequence[LayerInfo]) -> list[OverviewBox]:
    steps = [OverviewBox("images", _times(layers[0].shape), "#ffffff")]
    by_block = [(block, list(group)) for block, group in groupby(layers, lambda one: one.layer.block)]
    stem, *blocks, head = by_block
    convolution = next(one for one in stem[1] if one.layer.kind == "Conv2D")
    pooling = stem[1][-1]
    window = convolution.layer.options["kernel_size"][0]
    steps.append(
        OverviewBox(f"stem: {window}×{window} convolution, max-pooling", _times(pooling.shape), COLOURS["Conv2D"])
    )

    def folded(item: tuple[str, list[LayerInfo]]) -> tuple[str, bool]:
        return item[0][0], any(map(is_shortcut, item[1]))

    for (stage, projects), group in groupby(blocks, folded):
        same = list(group)
        names = [name for name, _ in same]
        kind = "convolutional block" if projects else "identity block"
        times = f" × {len(same)}" if len(same) > 1 else ""
        listed = ", ".join(names) if len(names) < 3 else f"{names[0]} … {names[-1]}"
        shape = _times(same[-1][1][-1].shape)
        colour = "#dfeeda" if projects else "#eef6eb"
        steps.append(OverviewBox(f"stage {stage}: {kind}{times}", f"{listed}: {shape}", colour, len(same), projects))
    pooled = head[1][0]
    steps.append(OverviewBox("average pooling", _times(pooled.shape), COLOURS["AveragePooling2D"]))
    dense = head[1][-1]
    steps.append(OverviewBox(f"{dense.layer.name}: dense layer", f"{dense.shape[0]} classes", COLOURS["Dense"]))
    return steps


def _examples(layers: Sequence[LayerInfo]) -> list[tuple[str, list[LayerInfo]]]:
    """The first block of each kind, under the layer that it takes."""
    hash_split = {one.layer.name: one for one in layers}
    found: dict[bool, list[LayerInfo]] = {}
    for block, group in groupby(layers, lambda one: one.layer.block):
        members = list(group)
        if block:
            taken = hash_split[members[0].layer.inputs[0]]
            found.setdefault(any(map(is_shortcut, members)), [taken, *members])
    names = {True: "A convolutional block", False: "An identity block"}
    return [
        (f"{names[kind]}: res{found[kind][-1].layer.block}", found[kind]) for kind in (True, False) if kind in found
    ]


def _skip(axes: Axes, y: float, step: OverviewBox) -> None:
    """The shortcut beside a folded block, from the line above it to a sum on the line below."""
    lane, middle = MARGIN + STEP_WIDE + 0.4, MARGIN + STEP_WIDE / 2
    upper, lower = y - 0.3 * (STEP - STEP_HIGH), y + STEP_HIGH + 0.3 * (STEP - STEP_HIGH)
    _arrow(axes, [(middle, upper), (lane, upper), (lane, lower), (middle + 0.07, lower)])
    axes.add_patch(Circle((middle, lower), 0.07, facecolor="white", edgecolor=SHORTCUT, linewidth=1.2, zorder=3))
    axes.text(middle, lower + 0.005, "+", fontsize=9, ha="center", va="center", color=SHORTCUT, zorder=4)
    words = ("1×1 conv" if step.projects else "unchanged") + ("\nin each" if step.blocks > 1 else "")
    axes.text(lane + 0.08, (upper + lower) / 2, words, fontsize=8, color=SHORTCUT, va="center")


def _page(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.axis("off")
    return figure, axes


def _box(
    axes: Axes, x: float, y: float, width: float, title: str, words: str, colour: str, height: float = BOX
) -> None:
    shape: Any = FancyBboxPatch(
        (x + 0.03, y + 0.03),
        width - 0.06,
        height - 0.06,
        boxstyle="round,pad=0.03,rounding_size=0.06",
        facecolor=colour,
        edgecolor=INK,
        linewidth=0.8,
    )
    axes.add_patch(shape)
    axes.text(x + width / 2, y + height * 0.31, title, fontsize=8.5, ha="center", va="center", color=INK)
    axes.text(x + width / 2, y + height * 0.70, words, fontsize=8, ha="center", va="center", color="#444444")


def _arrow(axes: Axes, points: Sequence[tuple[float, float]], colour: str = SHORTCUT) -> None:
    axes.add_patch(
        FancyArrowPatch(
            path=Path(points),
            arrowstyle="-|>",
            mutation_scale=9,
            color=colour,
            linewidth=1.0 if colour == INK else 1.5,
            shrinkA=0,
            shrinkB=0,
            joinstyle="round",
        )
    )


def _times(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
