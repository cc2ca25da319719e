"""The Keras tutorials' own way: `python benchmarks/keras_tutorial.py TRAIN_H5 TEST_H5 EPOCHS SEED [SAVE]`.

Their network, their preprocessing (÷ 255, one-hot labels), `fit` with Adam and batches of 32. All that is added is the
test accuracy after each epoch, as a line "epoch 3 test accuracy 0.1234", and where SAVE is given, the model saved there
as they save theirs.
"""

import os
import sys

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # TensorFlow at its fastest: see framework_worker.py

import h5py
import keras
import numpy as np
from keras_network import keras_resnet50


class Report(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        print(f"epoch {epoch + 1} test accuracy {logs['val_accuracy']:.4f}", flush=True)


def load(path, split):
    with h5py.File(path) as file:
        images, labels = file[f"{split}_set_x"][:] / 255, file[f"{split}_set_y"][:].reshape(-1)
        return images, np.eye(len(file["list_classes"]))[labels]


def main(train_path, test_path, epochs, seed, save=None):
    keras.utils.set_random_seed(int(seed))
    train, test = load(train_path, "train"), load(test_path, "test")
    logits = keras_resnet50(classes=train[1].shape[1], size=train[0].shape[1])
    model = keras.Model(logits.input, keras.layers.Softmax()(logits.output))
    # TensorFlow's own kernels, as in the tutorials' day; XLA, Keras's choice now, is several times slower on a CPU.
    options = {"jit_compile": False} if keras.backend.backend() == "tensorflow" else {}
    model.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"], **options)
    model.fit(*train, epochs=int(epochs), batch_size=32, validation_data=test, callbacks=[Report()], verbose=0)
    if save:
        model.save(save)


if __name__ == "__main__":
    main(*sys.argv[1:])
