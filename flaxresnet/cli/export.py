"""`flaxresnet export RUN FILE`."""

from dataclasses import dataclass
from pathlib import Path

from flaxresnet.classifier import Classifier
from flaxresnet.cli.parser import positional
from flaxresnet.config.train_config import CheckpointChoice
from flaxresnet.runtime.errors import UserError


@dataclass(frozen=True)
class Arguments:
    """Writes a run as one file that runs without flaxresnet: images in, probabilities out.

    A .zip holds StableHLO for CPUs, CUDA GPUs and TPUs, which JAX runs, and metadata.json; an .onnx is for ONNX Runtime
    and others, with the metadata inside.

    Example: flaxresnet export runs/default signs.zip
    """

    run: str = positional("RUN")
    """Folder of the run (train.py's --workdir)."""

    file: str = positional("FILE")
    """A name that ends in .zip or .onnx. What is there is replaced."""

    preprocessing: bool = True
    """The program takes uint8 RGB images and scales them; otherwise floats, scaled by the caller."""

    checkpoint: CheckpointChoice = "latest"
    """The weights after the last epoch, or those that were best on the test images."""


def main(arguments: Arguments) -> int:
    from flaxresnet.exporting import export_onnx, export_stablehlo, metadata

    path = Path(arguments.file)
    writers = {".zip": export_stablehlo, ".onnx": export_onnx}
    if path.suffix not in writers:
        raise UserError(f"{path} does not say what to write; let its name end in {' or '.join(writers)}")
    classifier = Classifier.load(arguments.run, arguments.checkpoint)
    writers[path.suffix](classifier, path, arguments.preprocessing)
    about = metadata(classifier, arguments.preprocessing)
    takes = f"(n, {about['height']}, {about['width']}, 3) {about['input']}"
    gives = f"(n, {len(about['class_names'])}) {about['output']}"
    print(f"{path}, {path.stat().st_size / 2**20:.1f} MiB: {takes} → {gives}")
    return 0
