"""A trained network as it travels between worlds: what it is, its arrays, and how it wants its images."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax.numpy as jnp
import numpy as np

from flaxresnet.config.recipes import Network
from flaxresnet.data.preprocess import Preprocessing, is_input_size
from flaxresnet.models.layer_graph import count_convolutions, head_size
from flaxresnet.models.resnet import MIN_IMAGE_SIZE, SIZES, ResNet, resnet, width_step
from flaxresnet.runtime.errors import UserError, listed
from flaxresnet.weights import flat_params
from flaxresnet.weights.flat_params import HEAD_KEY, Entries, FlatParams, Shapes
from flaxresnet.weights.key_maps import KEY_FORMATS, KeyFormat

# What the pretrained weights of each variant expect of pixels: Keras's "caffe" mode, ImageNet's mean and deviation.
SCALING: dict[str, dict[str, Any]] = {
    "tutorial": {},
    "keras": {"scale": 1.0, "channels": "bgr", "mean": (103.939, 116.779, 123.68)},
    "torchvision": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
}
# Height and width of images, in pixels, where a file does not tell: of networks that take any, and of those that are
# tied to one by their last layer, the likeliest first.
USUAL_SIDE = 224
USUAL_SIDES = (64, *range(32, 513, 32))
FEW_NUMBERS = 2**22  # that a file may declare whatever its size; 16 MiB of float32
METADATA_KEY = "flaxresnet"  # under which files of every kind keep what `describe` says


@dataclass(frozen=True)
class PretrainedWeights:
    """A network's variables and what is known of it.

    Attributes:
      network: which network.
      num_classes: None where the last layer is missing, as in files made for fine-tuning.
      arrays: the variables; see `flat_params.py`.
      preprocessing: from a photo to the network's input.
      class_names: one a class, or None where the file does not tell.
      assumed: what the file does not tell: `"preprocessing"`, fields of `network`.
    """

    network: Network
    num_classes: int | None
    arrays: FlatParams
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None = None
    assumed: frozenset[str] = frozenset()

    @property
    def model(self) -> ResNet:
        """The network; without a last layer among the weights, with one of two classes."""
        n = self.network
        return resnet(n.model, n.variant, num_classes=self.num_classes or 2, width=n.width, stem_relu=n.stem_relu)

    @property
    def variables(self) -> dict[str, Any]:
        """{"params", "batch_stats"} for `model.apply`; there has to be a last layer."""
        return flat_params.unflatten(self.arrays, self.num_classes)


def identify(
    entries: Entries,
    nbytes: int,
    image_size: tuple[int, int] | None = None,
    about: dict[str, Any] | None = None,
    stem_relu: bool | None = None,
) -> PretrainedWeights:
    """The network that a file's entries belong to, every one of them in its place; before that none is loaded.

    Args:
      entries: the file's arrays by its own names.
      nbytes: the file's size.
      image_size: height and width of the images, where the file tells.
      about: what `describe` wrote into the file, if it did.
      stem_relu: whether the network has a ReLU after its first batch norm, where the file tells.

    Raises:
      UserError: the names are of no known world, entries are missing, unexpected or of another shape, hold what no
        network holds, or are more than the file has bytes for.
    """
    about = about or {}
    stored = Preprocessing.from_json(about["preprocessing"]) if about.get("preprocessing") else None
    image_size = (stored.height, stored.width) if stored else image_size
    key_format = next((w for w in KEY_FORMATS.values() if w.stem_key in entries), None)
    if key_format is None:
        stem_keys = ", ".join(f"{w.stem_key} ({w.title})" for w in KEY_FORMATS.values())
        raise UserError(f"no ResNet is recognised; the first convolution would be one of {stem_keys}")
    found = {key: entry for key, entry in entries.items() if not key.endswith("num_batches_tracked")}
    _check_count(found, nbytes)
    if len(found[key_format.stem_key].shape) != 4:
        raise UserError(
            f"{key_format.stem_key} has shape {found[key_format.stem_key].shape}, which is no convolution's"
        )
    num_classes = _classes_of(found, key_format)
    found = _with_head_as_there(found, key_format, num_classes)
    names = about.get("class_names") if num_classes else None
    if names:
        check_class_names(names, num_classes)
    width = key_format.import_shape(found[key_format.stem_key].shape)[-1]
    size, shapes, side = match_architecture(found, key_format, width, num_classes, image_size)
    keys = {name: key_format.key(name, num_classes) for name in shapes}
    expected = {key: shapes[name] for name, key in keys.items()}
    have = {
        key: key_format.import_shape(entry.shape) if key in expected else entry.shape for key, entry in found.items()
    }
    require_same_shapes(expected, have, f"the weights are not those of a {size} of {key_format.title}")
    table = {name: key_format.import_array(_loaded(key, found[key].load())) for name, key in keys.items()}
    stem_relu = about.get("stem_relu", stem_relu)
    network = Network(cast(Any, size), cast(Any, key_format.variant), width, stem_relu is not False)
    assumed = [] if stored else ["preprocessing"]
    if (
        stem_relu is None and key_format.variant == "tutorial"
    ):  # of the two tutorials one has none; all other worlds have it
        assumed.append("stem_relu")
    return PretrainedWeights(
        network=network,
        num_classes=num_classes,
        arrays=table,
        preprocessing=stored or Preprocessing(*side, **SCALING[key_format.variant]),
        class_names=tuple(names) if names else None,
        assumed=frozenset(assumed),
    )


def check_class_names(names: Sequence[Any], num_classes: int | None) -> None:
    """Raises UserError unless there is a name for each class, each its own and of printable letters."""
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise UserError(f"its names of classes are {str(names)[:80]!r}, not a list of words")
    if len(names) != num_classes:
        raise UserError(f"it names {len(names)} classes, and its last layer has {num_classes} outputs")
    for name, count in Counter(names).items():
        if not name.strip() or not name.isprintable() or count > 1:
            raise UserError(f"{name!r} among the names of classes is empty, not printable, or there twice")


def fits_images(weights: PretrainedWeights, image_size: tuple[int, int]) -> bool:
    """Whether the network takes images of this height and width."""
    return (
        min(image_size) >= MIN_IMAGE_SIZE
        and is_input_size(image_size)
        and weights.arrays.keys() <= flat_params.shapes_of(weights.model, image_size).keys()
        and all(flat_params.shapes_of(weights.model, image_size)[n] == a.shape for n, a in weights.arrays.items())
    )


def describe(weights: PretrainedWeights) -> dict[str, Any]:
    """What a file of weights cannot say by names and shapes, for `identify` to read back; values are JSON's."""
    return {
        "stem_relu": weights.network.stem_relu,
        "class_names": list(weights.class_names) if weights.class_names else None,
        "preprocessing": weights.preprocessing.to_json(),
    }


def require_same_shapes(expected: Shapes, found: Shapes, complaint: str) -> None:
    """Raises UserError, with sorted lists, unless the same names have the same shapes."""
    lists = {
        "missing": expected.keys() - found.keys(),
        "unexpected": found.keys() - expected.keys(),
        "of another shape": {
            f"{key} {found[key]}, not {expected[key]}"
            for key in expected.keys() & found.keys()
            if found[key] != expected[key]
        },
    }
    if any(lists.values()):
        wrong = (f"{what}: {listed(sorted(names), 8)}" for what, names in lists.items() if names)
        raise UserError(f"{complaint}: {'; '.join(wrong)}")


def _check_count(found: Entries, nbytes: int) -> None:
    """Raises UserError for more numbers than bytes, each of which takes one or more: a small file may declare any."""
    count = sum(math.prod(entry.shape) for entry in found.values())
    if count > max(nbytes, FEW_NUMBERS):
        raise UserError(f"its arrays have {count:,} numbers, and it has {nbytes:,} bytes; store every number")


def _loaded(key: str, array: np.ndarray) -> np.ndarray:
    """The array; raises UserError unless all its numbers are real and finite."""
    wrong = None
    if not any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.floating, jnp.integer)):  # bfloat16 is floating
        wrong = f"numbers of the type {array.dtype}"
    elif not np.isfinite(array).all():
        wrong = array[~np.isfinite(array)].flat[0]
    if wrong is not None:
        raise UserError(f"its array {key} holds {wrong}, which no trained network has")
    return array


def _classes_of(found: Entries, key_format: KeyFormat) -> int | None:
    """How many classes the last layer tells apart; None where there is no such layer."""
    heads = [entry.shape for entry in found.values() if len(entry.shape) == 2]
    count = key_format.import_shape(heads[0])[1] if len(heads) == 1 else None
    if count is not None and count < 2:
        raise UserError(f"its last layer has {count} output; a classifier needs one for each of two or more classes")
    return count


def _with_head_as_there(found: Entries, key_format: KeyFormat, num_classes: int | None) -> Entries:
    """The entries with the last layer under the name that it has in that world; people name it as they like."""
    kernels = [key for key, entry in found.items() if len(entry.shape) == 2]
    expected = key_format.key(f"{HEAD_KEY}/kernel", num_classes)
    if len(kernels) != 1 or kernels[0] == expected:
        return found
    divider = "." if key_format.torch else "/"
    theirs, usual = (key.rpartition(divider)[0] + divider for key in (kernels[0], expected))
    return {usual + key.removeprefix(theirs) if key.startswith(theirs) else key: e for key, e in found.items()}


def match_architecture(
    found: Entries, key_format: KeyFormat, width: int, num_classes: int | None, image_size: tuple[int, int] | None
) -> tuple[str, Shapes, tuple[int, int]]:
    """The size that most of the entries fit, its shapes (without a last layer where there is none) and its images'."""
    fitting_groups = [size for size in SIZES if width % width_step(size) == 0]
    sizes = {
        size: resnet(size, key_format.variant, num_classes=num_classes or 2, width=width) for size in fitting_groups
    }
    have = {key: key_format.import_shape(entry.shape) for key, entry in found.items()}
    convolutions = sum(len(shape) == 4 for shape in have.values())
    distance = {size: abs(count_convolutions(model) - convolutions) for size, model in sizes.items()}
    rows = next((shape[0] for shape in have.values() if len(shape) == 2), None)

    def fitting(size: str) -> tuple[int, str, Shapes, tuple[int, int]]:
        side = image_size or _usual_image(sizes[size], rows)
        shapes = flat_params.shapes_of(sizes[size], side)
        if num_classes is None:
            shapes = {name: shape for name, shape in shapes.items() if not name.startswith(HEAD_KEY + "/")}
        keys = {key_format.key(name, num_classes): shape for name, shape in shapes.items()}
        fits = sum(shape == keys.get(key) for key, shape in have.items())
        return fits, size, shapes, side

    return max(fitting(size) for size in sizes if distance[size] == min(distance.values()))[1:]


def _usual_image(model: ResNet, rows: int | None) -> tuple[int, int]:
    """Height and width for a network that does not say; `rows` are the last layer's."""
    if model.head == "average":
        return USUAL_SIDE, USUAL_SIDE
    outside = model.width * 2 ** (len(model.stage_sizes) - 1) * (4 if model.bottleneck else 1)
    sides = (side for side in USUAL_SIDES if head_size(model, side) ** 2 * outside == rows)
    return (next(sides, USUAL_SIDES[0]),) * 2
