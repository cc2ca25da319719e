"""`flaxresnet export RUN FILE`."""

from dataclasses import dataclass
from pathlib import Path

from flaxresnet.classifier import Classifier
from flaxresnet.cli.parser import positional
from flaxresnet.config.train_config import CheckpointChoice
from flaxresnet.runtime.errors import UserError
from flaxresnet.runtime.terminal import status


@dataclass(frozen=True)
class Arguments:
    """Writes a run as one file that runs without flaxresnet: images in, probabilities out.

    A .zip file contains metadata.json and a StableHLO program, which needs only JAX and runs on CPUs, CUDA GPUs and
    TPUs. An .onnx file is for ONNX Runtime and other ONNX tools, and contains the same metadata.

    Example: flaxresnet export runs/default signs.zip
    """

    run: str = positional("RUN")
    """Run folder (the --workdir of training)."""

    file: str = positional("FILE")
    """File to write, which ends in .zip or .onnx. Replaces an existing file."""

    preprocessing: bool = True
    """Include the pixel scaling, so that the program takes uint8 RGB images. Otherwise it takes scaled floats."""

    checkpoint: CheckpointChoice = "latest"
    """Weights to use. latest: from the last epoch; best: from the epoch with the highest test accuracy."""


def main(arguments: Arguments) -> int:
    from flaxresnet.exporting import export_onnx, export_stablehlo, metadata

    path = Path(arguments.file)
    writers = {".zip": export_stablehlo, ".onnx": export_onnx}
    if path.suffix not in writers:
        raise UserError(f"{path} has no suffix of an exported file; end the name with {' or '.join(writers)}")
    with status("Loading the run…"):
        classifier = Classifier.load(arguments.run, arguments.checkpoint)
    with status("Exporting the network…"):
        writers[path.suffix](classifier, path, arguments.preprocessing)
    about = metadata(classifier, arguments.preprocessing)
    print(f"wrote {path}, {path.stat().st_size / 2**20:.1f} MiB")
    print(f"input: (n, {about['height']}, {about['width']}, 3) {about['input']}")
    print(f"output: (n, {len(about['class_names'])}) {about['output']}")
    return 0
