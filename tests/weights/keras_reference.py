"""What the real Keras does, in a process of its own that imports it once and serves many tests.

Each line of the standard input asks for one thing, as JSON: the name of a function below and its arguments; a line of
the standard output answers. Keras computes with PyTorch here, which has nothing to compile.

A network is a name in `keras.applications`, "tutorial", or one of the two shallow ones, which have the blocks of the
real ones, two in the first stage and one in the second: "shallow application" and "shallow tutorial".
"""

import json
import os
import sys
import traceback
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import keras
import numpy as np
import torch
from keras.src.applications import resnet
from keras_network import block, keras_resnet50

SIZE, CLASSES = 64, 5
torch.set_num_threads(1)  # what waits for others takes time of a core as well
TUTORIALS = ("tutorial", "shallow tutorial")


def build(network, **options):
    if network == "tutorial":
        return keras_resnet50(classes=CLASSES, size=SIZE)
    if network == "shallow tutorial":
        return shallow_tutorial()
    options = {"weights": None, "input_shape": (SIZE, SIZE, 3), "classes": CLASSES} | options
    if network == "shallow application":
        return resnet.ResNet(shallow_stages, False, True, classifier_activation=None, **options)
    return getattr(keras.applications, network)(classifier_activation=None, **options)


def shallow_stages(x):
    x = resnet.stack_residual_blocks_v1(x, 64, 2, stride1=1, name="conv2")
    return resnet.stack_residual_blocks_v1(x, 128, 1, name="conv3")


def shallow_tutorial(width=8):
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.ZeroPadding2D(3)(inputs)
    x = keras.layers.Conv2D(width, 7, strides=2, name="conv1")(x)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization(name="bn_conv1")(x))
    x = keras.layers.MaxPooling2D(3, strides=2)(x)
    x = block(x, width, "2a", 1, project=True)
    x = block(x, width, "2b", 1, project=False)
    x = block(x, 2 * width, "3a", 2, project=True)
    x = keras.layers.Flatten()(keras.layers.AveragePooling2D(2)(x))
    return keras.Model(inputs, keras.layers.Dense(CLASSES, name=f"fc{CLASSES}")(x))


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


def shapes(network):
    """The shape of each variable by its name, of a network that is described and never made."""
    with keras.device("meta"):
        model = build(network)
    return {f"{layer.name}/{v.name}": list(v.shape) for layer in model.layers for v in layer.variables}


def make(folder, network):
    """Draws a network, saves it in all of Keras's formats, and writes what it answers.

    That is its logits in inference and its running statistics after one pass in training mode.
    """
    folder, model = Path(folder), build(network)
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
    """Loads the files that are ours and writes what they answer."""
    folder = Path(folder)
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
    if network not in TUTORIALS:
        model = build(network, weights=str(folder / "ours.h5"))
        np.save(folder / "loaded_application.npy", answers(model, images))


def learn(folder):
    """Loads a network of ours from all formats, and writes what it holds, what it answers, and what it learns.

    That is its variables after each file, its logits, and a file of weights after one pass in training mode.
    """
    folder = Path(folder)
    for kind in ("keras", "h5"):
        model = keras.saving.load_model(folder / f"weights.{kind}", compile=False)
        np.savez(folder / f"model_{kind}.npz", **held(model))
    for kind in ("h5", "weights.h5"):
        for variable in model.variables:
            variable.assign(np.zeros(variable.shape))
        model.load_weights(folder / f"weights.{kind}")
        np.savez(folder / f"weights_{kind}.npz", **held(model))
    model.layers[-1].activation = None
    images = np.load(folder / "images.npy")
    np.save(folder / "logits.npy", answers(model, images))
    model(images, training=True)
    model.save_weights(folder / "passed.weights.h5")


def held(model):
    named = ((f"{layer.name}/{v.name}", v) for layer in model.layers for v in layer.variables)
    return {name: keras.ops.convert_to_numpy(variable) for name, variable in named}


def input_shape(path):
    """The shape of the images that a saved model takes."""
    return keras.saving.load_model(path, compile=False).input_shape


def harm(folder):
    """Saves models with a layer that makes a folder wherever it is executed."""
    done = Path(folder, "harm-was-done")
    layer = keras.layers.Lambda(
        lambda x, place=str(done): (__import__("os").mkdir(place), x)[1], output_shape=(8, 8, 3)
    )
    model = keras.Sequential([keras.Input((8, 8, 3)), layer, keras.layers.Flatten(), keras.layers.Dense(3)])
    for name in ("w.keras", "w.h5"):
        model.save(Path(folder, name))
    if done.exists():  # by Keras, when the model was built
        done.rmdir()


FUNCTIONS = {function.__name__: function for function in (shapes, make, check, learn, input_shape, harm)}


def serve(said):
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            answer = {"answer": FUNCTIONS[name](*arguments)}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=said, flush=True)


if __name__ == "__main__":
    answers_go_to, sys.stdout = sys.stdout, sys.stderr  # Keras itself prints now and then
    serve(answers_go_to)
