"""Does a network predict the same in Keras and in flaxresnet, converted in either direction?

    python benchmarks/round_trip.py DATA

The Keras tutorials' code trains a network and saves `ResNet50-1.h5`, which `flaxresnet convert` reads. Then flaxresnet
trains a network, and `flaxresnet convert` writes it as `.h5` and as `.keras`. The script prints one line for each of
the three: the test accuracy in Keras and in flaxresnet, the number of test images with the same predicted class, and
the largest difference between two probabilities. Accuracies and classes have to be equal.
"""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench_cli import begin

from flaxresnet.cli.parser import positional

HERE = Path(__file__).parent
# Writes the probabilities that a Keras file gives for a test set.
KERAS_PREDICT = """
import sys, h5py, keras, numpy as np
model = keras.saving.load_model(sys.argv[1], compile=False)
images = h5py.File(sys.argv[2])["test_set_x"][:] / 255
np.save(sys.argv[3], model.predict(images, batch_size=34, verbose=0))
"""


@dataclass(frozen=True)
class Arguments:
    """Converts trained networks from Keras to flaxresnet and back, and compares their predictions.

    Example: python benchmarks/round_trip.py datasets/
    """

    data: Path = positional("DATA")
    """Folder with train_signs.h5 and test_signs.h5."""

    epochs: int = 1
    """Epochs of training, in flaxresnet and in Keras."""


def main(arguments: Arguments) -> None:
    train, test = (str(arguments.data / f"{split}_signs.h5") for split in ("train", "test"))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        epochs = str(arguments.epochs)
        run(str(HERE / "keras_tutorial.py"), train, test, epochs, "0", str(work / "ResNet50-1.h5"))
        run("-m", "flaxresnet", "convert", str(work / "ResNet50-1.h5"), str(work / "from-keras"))
        compare("trained in Keras", work / "from-keras", work / "ResNet50-1.h5", test)

        flags = ["--recipe", "tutorial", "--epochs", epochs, "--workdir", str(work / "ours")]
        run(str(HERE.parent / "train.py"), "--data", str(arguments.data), *flags)
        for kind in ("h5", "keras"):
            run("-m", "flaxresnet", "convert", str(work / "ours"), str(work / f"ours.{kind}"))
            compare(f"trained in flaxresnet, as .{kind}", work / "ours", work / f"ours.{kind}", test)


def run(*arguments: str) -> None:
    """Runs Python with these arguments; Keras uses TensorFlow unless KERAS_BACKEND names another backend."""
    backend = {"KERAS_BACKEND": os.environ.get("KERAS_BACKEND", "tensorflow"), "TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run([sys.executable, *arguments], check=True, env=os.environ | backend)


def compare(name: str, run_dir: Path, keras_file: Path, test: str) -> None:
    """Prints how the predictions of a run folder and of a Keras file for the same test images differ."""
    import flaxresnet as fr

    output = keras_file.with_suffix(".npy")
    run("-c", KERAS_PREDICT, str(keras_file), test, str(output))
    keras = np.load(output)
    data = fr.open_dataset(test).test
    ours = fr.Classifier.load(run_dir).probabilities(data.images)
    print(
        f"{name}: test accuracy {np.mean(keras.argmax(1) == data.labels):.4f} in Keras, "
        f"{np.mean(ours.argmax(1) == data.labels):.4f} in flaxresnet; "
        f"{np.sum(keras.argmax(1) == ours.argmax(1))} of {len(data)} classes equal, "
        f"probabilities at most {np.abs(keras - ours).max():.1e} apart"
    )


if __name__ == "__main__":
    begin(main, Arguments)
