"""Keras's weight files: legacy `.h5` (models or weights), `.weights.h5` and `.keras`, read and written without Keras.

Reading executes nothing from a file and follows no links. It reads plain HDF5 arrays and some values of the model's
configuration.
"""

import io
import json
import math
import zipfile
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import IO, Any

import h5py
import numpy as np

from flaxresnet.models.layer_graph import Layer, feature_map_size
from flaxresnet.runtime.errors import UserError
from flaxresnet.weights.flat_params import Entries, FlatParams, LazyArray
from flaxresnet.weights.keras_config import keras_config, keras_layers, topological_order
from flaxresnet.weights.keras_equivalence import inputs_of, require_equivalent
from flaxresnet.weights.key_maps import KEY_FORMATS
from flaxresnet.weights.pretrained_weights import METADATA_KEY, PretrainedWeights, describe, identify
from flaxresnet.weights.zip_limits import check_compression_ratio

KERAS_VERSION = "3.0.0"  # the first version that has these formats
STORES = ("layers", "_layer_checkpoint_dependencies")  # root groups of Keras 3, and of Keras 2.12 to 2.15
MAX_CONFIG_SIZE = 8 * 2**20  # bytes of JSON; the deepest network's configuration has half a million
MAX_FILE_SIZE = 4 * 2**30  # bytes of a file or of an archive's member; the largest ResNet has less than 1 GiB
# Names of a layer's variables, in Keras's order.
LEAVES = {
    "conv2d": ("kernel", "bias"),
    "dense": ("kernel", "bias"),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
}
FLAX_LEAVES = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}


def read_h5(file: IO[bytes]) -> PretrainedWeights:
    """Reads an `.h5` or a `.weights.h5` file.

    Raises:
      UserError: the file contains no known ResNet.
      KeyError, OSError, ValueError: the file is corrupt.
    """
    nbytes = file.seek(0, io.SEEK_END)
    with h5py.File(file, "r") as h5:
        _check_plain(h5, nbytes)
        config = json.loads(h5.attrs.get("model_config", "{}"))
        metadata = json.loads(h5.attrs.get(METADATA_KEY, "{}"))
        is_store = any(name in h5 for name in STORES)
        entries = dict(_store_entries(h5, {}) if is_store else _legacy_entries(h5))
        return _identify(entries, nbytes, config, metadata)


def read_keras(file: IO[bytes]) -> PretrainedWeights:
    """Reads a `.keras` archive.

    Raises:
      UserError: the archive contains no known ResNet, or unpacks to far more than its size.
      KeyError, OSError, ValueError: the archive is corrupt.
    """
    metadata = {}
    metadata_file = METADATA_KEY + ".json"
    with zipfile.ZipFile(file) as archive:
        nbytes = file.seek(0, io.SEEK_END)
        check_compression_ratio(archive, nbytes)
        config = json.loads(_read_member(archive, "config.json"))
        if metadata_file in archive.namelist():
            metadata = json.loads(_read_member(archive, metadata_file))
        store = _read_member(archive, "model.weights.h5")
    with h5py.File(io.BytesIO(store), "r") as h5:
        _check_plain(h5, len(store))
        return _identify(dict(_store_entries(h5, config)), nbytes, config, metadata)


def write_h5(weights: PretrainedWeights, key_format: str, file: IO[bytes]) -> None:
    """Writes a model as `model.save("model.h5")` does. Keras's `load_weights` can read it, too."""
    layers = topological_order(_layers(weights, key_format))
    with h5py.File(file, "w") as h5:
        h5.attrs["model_config"] = json.dumps(keras_config(layers, weights.network.model))
        h5.attrs[METADATA_KEY] = json.dumps(describe(weights))
        root = h5.create_group("model_weights")
        for group in (h5, root):
            group.attrs["keras_version"] = KERAS_VERSION
            group.attrs["backend"] = "jax"
        root.attrs["layer_names"] = [layer.name.encode() for layer in layers]
        root.create_group("top_level_model_weights").attrs["weight_names"] = []
        for layer in layers:
            arrays = _arrays(layer, weights.arrays)
            group = root.create_group(layer.name)
            group.attrs["weight_names"] = [f"{layer.name}/{leaf}".encode() for leaf in arrays]
            for leaf, array in arrays.items():
                group[f"{layer.name}/{leaf}"] = array


def write_weights_h5(weights: PretrainedWeights, key_format: str, file: IO[bytes]) -> None:
    """Writes weights as `model.save_weights("model.weights.h5")` does."""
    with h5py.File(file, "w") as h5:
        h5.attrs[METADATA_KEY] = json.dumps(describe(weights))
        _write_store(h5, weights, key_format)


def write_keras(weights: PretrainedWeights, key_format: str, file: IO[bytes]) -> None:
    """Writes a model as `model.save("model.keras")` does."""
    store = io.BytesIO()
    with h5py.File(store, "w") as h5:
        _write_store(h5, weights, key_format)
    config = keras_config(_layers(weights, key_format), weights.network.model)
    version = {"keras_version": KERAS_VERSION, "date_saved": f"{datetime.now():%Y-%m-%d@%H:%M:%S}"}
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("metadata.json", json.dumps(version))
        archive.writestr("config.json", json.dumps(config))
        archive.writestr(METADATA_KEY + ".json", json.dumps(describe(weights)))
        archive.writestr("model.weights.h5", store.getvalue())


def _legacy_entries(h5: h5py.File) -> Iterator[tuple[str, LazyArray]]:
    """Yields ("layer/leaf", entry) of a legacy file, in which each layer's group lists its arrays."""
    root = h5.get("model_weights", h5)
    for layer in root:
        names = _texts(root[layer].attrs.get("weight_names", []))
        if len(set(names)) < len(names):
            repeated = Counter(names).most_common(1)[0][0]
            raise UserError(f"layer {layer} lists {repeated} more than once; save the model again")
        for name in names:
            leaf = name.split("/")[-1].split(":")[0]
            yield f"{layer}/{leaf}", _entry(root[layer][name])


def _entry(item: h5py.Dataset) -> LazyArray:
    return LazyArray(item.shape, lambda: np.asarray(item))


def _store_entries(h5: h5py.File, config: dict[str, Any]) -> Iterator[tuple[str, LazyArray]]:
    """Yields ("layer/leaf", entry) of Keras 3's store, which numbers the layers of a class and a layer's arrays."""
    names = _layer_names(config)
    store = h5[next(name for name in STORES if name in h5)]
    for group in store:
        kind = group.rstrip("0123456789").removesuffix("_")
        variables = store[group].get("vars")
        if not variables:
            continue
        if kind not in LEAVES:  # no layer of a ResNet, such as Normalization; `identify` reports it as unexpected
            for index, item in variables.items():
                yield f"{group}/{index}", _entry(item)
            continue
        name = variables.attrs.get("name") or names.get(group)
        if name is None:
            raise UserError("the layers have no names, as in Keras before 3.6; save the model as .keras or .h5")
        for index, leaf in enumerate(LEAVES[kind][: len(variables)]):
            yield f"{name}/{leaf}", _entry(variables[str(index)])


def _write_store(h5: h5py.File, weights: PretrainedWeights, key_format: str) -> None:
    """Writes Keras 3's store: a group for each layer, numbered within its class, with numbered arrays."""
    h5.create_group("vars").attrs["name"] = weights.network.model
    layers = topological_order(_layers(weights, key_format))
    for group, layer in zip(_store_groups([layer.kind for layer in layers]), layers, strict=True):
        variables = h5.create_group(f"layers/{group}/vars")
        variables.attrs["name"] = layer.name
        for index, array in enumerate(_arrays(layer, weights.arrays).values()):
            variables[str(index)] = array


def _layer_names(config: dict[str, Any]) -> dict[str, str]:
    """Returns store group → layer name, from a model's configuration, which lists the layers in Keras's order."""
    layers = config.get("config", {}).get("layers", [])
    groups = _store_groups([layer["class_name"] for layer in layers])
    return {group: layer["config"]["name"] for group, layer in zip(groups, layers, strict=True)}


def _store_groups(kinds: list[str]) -> list[str]:
    """Returns the group of each layer in Keras 3's store, from the layers' classes: conv2d, conv2d_1, …."""
    count: Counter[str] = Counter()
    groups = []
    for kind in kinds:
        name = _snake_case(kind)
        groups.append(f"{name}_{count[name]}" if count[name] else name)
        count[name] += 1
    return groups


def _snake_case(kind: str) -> str:
    """Returns a class's name in Keras's store: Conv2D → conv2d, BatchNormalization → batch_normalization."""
    text = ""
    for index, letter in enumerate(kind):
        if letter.isupper() and index and not kind[index - 1].isdigit():
            text += "_"
        text += letter.lower()
    return text.replace("2_d", "2d")


def _identify(entries: Entries, nbytes: int, config: dict[str, Any], metadata: dict[str, Any]) -> PretrainedWeights:
    """Returns the weights after comparing the model's configuration, if there is one, with the network."""
    facts = _KerasMetadata(config)
    weights = identify(entries, nbytes, facts.image_size, metadata, facts.stem_relu)
    if config:
        _check_equivalence(config, weights)
    epsilon = weights.model.epsilon
    for other in sorted(facts.epsilons):
        if abs(other - epsilon) > 1e-3 * epsilon:
            title = KEY_FORMATS[weights.network.variant].title
            raise UserError(f"batch norm has epsilon {other:g}; the network of {title} supports only {epsilon:g}")
    return weights


def _check_equivalence(config: dict[str, Any], weights: PretrainedWeights) -> None:
    """Raises UserError if the configured layers compute something else than the network that the weights fit."""
    layers = _layers(weights, weights.network.variant)
    dense = [layer["config"]["name"] for layer in config["config"]["layers"] if layer["class_name"] == "Dense"]
    if len(dense) == 1:  # the last layer may have any name
        layers[-1] = layers[-1]._replace(name=dense[0])
    height = feature_map_size(weights.model, weights.preprocessing.height)
    width = feature_map_size(weights.model, weights.preprocessing.width)
    title = f"a {weights.network.model} of {KEY_FORMATS[weights.network.variant].title}"
    require_equivalent(config, layers, (height, width), title)


class _KerasMetadata:
    """Facts in a model's configuration that its weights do not show.

    Attributes:
      image_size: height and width of the images, in pixels; None if the input has no fixed size.
      stem_relu: True if a ReLU follows the first batch norm; None if nothing follows.
      epsilons: epsilon of each batch norm.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.image_size: tuple[int, int] | None = None
        self.stem_relu: bool | None = None
        self.epsilons: list[float] = []
        after_stem = []
        for layer in reversed(config.get("config", {}).get("layers", [])):
            options = layer["config"]
            if layer["class_name"] == "InputLayer":
                shape = options.get("batch_shape") or options.get("batch_input_shape")
                fixed = shape and len(shape) == 4 and None not in shape[1:3]
                self.image_size = (shape[1], shape[2]) if fixed else None
            if layer["class_name"] == "BatchNormalization":
                self.epsilons.append(options.get("epsilon", 1e-3))
            if "bn_conv1" in inputs_of(layer):
                after_stem.append(layer["class_name"])
        if after_stem:
            self.stem_relu = not {"MaxPooling2D", "Conv2D"} & set(after_stem)


def _layers(weights: PretrainedWeights, key_format: str) -> list[Layer]:
    image_size = (weights.preprocessing.height, weights.preprocessing.width)
    return keras_layers(weights.model, image_size, KEY_FORMATS[key_format])


def _arrays(layer: Layer, flat: FlatParams) -> dict[str, np.ndarray]:
    """Returns a layer's arrays by Keras's names, in Keras's order."""
    if layer.param_name is None:
        return {}
    names = {leaf: f"{layer.param_name}/{FLAX_LEAVES.get(leaf, leaf)}" for leaf in LEAVES[_snake_case(layer.kind)]}
    return {leaf: flat[name] for leaf, name in names.items() if name in flat}


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    limit = MAX_CONFIG_SIZE if name.endswith(".json") else MAX_FILE_SIZE
    if archive.getinfo(name).file_size > limit:
        raise UserError(f"{name} in the archive is larger than {limit // 2**20} MiB, the limit for this file")
    return archive.read(name)


def _texts(values: Any) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _is_supported(item: h5py.Dataset) -> bool:
    try:
        return not item.external and not item.is_virtual and item.dtype.kind in "fiu"
    except TypeError:  # an HDF5 type without a NumPy equivalent, such as times
        return False


def _check_plain(h5: h5py.File, nbytes: int) -> None:
    """Raises UserError for links, compressed arrays, and arrays that `nbytes` bytes cannot hold.

    Links can point outside the file, and such arrays can take far more memory than the file has bytes.
    """
    total = 0
    seen = set()

    def check(group: h5py.Group, path: str) -> None:
        nonlocal total
        for child in group:
            name = f"{path}{child}"
            if not isinstance(group.get(child, getlink=True), h5py.HardLink):
                raise UserError(f"{name} is a link; store the array itself")
            item = group[child]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:  # several hard links to one object could form a cycle or multiply its size
                raise UserError(f"{name} is a second name of another item; store each array once")
            seen.add(address)
            if isinstance(item, h5py.Group):
                check(item, f"{name}/")
                continue
            if not _is_supported(item):
                raise UserError(f"{name} is not an array of numbers in this file; store floats or integers")
            if item.id.get_create_plist().get_nfilters():  # a small compressed array may unpack to any size
                raise UserError(f"{name} is compressed and may unpack to any size; `h5repack -f NONE` unpacks it")
            total += max(item.size, math.prod(item.chunks or ())) * item.dtype.itemsize
            if total > nbytes:  # unallocated arrays, or chunks larger than their array
                raise UserError(f"the arrays take more bytes than the file's {nbytes:,}; store every element")

    check(h5, "")
