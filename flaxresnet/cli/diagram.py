"""`flaxresnet diagram RUN|NAME`: the tutorials' `plot_model`."""

from dataclasses import dataclass
from pathlib import Path

from flaxresnet.cli.model_args import ModelArguments, model_spec
from flaxresnet.runtime.errors import UserError
from flaxresnet.visualize.layer_table import inspect


@dataclass(frozen=True)
class Arguments(ModelArguments):
    """Draws a network, as the tutorials' plot_model(show_shapes=True, show_layer_names=True) does.

    Four files: the whole graph and an overview of one page, each as PNG and as SVG.

    Example: flaxresnet diagram resnet50 --to-file resnet.png
    """

    to_file: str = "resnet.png"
    """Where to write the whole graph; the other three get names like it. What is there is replaced."""


def main(arguments: Arguments) -> int:
    from flaxresnet.visualize.diagram import draw_graph, overview
    from flaxresnet.visualize.plot_style import save

    subject = model_spec(arguments)
    path = Path(arguments.to_file)
    if path.suffix not in (".png", ".svg"):
        raise UserError(f"--to-file {path} does not say what to draw; let its name end in .png or .svg")
    layers = inspect(subject.model, subject.image_size)
    for name, draw in ((path.stem, draw_graph), (f"{path.stem}-overview", overview)):
        figure = draw(layers, subject.title)
        for ending in (".png", ".svg"):
            target = path.with_name(name + ending)
            save(figure, target)
            print(target)
    return 0
