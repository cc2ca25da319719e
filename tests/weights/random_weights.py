"""Networks with random weights that tests carry between worlds."""

from dataclasses import replace

import numpy as np

from flaxresnet.config.recipes import Network
from flaxresnet.data.preprocess import Preprocessing
from flaxresnet.models.resnet import resnet
from flaxresnet.weights import flat_params
from flaxresnet.weights.pretrained_weights import SCALING, PretrainedWeights


def random_weights(
    size: str, variant: str, width: int = 8, image: int | tuple[int, int] = 64, classes: int = 5
) -> PretrainedWeights:
    """Every array away from its start, and residual branches small, as after training, so that rounding stays small."""
    rng = np.random.default_rng(0)
    image_size = image if isinstance(image, tuple) else (image, image)

    def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
        values = rng.standard_normal(shape).astype(np.float32)
        if len(shape) > 1:
            return values * np.float32(np.sqrt(2 / np.prod(shape[:-1])))
        if name.endswith("var"):
            return np.abs(values) + np.float32(0.5)
        last = name.endswith(("branch2c/scale", "branch2b/scale"))
        return values * np.float32(0.1) + (name.endswith("scale") * np.float32(0.3 if last else 1))

    shapes = flat_params.shapes_of(resnet(size, variant, num_classes=classes, width=width), image_size)
    return PretrainedWeights(
        network=Network(size, variant, width),
        num_classes=classes,
        arrays={name: drawn(name, shape) for name, shape in shapes.items()},
        preprocessing=Preprocessing(*image_size, **SCALING[variant]),
        class_names=tuple("abcdefghij"[:classes]),
    )


def without_relu(weights: PretrainedWeights) -> PretrainedWeights:
    return replace(weights, network=replace(weights.network, stem_relu=False))


def random_images(image: int = 64) -> np.ndarray:
    return np.random.default_rng(1).random((2, image, image, 3), np.float32)


def logits_of(weights: PretrainedWeights, images: np.ndarray) -> np.ndarray:
    """Computed op by op: to compile the whole takes a minute for the deepest, and its ops repeat."""
    return np.asarray(weights.model.apply(weights.variables, images))


def after_one_pass(weights: PretrainedWeights, images: np.ndarray, momentum: float = 0.99) -> dict[str, np.ndarray]:
    """The running statistics after one pass in training mode, as a table."""
    model = weights.model.clone(momentum=momentum)
    _, new = model.apply(weights.variables, images, train=True, mutable=["batch_stats"])
    table = flat_params.flatten({"params": {}} | new)
    return {name: np.asarray(leaf) for name, leaf in table.items()}


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    """Equal to 1e-4 of the largest value."""
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def assert_same(got: PretrainedWeights, expected: PretrainedWeights) -> None:
    assert got.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(got.arrays[name], array, err_msg=name)
    assert got.network == expected.network
    assert got.num_classes == expected.num_classes
