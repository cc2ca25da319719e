"""`flaxresnet diagram RUN|NAME`: the tutorials' `plot_model`."""

from dataclasses import dataclass
from pathlib import Path

from flaxresnet.cli.model_args import ModelArguments, model_spec
from flaxresnet.runtime.errors import UserError
from flaxresnet.runtime.terminal import status
from flaxresnet.visualize.layer_table import inspect


@dataclass(frozen=True)
class Arguments(ModelArguments):
    """Draws a network, as the tutorials' plot_model(show_shapes=True, show_layer_names=True) does.

    Writes four files: the full graph and a one-page overview, each as PNG and as SVG.

    Example: flaxresnet diagram resnet50 --to-file resnet.png
    """

    to_file: str = "resnet.png"
    """Name of the full graph's file, .png or .svg. The other three names derive from it. Replaces existing files."""


def main(arguments: Arguments) -> int:
    from flaxresnet.visualize.diagram import draw_graph, overview
    from flaxresnet.visualize.plot_style import save

    spec = model_spec(arguments)
    path = Path(arguments.to_file)
    if path.suffix not in (".png", ".svg"):
        raise UserError(f"--to-file {path} has no suffix of an image; end the name with .png or .svg")
    written = []
    with status("Drawing the network…"):
        layers = inspect(spec.model, spec.image_size)
        for name, draw in ((path.stem, draw_graph), (f"{path.stem}-overview", overview)):
            figure = draw(layers, spec.title)
            for suffix in (".png", ".svg"):
                target = path.with_name(name + suffix)
                save(figure, target)
                written.append(target)
    for target in written:
        print(f"wrote {target}")
    return 0
