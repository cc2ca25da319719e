"""The tutorials' ResNet-50 in Keras, up to the logits, as a reference for tests and benchmarks."""

import keras


def conv_norm(x, filters, size, label, branch, strides=1, padding="valid"):
    """Applies a convolution and batch norm with the tutorials' layer names."""
    x = keras.layers.Conv2D(filters, size, strides=strides, padding=padding, name=f"res{label}_branch{branch}")(x)
    return keras.layers.BatchNormalization(name=f"bn{label}_branch{branch}")(x)


def block(x, inner, label, strides, project):
    """Applies a bottleneck block, with a projection shortcut if `project`; `label` is its name, such as "2a"."""
    y = keras.layers.ReLU()(conv_norm(x, inner, 1, label, "2a", strides))
    y = keras.layers.ReLU()(conv_norm(y, inner, 3, label, "2b", padding="same"))
    y = conv_norm(y, 4 * inner, 1, label, "2c")
    shortcut = conv_norm(x, 4 * inner, 1, label, "1", strides) if project else x
    return keras.layers.ReLU()(keras.layers.Add()([y, shortcut]))


def keras_resnet50(classes=6, size=64):
    """Returns a model of (batch, size, size, 3) images from 0 to 1 that returns logits, (batch, classes)."""
    inputs = keras.Input((size, size, 3))
    x = keras.layers.ZeroPadding2D(3)(inputs)
    x = keras.layers.Conv2D(64, 7, strides=2, name="conv1")(x)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization(name="bn_conv1")(x))
    x = keras.layers.MaxPooling2D(3, strides=2)(x)
    for stage, blocks in zip((2, 3, 4, 5), ("abc", "abcd", "abcdef", "abc"), strict=True):
        for letter in blocks:
            strides = 2 if letter == "a" and stage > 2 else 1
            x = block(x, 64 * 2 ** (stage - 2), f"{stage}{letter}", strides, project=letter == "a")
    x = keras.layers.Flatten()(keras.layers.AveragePooling2D(2)(x))
    return keras.Model(inputs, keras.layers.Dense(classes, name=f"fc{classes}")(x))
