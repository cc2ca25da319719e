"""Pretrained weights in any format: architecture, arrays, preprocessing, and the identification of all three."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax.numpy as jnp
import numpy as np

from flaxresnet.config.recipes import Network, Stem
from flaxresnet.data.preprocess import Preprocessing, is_input_size
from flaxresnet.models.layer_graph import count_convolutions, head_size
from flaxresnet.models.resnet import MIN_IMAGE_SIZE, SIZES, ResNet, resnet, width_step
from flaxresnet.runtime.errors import UserError, listed
from flaxresnet.weights import flat_params
from flaxresnet.weights.flat_params import HEAD_KEY, Entries, FlatParams, LazyArray, Shapes
from flaxresnet.weights.key_maps import KEY_FORMATS, KeyFormat

# Pixel scaling of each variant's pretrained weights: ÷255, Keras's "caffe" mode, ImageNet's mean and deviation.
SCALING: dict[str, dict[str, Any]] = {
    "tutorial": {},
    "keras": {"scale": 1.0, "channels": "bgr", "mean": (103.939, 116.779, 123.68)},
    "torchvision": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
}
# Height and width of images, in pixels, for files that do not store them.
DEFAULT_SIDE = 224  # for networks that take any size; those with a small stem use MIN_IMAGE_SIZE
# For networks whose last layer fits one size only, the likeliest first.
CANDIDATE_SIDES = (64, *range(32, 513, 32))
ALWAYS_ALLOWED = 2**22  # elements that a file of any size may declare: 16 MiB of float32
METADATA_KEY = "flaxresnet"  # the entry of every file format that holds `describe`'s result


@dataclass(frozen=True)
class PretrainedWeights:
    """A network's arrays, and the facts that a classifier needs about them.

    Attributes:
      network: the architecture.
      num_classes: number of classes; None if the last layer is missing, as in files for fine-tuning.
      arrays: float32 arrays by flat name; see `flat_params.py`.
      preprocessing: conversion of a photo to the network's input.
      class_names: the name of each class, in the order of the logits, or None if the file has none.
      assumed: facts that the file does not store, so that defaults apply: `"preprocessing"`, fields of `network`.
    """

    network: Network
    num_classes: int | None
    arrays: FlatParams
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None = None
    assumed: frozenset[str] = frozenset()

    @property
    def model(self) -> ResNet:
        """Returns the module; if the weights have no last layer, the module has one for two classes."""
        n = self.network
        return resnet(
            n.model,
            n.variant,
            num_classes=self.num_classes or 2,
            width=n.width,
            stem_relu=n.stem_relu,
            stem=n.stem,
        )

    @property
    def variables(self) -> dict[str, Any]:
        """Returns {"params", "batch_stats"} for `model.apply`; the weights must have a last layer."""
        return flat_params.unflatten(self.arrays, self.num_classes)


def identify(
    entries: Entries,
    nbytes: int,
    image_size: tuple[int, int] | None = None,
    metadata: dict[str, Any] | None = None,
    stem_relu: bool | None = None,
) -> PretrainedWeights:
    """Identifies the network in a file by names and shapes, then loads its arrays.

    No array is loaded before all names and shapes fit.

    Args:
      entries: the file's arrays, by their names in the file.
      nbytes: the file's size in bytes.
      image_size: height and width of the images, if the file stores them.
      metadata: the result of `describe`, if the file stores it.
      stem_relu: True if a ReLU follows the first batch norm; None if the file does not store it.

    Raises:
      UserError: the names are of no known key format; an array is missing, unexpected or of another shape; an array
        has values that are not finite numbers; or the arrays have more elements than the file has bytes.
    """
    metadata = metadata or {}
    stored = Preprocessing.from_json(metadata["preprocessing"]) if metadata.get("preprocessing") else None
    if stored is not None:
        image_size = (stored.height, stored.width)
    key_format = next((known for known in KEY_FORMATS.values() if known.stem_key in entries), None)
    if key_format is None:
        stem_keys = ", ".join(f"{known.stem_key} ({known.title})" for known in KEY_FORMATS.values())
        raise UserError(f"no ResNet is recognized; the first convolution's kernel must be one of {stem_keys}")
    entries = {key: entry for key, entry in entries.items() if not key.endswith("num_batches_tracked")}
    _check_count(entries, nbytes)
    stem_shape = entries[key_format.stem_key].shape
    if len(stem_shape) != 4:
        raise UserError(f"{key_format.stem_key} has shape {stem_shape}, but a convolution's kernel has 4 axes")
    num_classes = _num_classes(entries, key_format)
    entries = _rename_head(entries, key_format, num_classes)
    names = metadata.get("class_names") if num_classes else None
    if names:
        check_class_names(names, num_classes)
    stem_height, _, _, width = key_format.import_shape(stem_shape)
    # No format stores the stride. A 3×3 convolution has stride 1 in the common networks for CIFAR.
    stem: Stem = "small" if stem_height == 3 else "imagenet"
    size, shapes, image_size = match_architecture(entries, key_format, width, stem, num_classes, image_size)
    keys = {name: key_format.key(name, num_classes) for name in shapes}
    expected = {key: shapes[name] for name, key in keys.items()}
    actual = {}
    for key, entry in entries.items():
        actual[key] = key_format.import_shape(entry.shape) if key in expected else entry.shape
    require_same_shapes(expected, actual, f"the arrays do not fit a {size} of {key_format.title}")
    arrays = {name: key_format.import_array(_load(key, entries[key])) for name, key in keys.items()}
    stem_relu = metadata.get("stem_relu", stem_relu)
    assumed = [] if stored else ["preprocessing"]
    if stem_relu is None and key_format.variant == "tutorial":  # one of the two tutorials leaves out the stem's ReLU
        assumed.append("stem_relu")
    return PretrainedWeights(
        network=Network(cast(Any, size), cast(Any, key_format.variant), width, stem_relu is not False, stem),
        num_classes=num_classes,
        arrays=arrays,
        preprocessing=stored or Preprocessing(*image_size, **SCALING[key_format.variant]),
        class_names=tuple(names) if names else None,
        assumed=frozenset(assumed),
    )


def check_class_names(names: Sequence[Any], num_classes: int | None) -> None:
    """Raises UserError unless `names` is a list of distinct printable strings, one for each class."""
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise UserError(f"class names are {str(names)[:80]!r}; give a list of strings")
    if len(names) != num_classes:
        raise UserError(
            f"{len(names)} class names do not fit the last layer's {num_classes} outputs; give one for each"
        )
    for name, count in Counter(names).items():
        if not name.strip() or not name.isprintable() or count > 1:
            raise UserError(f"class name {name!r} is empty, unprintable or repeated; give each class its own name")


def fits_images(weights: PretrainedWeights, image_size: tuple[int, int]) -> bool:
    """Returns whether the network takes images of this height and width, in pixels."""
    if min(image_size) < MIN_IMAGE_SIZE or not is_input_size(image_size):
        return False
    shapes = flat_params.shapes_of(weights.model, image_size)
    return all(shapes.get(name) == array.shape for name, array in weights.arrays.items())


def describe(weights: PretrainedWeights) -> dict[str, Any]:
    """Returns JSON values for the facts that names and shapes do not show; `identify` reads them back."""
    return {
        "stem_relu": weights.network.stem_relu,
        "class_names": list(weights.class_names) if weights.class_names else None,
        "preprocessing": weights.preprocessing.to_json(),
    }


def require_same_shapes(expected: Shapes, actual: Shapes, complaint: str) -> None:
    """Raises UserError unless both have the same names with the same shapes.

    Args:
      expected: shapes by name.
      actual: shapes by name.
      complaint: the start of the message; sorted lists of the differences follow.
    """
    wrong_shapes = []
    for key in expected.keys() & actual.keys():
        if actual[key] != expected[key]:
            wrong_shapes.append(f"{key} {actual[key]}, not {expected[key]}")
    differences = {
        "missing": expected.keys() - actual.keys(),
        "unexpected": actual.keys() - expected.keys(),
        "wrong shape": wrong_shapes,
    }
    texts = [f"{title}: {listed(sorted(names), 8)}" for title, names in differences.items() if names]
    if texts:
        raise UserError(f"{complaint}: {'; '.join(texts)}")


def _check_count(entries: Entries, nbytes: int) -> None:
    """Raises UserError if the arrays have more elements than the file has bytes, which small files can declare."""
    count = sum(math.prod(entry.shape) for entry in entries.values())
    if count > max(nbytes, ALWAYS_ALLOWED):
        raise UserError(f"the arrays have {count:,} elements, but the file has {nbytes:,} bytes; store every element")


def _load(key: str, entry: LazyArray) -> np.ndarray:
    """Returns the array; raises UserError unless it has a real dtype and every element is finite."""
    array = entry.load()
    if not any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.floating, jnp.integer)):  # bfloat16 is floating
        raise UserError(f"array {key} has dtype {array.dtype}; store floats or integers")
    finite = np.isfinite(array)
    if not finite.all():
        raise UserError(f"array {key} contains {array[~finite].flat[0]}; every weight must be finite")
    return array


def _num_classes(entries: Entries, key_format: KeyFormat) -> int | None:
    """Returns the number of outputs of the last layer, or None if there is no such layer."""
    heads = [entry.shape for entry in entries.values() if len(entry.shape) == 2]
    if len(heads) != 1:
        return None
    count = key_format.import_shape(heads[0])[1]
    if count < 2:
        raise UserError(f"the last layer has {count} output; a classifier needs 2 or more")
    return count


def _rename_head(entries: Entries, key_format: KeyFormat, num_classes: int | None) -> Entries:
    """Returns the entries with the last layer under the key format's name; files may have any name for it."""
    kernels = [key for key, entry in entries.items() if len(entry.shape) == 2]
    expected = key_format.key(f"{HEAD_KEY}/kernel", num_classes)
    if len(kernels) != 1 or kernels[0] == expected:
        return entries
    separator = "." if key_format.torch else "/"
    old = kernels[0].rpartition(separator)[0] + separator
    new = expected.rpartition(separator)[0] + separator
    return {new + key.removeprefix(old) if key.startswith(old) else key: entry for key, entry in entries.items()}


def match_architecture(
    entries: Entries,
    key_format: KeyFormat,
    width: int,
    stem: Stem,
    num_classes: int | None,
    image_size: tuple[int, int] | None,
) -> tuple[str, Shapes, tuple[int, int]]:
    """Returns the network size that fits most entries, its shapes by flat name, and its image size.

    The shapes have no last layer if `num_classes` is None. Only the sizes with the closest number of convolutions are
    compared.
    """
    actual = {key: key_format.import_shape(entry.shape) for key, entry in entries.items()}
    head_inputs = next((shape[0] for shape in actual.values() if len(shape) == 2), None)
    convolutions = sum(len(shape) == 4 for shape in actual.values())
    models = {}
    for size in SIZES:
        if width % width_step(size) == 0:
            models[size] = resnet(size, key_format.variant, num_classes=num_classes or 2, width=width, stem=stem)
    distance = {size: abs(count_convolutions(model) - convolutions) for size, model in models.items()}
    candidates = []
    for size, model in models.items():
        if distance[size] > min(distance.values()):
            continue
        model_image_size = image_size or _default_image_size(model, head_inputs)
        shapes = flat_params.shapes_of(model, model_image_size)
        if num_classes is None:
            shapes = {name: shape for name, shape in shapes.items() if not name.startswith(HEAD_KEY + "/")}
        expected = {key_format.key(name, num_classes): shape for name, shape in shapes.items()}
        matches = sum(shape == expected.get(key) for key, shape in actual.items())
        candidates.append((matches, size, shapes, model_image_size))
    return max(candidates)[1:]


def _default_image_size(model: ResNet, head_inputs: int | None) -> tuple[int, int]:
    """Returns the height and width to assume for a file without an image size.

    Args:
      model: the network.
      head_inputs: number of inputs of the last layer; None if there is no such layer.
    """
    if model.head == "average":
        side = MIN_IMAGE_SIZE if model.stem == "small" else DEFAULT_SIDE
        return side, side
    channels = model.width * 2 ** (len(model.stage_sizes) - 1) * (4 if model.bottleneck else 1)
    for side in CANDIDATE_SIDES:
        if head_size(model, side) ** 2 * channels == head_inputs:
            return side, side
    return CANDIDATE_SIDES[0], CANDIDATE_SIDES[0]
