"""`flaxresnet demo RUN`."""

from dataclasses import dataclass
from pathlib import Path

from flaxresnet.cli.parser import positional
from flaxresnet.config.train_config import CheckpointChoice
from flaxresnet.data.dataset import Dataset
from flaxresnet.runtime.compilation_cache import use_compilation_cache
from flaxresnet.runtime.errors import UserError
from flaxresnet.runtime.terminal import status


@dataclass(frozen=True)
class Arguments:
    """Serves a web page that classifies images from a file or the camera, with a Grad-CAM heatmap.

    Requires gradio: pip install 'flaxresnet[demo]'. Uploads stay on this computer. The server deletes them after about
    an hour, and deletes the oldest ones earlier if they exceed 200 MiB or 1,000 files.

    Example: flaxresnet demo runs/default
    """

    run: str = positional("RUN")
    """Run folder (the --workdir of training)."""

    checkpoint: CheckpointChoice = "latest"
    """Weights to use. latest: from the last epoch; best: from the epoch with the highest test accuracy."""

    host: str = "127.0.0.1"
    """Address to listen on. Only this computer can reach the default; give 0.0.0.0 for access from the network."""

    port: int = 7860
    """Port to listen on; 0 selects a free port."""


def main(arguments: Arguments) -> int:
    with status("Loading the run…"):
        from flaxresnet.classifier import Classifier
        from flaxresnet.demo.page import make_page, serve

        if not 0 <= arguments.port < 2**16:
            raise UserError(f"--port must be between 0 and 65535, not {arguments.port}")
        use_compilation_cache()
        classifier = Classifier.load(arguments.run, arguments.checkpoint)
    title = Path(arguments.run).absolute().resolve().name  # the page shows no other part of the path
    with status("Starting the server…"):
        page = make_page(classifier, title, examples_of(arguments.run))
        address = serve(page, arguments.host, arguments.port)
    print(f"{address} (press Ctrl-C to stop)", flush=True)
    page.block_thread()
    return 0


def examples_of(run: str) -> Dataset | None:
    """Returns the run's test images, or None if its data are not available."""
    from flaxresnet.evaluation import load_training_data

    try:
        return load_training_data(run, "test").test
    except UserError:
        return None
