"""How accurate does the Keras tutorials' code become? `time_to_accuracy.py` and `round_trip.py` run this script.

    python benchmarks/keras_tutorial.py TRAIN_H5 TEST_H5 EPOCHS SEED [SAVE]

It has the tutorials' network and preprocessing (pixels divided by 255, one-hot labels), and `fit` with Adam and batches
of 32. The script adds a line with the test accuracy after each epoch, "epoch 3 test accuracy 0.1234", and saves the
model to SAVE with `model.save`.
"""

import os
import sys

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # the faster kernels; see framework_worker.py

import h5py
import keras
import numpy as np
from keras_network import keras_resnet50


class PrintAccuracy(keras.callbacks.Callback):
    """Prints the test accuracy after each epoch."""

    def on_epoch_end(self, epoch, logs=None):
        print(f"epoch {epoch + 1} test accuracy {logs['val_accuracy']:.4f}", flush=True)


def load(path, split):
    """Returns the images of a split, (n, height, width, 3) from 0 to 1, and its one-hot labels, (n, classes)."""
    with h5py.File(path) as file:
        images, labels = file[f"{split}_set_x"][:] / 255, file[f"{split}_set_y"][:].reshape(-1)
        return images, np.eye(len(file["list_classes"]))[labels]


def main(train_path, test_path, epochs, seed, save=None):
    keras.utils.set_random_seed(int(seed))
    train = load(train_path, "train")
    test = load(test_path, "test")
    logits = keras_resnet50(classes=train[1].shape[1], size=train[0].shape[1])
    model = keras.Model(logits.input, keras.layers.Softmax()(logits.output))
    # TensorFlow's kernels, as when the tutorials were written. XLA, Keras's default, is several times slower on a CPU.
    options = {"jit_compile": False} if keras.backend.backend() == "tensorflow" else {}
    model.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"], **options)
    model.fit(*train, epochs=int(epochs), batch_size=32, validation_data=test, callbacks=[PrintAccuracy()], verbose=0)
    if save:
        model.save(save)


if __name__ == "__main__":
    main(*sys.argv[1:])
