"""`flaxresnet demo RUN`."""

from dataclasses import dataclass
from pathlib import Path

from flaxresnet.cli.parser import positional
from flaxresnet.config.train_config import CheckpointChoice
from flaxresnet.data.dataset import Dataset
from flaxresnet.runtime.compilation_cache import use_compilation_cache
from flaxresnet.runtime.errors import UserError


@dataclass(frozen=True)
class Arguments:
    """Serves a page to try a run on: drop a picture or use the camera, see the classes and what speaks for them.

    Needs gradio: pip install 'flaxresnet[demo]'. What is uploaded stays on this computer, for an hour or so, and up
    to 200 MiB of it.

    Example: flaxresnet demo runs/default
    """

    run: str = positional("RUN")
    """Folder of the run (train.py's --workdir)."""

    checkpoint: CheckpointChoice = "latest"
    """The weights after the last epoch, or those that were best on the test images."""

    host: str = "127.0.0.1"
    """Address to listen at. Left out: this computer alone; 0.0.0.0 is for all that can reach it."""

    port: int = 7860
    """Port to listen at; 0 takes one that is free."""


def main(arguments: Arguments) -> int:
    from flaxresnet.classifier import Classifier
    from flaxresnet.demo.page import make_page, serve

    if not 0 <= arguments.port < 2**16:
        raise UserError(f"--port must be between 0 and 65535, not {arguments.port}")
    use_compilation_cache()
    classifier = Classifier.load(arguments.run, arguments.checkpoint)
    title = Path(arguments.run).absolute().resolve().name  # and nothing of where it lies
    page = make_page(classifier, title, examples_of(arguments.run))
    serve(page, arguments.host, arguments.port)
    return 0


def examples_of(run: str) -> Dataset | None:
    """The test images that the run was trained beside; None where they are not here any more."""
    from flaxresnet.evaluation import load_training_data

    try:
        return load_training_data(run, "test").test
    except UserError:
        return None
