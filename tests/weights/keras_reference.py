"""The real Keras, in a child process that imports it once and serves many tests.

Each line of the standard input is a call as JSON: the name of a function below and its arguments. A line of the
standard output has its result. Keras computes with PyTorch here, which needs no compilation.

A network is a name in `keras.applications`, "tutorial", or a shallow version of either: "shallow application" and
"shallow tutorial" have the blocks of the full networks, two in the first stage and one in the second.
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

SIZE = 64
CLASSES = 5
torch.set_num_threads(1)  # idle threads of PyTorch busy-wait


def build(network, **options):
    """Returns a network of `CLASSES` logits for images of `SIZE` pixels."""
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


def randomize(model):
    """Gives every variable random values; residual branches get small scales, as after training."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        for variable in layer.variables:
            name = variable.name
            values = rng.normal(size=variable.shape)
            if name == "kernel":
                values *= np.sqrt(2 / np.prod(variable.shape[:-1]))
            elif name == "moving_variance":
                values = np.abs(values) + 0.5
            else:
                ends_branch = layer.name.endswith(("branch2c", "3_bn"))
                values = 0.1 * values + (name == "gamma") * (0.3 if ends_branch else 1)
            variable.assign(values.astype(np.float32))


def logits_of(model, images):
    return keras.ops.convert_to_numpy(model(images, training=False))


def variables_of(model):
    """Returns {"layer/variable": array}."""
    variables = {}
    for layer in model.layers:
        for variable in layer.variables:
            variables[f"{layer.name}/{variable.name}"] = keras.ops.convert_to_numpy(variable)
    return variables


def shapes(network):
    """Returns the shape of each variable by name, without allocating the network."""
    with keras.device("meta"):
        model = build(network)
    return {f"{layer.name}/{v.name}": list(v.shape) for layer in model.layers for v in layer.variables}


def make(folder, network):
    """Saves a random network in all of Keras's formats, with its logits and running statistics.

    The logits are those of inference, the statistics those after one pass in training mode.
    """
    folder = Path(folder)
    model = build(network)
    randomize(model)
    for file_format in ("h5", "keras"):
        model.save(folder / f"keras.{file_format}")
    model.save_weights(folder / "keras.weights.h5")
    images = np.load(folder / "images.npy")
    np.save(folder / "logits.npy", logits_of(model, images))
    model(images, training=True)
    moving = {name: array for name, array in variables_of(model).items() if "/moving" in name}
    np.savez(folder / "moving.npz", **moving)


def check(folder, network):
    """Loads the project's files into Keras and saves the logits."""
    folder = Path(folder)
    images = np.load(folder / "images.npy")
    for path in folder.glob("ours.*"):
        file_format = path.name.removeprefix("ours.")
        model = build(network)
        model.load_weights(path)
        np.save(folder / f"loaded_weights_{file_format}.npy", logits_of(model, images))
        if file_format != "weights.h5":
            model = keras.saving.load_model(path)
            model.layers[-1].activation = None  # written models end in a softmax, as Keras's own do
            np.save(folder / f"loaded_model_{file_format}.npy", logits_of(model, images))
    if "tutorial" not in network:
        model = build(network, weights=str(folder / "ours.h5"))
        np.save(folder / "loaded_application.npy", logits_of(model, images))


def train(folder):
    """Loads the project's files into Keras and saves variables, logits and the weights after one training pass."""
    folder = Path(folder)
    for file_format in ("keras", "h5"):
        model = keras.saving.load_model(folder / f"weights.{file_format}", compile=False)
        np.savez(folder / f"model_{file_format}.npz", **variables_of(model))
    for file_format in ("h5", "weights.h5"):
        for variable in model.variables:
            variable.assign(np.zeros(variable.shape))
        model.load_weights(folder / f"weights.{file_format}")
        np.savez(folder / f"weights_{file_format}.npz", **variables_of(model))
    model.layers[-1].activation = None
    images = np.load(folder / "images.npy")
    np.save(folder / "logits.npy", logits_of(model, images))
    model(images, training=True)
    model.save_weights(folder / "trained.weights.h5")


def input_shape(path):
    """Returns the input shape of a saved model."""
    return keras.saving.load_model(path, compile=False).input_shape


def save_malicious(folder):
    """Saves models with a layer that makes a folder when it is executed."""
    proof = Path(folder, "executed")
    layer = keras.layers.Lambda(lambda x, path=str(proof): (__import__("os").mkdir(path), x)[1], output_shape=(8, 8, 3))
    model = keras.Sequential([keras.Input((8, 8, 3)), layer, keras.layers.Flatten(), keras.layers.Dense(3)])
    for name in ("w.keras", "w.h5"):
        model.save(Path(folder, name))
    if proof.exists():  # Keras executes the layer when it builds the model
        proof.rmdir()


FUNCTIONS = {function.__name__: function for function in (shapes, make, check, train, input_shape, save_malicious)}


def serve(output):
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            reply = {"result": FUNCTIONS[name](*arguments)}
        except Exception:
            reply = {"error": traceback.format_exc()}
        print(json.dumps(reply), file=output, flush=True)


if __name__ == "__main__":
    output = sys.stdout
    sys.stdout = sys.stderr  # Keras itself prints now and then
    serve(output)
