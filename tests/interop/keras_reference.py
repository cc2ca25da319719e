"""What the real Keras does, in a process of its own: `python keras_reference.py make|check FOLDER NETWORK`.

Keras computes with PyTorch here, which has nothing to compile. NETWORK is a name in `keras.applications` or "tutorial".
`make` draws a network, saves it in all of Keras's formats, and writes what it answers: its logits in inference and its
running statistics after one pass in training mode. `check` loads the files that are ours and writes what they answer.
"""

import os
import sys
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import keras
import numpy as np
from keras_network import keras_resnet50

SIZE, CLASSES = 64, 5


def build(network, **options):
    if network == "tutorial":
        return keras_resnet50(classes=CLASSES, size=SIZE)
    application = getattr(keras.applications, network)
    options = {"weights": None, "input_shape": (SIZE, SIZE, 3), "classes": CLASSES} | options
    return application(classifier_activation=None, **options)


def randomise(model):
    """Every variable away from its start; residual branches end small, as after training."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        for variable in layer.variables:
            name, values = variable.name, rng.normal(size=variable.shape)
            if name == "kernel":
                values *= np.sqrt(2 / np.prod(variable.shape[:-1]))
            elif name == "moving_variance":
                values = np.abs(values) + 0.5
            else:
                last = layer.name.endswith(("branch2c", "3_bn"))
                values = 0.1 * values + (name == "gamma") * (0.3 if last else 1)
            variable.assign(values.astype(np.float32))


def answers(model, images):
    return keras.ops.convert_to_numpy(model(images, training=False))


def make(folder, network):
    model = build(network)
    randomise(model)
    for kind in ("h5", "keras"):
        model.save(folder / f"theirs.{kind}")
    model.save_weights(folder / "theirs.weights.h5")
    images = np.load(folder / "images.npy")
    np.save(folder / "logits.npy", answers(model, images))
    model(images, training=True)
    moving = {
        f"{layer.name}/{v.name}": keras.ops.convert_to_numpy(v)
        for layer in model.layers
        for v in layer.variables
        if v.name.startswith("moving")
    }
    np.savez(folder / "moving.npz", **moving)


def check(folder, network):
    images = np.load(folder / "images.npy")
    for path in folder.glob("ours.*"):
        kind = path.name.removeprefix("ours.")
        model = build(network)
        model.load_weights(path)
        np.save(folder / f"loaded_weights_{kind}.npy", answers(model, images))
        if kind != "weights.h5":
            model = keras.saving.load_model(path)
            model.layers[-1].activation = None  # what we write ends in a softmax, as Keras's own models do
            np.save(folder / f"loaded_model_{kind}.npy", answers(model, images))
    if network != "tutorial":
        model = build(network, weights=str(folder / "ours.h5"))
        np.save(folder / "loaded_application.npy", answers(model, images))


if __name__ == "__main__":
    {"make": make, "check": check}[sys.argv[1]](Path(sys.argv[2]), sys.argv[3])
