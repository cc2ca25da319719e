"""A network there and back: `python benchmarks/round_trip.py DATA`.

The Keras tutorials' own code trains for an epoch and saves `ResNet50-1.h5`; converted, it has to give the same test
accuracy and the same answer for each picture here. Then a network trained here is written
for Keras, and compared as well.
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
# Prints nothing and writes the probabilities that a Keras file gives for a test set.
ANSWER = """
import sys, h5py, keras, numpy as np
model = keras.saving.load_model(sys.argv[1], compile=False)
images = h5py.File(sys.argv[2])["test_set_x"][:] / 255
np.save(sys.argv[3], model.predict(images, batch_size=34, verbose=0))
"""


@dataclass(frozen=True)
class Arguments:
    """Carries trained networks from Keras to flaxresnet and back, and compares their answers.

    Example: python benchmarks/round_trip.py datasets/
    """

    data: Path = positional("DATA")
    """Folder with train_signs.h5 and test_signs.h5."""

    epochs: int = 1
    """Of training, here and in Keras."""


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
            compare(f"trained here, as .{kind}", work / "ours", work / f"ours.{kind}", test)


def run(*words: str) -> None:
    backend = {"KERAS_BACKEND": os.environ.get("KERAS_BACKEND", "tensorflow"), "TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run([sys.executable, *words], check=True, env=os.environ | backend)


def compare(what: str, ours: Path, theirs: Path, test: str) -> None:
    """Says how a run's folder and a Keras file answer for the same pictures."""
    import flaxresnet as fr

    answers = theirs.with_suffix(".npy")
    run("-c", ANSWER, str(theirs), test, str(answers))
    keras, data = np.load(answers), fr.open_dataset(test).test
    here = fr.Classifier.load(ours).probabilities(data.images)
    same = (keras.argmax(1) == here.argmax(1)).sum()
    accuracies = [float((of.argmax(1) == data.labels).mean()) for of in (keras, here)]
    print(
        f"{what}: test accuracy {accuracies[0]:.4f} in Keras, {accuracies[1]:.4f} here; "
        f"{same} of {len(data)} answers the same, probabilities at most {np.abs(keras - here).max():.1e} apart"
    )


if __name__ == "__main__":
    begin(main, Arguments)
