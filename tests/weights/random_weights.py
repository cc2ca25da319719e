"""Networks with random weights, and comparisons, for tests of the weight formats."""

from dataclasses import replace

import numpy as np

from flaxresnet.config.recipes import Network
from flaxresnet.data.preprocess import Preprocessing
from flaxresnet.models.resnet import resnet
from flaxresnet.weights import flat_params
from flaxresnet.weights.pretrained_weights import SCALING, PretrainedWeights


def random_weights(
    size: str,
    variant: str,
    width: int = 8,
    image: int | tuple[int, int] = 64,
    classes: int = 5,
    stem: str | None = None,
) -> PretrainedWeights:
    """Returns weights that differ from an initialization in every array.

    Residual branches have small scales, as after training, so that rounding errors stay small.
    """
    rng = np.random.default_rng(0)
    image_size = image if isinstance(image, tuple) else (image, image)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        values = rng.standard_normal(shape).astype(np.float32)
        if len(shape) > 1:
            return values * np.float32(np.sqrt(2 / np.prod(shape[:-1])))
        if name.endswith("var"):
            return np.abs(values) + np.float32(0.5)
        ends_branch = name.endswith(("branch2c/scale", "branch2b/scale"))
        return values * np.float32(0.1) + (name.endswith("scale") * np.float32(0.3 if ends_branch else 1))

    given = {} if stem is None else {"stem": stem}
    model = resnet(size, variant, num_classes=classes, width=width, **given)
    shapes = flat_params.shapes_of(model, image_size)
    return PretrainedWeights(
        network=Network(size, variant, width, stem=model.stem),
        num_classes=classes,
        arrays={name: draw(name, shape) for name, shape in shapes.items()},
        preprocessing=Preprocessing(*image_size, **SCALING[variant]),
        class_names=tuple("abcdefghij"[:classes]),
    )


def without_relu(weights: PretrainedWeights) -> PretrainedWeights:
    """Returns the weights of a network without a ReLU in its stem."""
    return replace(weights, network=replace(weights.network, stem_relu=False))


def random_images(image: int = 64) -> np.ndarray:
    """Returns two images, (2, image, image, 3) float32 in [0, 1)."""
    return np.random.default_rng(1).random((2, image, image, 3), np.float32)


def logits_of(weights: PretrainedWeights, images: np.ndarray) -> np.ndarray:
    """Returns the logits, computed op by op: compiling the deepest network takes a minute."""
    return np.asarray(weights.model.apply(weights.variables, images))


def after_one_pass(weights: PretrainedWeights, images: np.ndarray, momentum: float = 0.99) -> dict[str, np.ndarray]:
    """Returns the running statistics after one forward pass in training mode, by flat name."""
    model = weights.model.clone(momentum=momentum)
    _, stats = model.apply(weights.variables, images, train=True, mutable=["batch_stats"])
    return {name: np.asarray(leaf) for name, leaf in flat_params.flatten({"params": {}} | stats).items()}


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    """Asserts that both are equal to 1e-4 of the largest value."""
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def assert_same(actual: PretrainedWeights, expected: PretrainedWeights) -> None:
    """Asserts that both have the same architecture, classes and arrays."""
    assert actual.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(actual.arrays[name], array, err_msg=name)
    assert actual.network == expected.network
    assert actual.num_classes == expected.num_classes
