"""Keras's files: legacy `.h5` (whole models or weights), `.weights.h5` and `.keras`; read and written without Keras.

Nothing in a file is executed or looked up elsewhere: of HDF5 plain arrays are read, of a model's configuration a few
values.
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

KERAS_VERSION = "3.0.0"  # the first that has these formats
STORES = ("layers", "_layer_checkpoint_dependencies")  # of Keras 3, and of Keras 2.12 to 2.15
MAX_TEXT = 8 * 2**20  # bytes of a model's configuration; that of the deepest has half a million
LARGEST = 4 * 2**30  # bytes of all arrays of a file, or of an archive's member; more is no ResNet
# Names of a layer's variables, in the order in which Keras keeps them.
LEAVES = {
    "conv2d": ("kernel", "bias"),
    "dense": ("kernel", "bias"),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
}
TABLE_LEAVES = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}


def read_h5(file: IO[bytes]) -> PretrainedWeights:
    """Reads `.h5` and `.weights.h5`, whichever it is. Raises UserError, KeyError, OSError or ValueError."""
    nbytes = file.seek(0, io.SEEK_END)
    with h5py.File(file, "r") as h5:
        _check_plain(h5, nbytes)
        config = json.loads(h5.attrs["model_config"]) if "model_config" in h5.attrs else {}
        about = json.loads(h5.attrs[METADATA_KEY]) if METADATA_KEY in h5.attrs else {}
        is_store = any(name in h5 for name in STORES)
        entries = dict(_store_entries(h5, {}) if is_store else _legacy_entries(h5))
        return _recognised(entries, nbytes, config, about)


def read_keras(file: IO[bytes]) -> PretrainedWeights:
    """Reads a `.keras` archive. Raises UserError, KeyError, OSError or ValueError."""
    with zipfile.ZipFile(file) as archive:
        nbytes = file.seek(0, io.SEEK_END)
        check_compression_ratio(archive, nbytes)
        config = json.loads(_member(archive, "config.json"))
        about = (
            json.loads(_member(archive, METADATA_KEY + ".json")) if METADATA_KEY + ".json" in archive.namelist() else {}
        )
        store = _member(archive, "model.weights.h5")
    with h5py.File(io.BytesIO(store), "r") as h5:
        _check_plain(h5, len(store))
        return _recognised(dict(_store_entries(h5, config)), nbytes, config, about)


def write_h5(weights: PretrainedWeights, file: IO[bytes]) -> None:
    """Writes a whole model as `model.save("model.h5")` does; Keras's `load_weights` reads it as well."""
    layers = topological_order(_layers(weights))
    with h5py.File(file, "w") as h5:
        h5.attrs["keras_version"], h5.attrs["backend"] = KERAS_VERSION, "jax"
        h5.attrs["model_config"] = json.dumps(keras_config(layers, weights.network.model))
        h5.attrs[METADATA_KEY] = json.dumps(describe(weights))
        root = h5.create_group("model_weights")
        root.attrs["keras_version"], root.attrs["backend"] = KERAS_VERSION, "jax"
        root.attrs["layer_names"] = [layer.name.encode() for layer in layers]
        root.create_group("top_level_model_weights").attrs["weight_names"] = []
        for layer in layers:
            arrays = _arrays(layer, weights.arrays)
            group = root.create_group(layer.name)
            group.attrs["weight_names"] = [f"{layer.name}/{leaf}".encode() for leaf in arrays]
            for leaf, array in arrays.items():
                group[f"{layer.name}/{leaf}"] = array


def write_weights_h5(weights: PretrainedWeights, file: IO[bytes]) -> None:
    """Writes weights alone as `model.save_weights("model.weights.h5")` does."""
    with h5py.File(file, "w") as h5:
        h5.attrs[METADATA_KEY] = json.dumps(describe(weights))
        _write_store(h5, weights)


def write_keras(weights: PretrainedWeights, file: IO[bytes]) -> None:
    """Writes a whole model as `model.save("model.keras")` does."""
    store = io.BytesIO()
    with h5py.File(store, "w") as h5:
        _write_store(h5, weights)
    metadata = {"keras_version": KERAS_VERSION, "date_saved": f"{datetime.now():%Y-%m-%d@%H:%M:%S}"}
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("metadata.json", json.dumps(metadata))
        archive.writestr("config.json", json.dumps(keras_config(_layers(weights), weights.network.model)))
        archive.writestr(METADATA_KEY + ".json", json.dumps(describe(weights)))
        archive.writestr("model.weights.h5", store.getvalue())


def _legacy_entries(h5: h5py.File) -> Iterator[tuple[str, LazyArray]]:
    """("layer/leaf", entry) of a legacy file: each layer's group lists its arrays."""
    root = h5.get("model_weights", h5)
    for layer in root:
        names = _texts(root[layer].attrs.get("weight_names", []))
        if len(set(names)) < len(names):
            raise UserError(f"its layer {layer} lists {Counter(names).most_common(1)[0][0]} more than once")
        for name in names:
            leaf = name.split("/")[-1].split(":")[0]
            yield f"{layer}/{leaf}", _entry(root[layer][name])


def _entry(item: h5py.Dataset) -> LazyArray:
    return LazyArray(item.shape, lambda: np.asarray(item))


def _store_entries(h5: h5py.File, config: dict[str, Any]) -> Iterator[tuple[str, LazyArray]]:
    """("layer/leaf", entry) of Keras 3's store, where a layer is a class with a number and its arrays are numbered."""
    names = _names_by_class(config)
    store = h5[next(name for name in STORES if name in h5)]
    for group in store:
        kind = group.rstrip("0123456789").removesuffix("_")
        variables = store[group].get("vars")
        if not variables:
            continue
        if kind not in LEAVES:  # such as Normalization: it belongs to no ResNet, and says so as an unexpected entry
            yield from ((f"{group}/{index}", _entry(item)) for index, item in variables.items())
            continue
        name = variables.attrs.get("name") or names.get(group)
        if name is None:
            raise UserError("its layers have no names, as Keras wrote before 3.6; save the model as .keras or .h5")
        for index, leaf in enumerate(LEAVES[kind][: len(variables)]):
            yield f"{name}/{leaf}", _entry(variables[str(index)])


def _write_store(h5: h5py.File, weights: PretrainedWeights) -> None:
    h5.create_group("vars").attrs["name"] = weights.network.model
    count: dict[str, int] = {}
    for layer in topological_order(_layers(weights)):
        kind = _snake_case(layer.kind)
        number = count[kind] = count.get(kind, -1) + 1
        variables = h5.create_group(f"layers/{kind}{f'_{number}' if number else ''}/vars")
        variables.attrs["name"] = layer.name
        for index, array in enumerate(_arrays(layer, weights.arrays).values()):
            variables[str(index)] = array


def _names_by_class(config: dict[str, Any]) -> dict[str, str]:
    """Group in the store → layer's name, from a model's configuration, which lists layers in Keras's order."""
    count: dict[str, int] = {}
    names = {}
    for layer in config.get("config", {}).get("layers", []):
        kind = _snake_case(layer["class_name"])
        number = count[kind] = count.get(kind, -1) + 1
        names[f"{kind}_{number}" if number else kind] = layer["config"]["name"]
    return names


def _snake_case(kind: str) -> str:
    """As Keras names a class in its store: Conv2D → conv2d, BatchNormalization → batch_normalization."""
    words = "".join(f"_{c}" if c.isupper() and i and not kind[i - 1].isdigit() else c for i, c in enumerate(kind))
    return words.lower().replace("2_d", "2d")


def _recognised(entries: Entries, nbytes: int, config: dict[str, Any], about: dict[str, Any]) -> PretrainedWeights:
    facts = _KerasMetadata.of(config)
    weights = identify(entries, nbytes, facts.image_size, about, facts.stem_relu)
    if config:
        _require_like_ours(config, weights)
    epsilon = weights.model.epsilon
    if other := sorted({e for e in facts.epsilons if abs(e - epsilon) > 1e-3 * epsilon}):
        title = KEY_FORMATS[weights.network.variant].title
        raise UserError(f"its batch norm has epsilon {other[0]:g}, where the network of {title} has {epsilon:g}")
    return weights


def _require_like_ours(config: dict[str, Any], weights: PretrainedWeights) -> None:
    """Raises UserError where a model's layers do something else than the network that its weights fit."""
    described = config["config"]["layers"]
    # The last layer may have any name.
    dense = [layer["config"]["name"] for layer in described if layer["class_name"] == "Dense"]
    ours = _layers(weights)
    ours = [*ours[:-1], ours[-1]._replace(name=dense[0] if len(dense) == 1 else ours[-1].name)]
    height, width = (
        feature_map_size(weights.model, side) for side in (weights.preprocessing.height, weights.preprocessing.width)
    )
    title = f"a {weights.network.model} of {KEY_FORMATS[weights.network.variant].title}"
    require_equivalent(config, ours, (height, width), title)


class _KerasMetadata:
    """What a model's configuration tells that weights do not."""

    def __init__(self, image_size: tuple[int, int] | None, stem_relu: bool | None, epsilons: list[float]) -> None:
        self.image_size, self.stem_relu, self.epsilons = image_size, stem_relu, epsilons

    @classmethod
    def of(cls, config: dict[str, Any]) -> "_KerasMetadata":
        layers = config.get("config", {}).get("layers", [])
        inputs = [of["config"] for of in layers if of["class_name"] == "InputLayer"]
        shape = (inputs[0].get("batch_shape") or inputs[0].get("batch_input_shape")) if inputs else None
        sides = tuple(shape[1:3]) if shape and len(shape) == 4 and None not in shape[1:3] else None
        after = [of["class_name"] for of in layers if "bn_conv1" in inputs_of(of)]
        epsilons = [of["config"].get("epsilon", 1e-3) for of in layers if of["class_name"] == "BatchNormalization"]
        return cls(sides, "MaxPooling2D" not in after if after else None, epsilons)


def _layers(weights: PretrainedWeights) -> list[Layer]:
    image = weights.preprocessing.height, weights.preprocessing.width
    return keras_layers(weights.model, image, KEY_FORMATS[weights.network.variant])


def _arrays(layer: Layer, table: FlatParams) -> dict[str, np.ndarray]:
    """A layer's arrays by Keras's names, in Keras's order."""
    if layer.table is None:
        return {}
    named = {leaf: f"{layer.table}/{TABLE_LEAVES.get(leaf, leaf)}" for leaf in LEAVES[_snake_case(layer.kind)]}
    return {leaf: table[name] for leaf, name in named.items() if name in table}


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    limit = MAX_TEXT if name.endswith(".json") else LARGEST
    if archive.getinfo(name).file_size > limit:
        raise UserError(f"{name} in it is larger than {limit // 2**20} MiB")
    return archive.read(name)


def _texts(values: Any) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _is_supported(item: h5py.Dataset) -> bool:
    try:
        return not item.external and not item.is_virtual and item.dtype.kind in "fiu"
    except TypeError:  # of a type that NumPy has not, such as times
        return False


def _check_plain(h5: h5py.File, nbytes: int) -> None:
    """Raises UserError for links, for arrays that lie in other files, are packed, or are not whole in so many bytes."""
    total, seen = 0, set()

    def check(group: h5py.Group, path: str) -> None:
        nonlocal total
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise UserError(f"{path}{name} in it is a link; only plain arrays are read")
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:  # two names for one thing: what could multiply, or go round in a circle
                raise UserError(f"{path}{name} in it is there under another name too; only plain arrays are read")
            seen.add(address)
            if isinstance(item, h5py.Group):
                check(item, f"{path}{name}/")
                continue
            if not _is_supported(item):
                raise UserError(f"{path}{name} in it is not a plain array of numbers")
            if item.id.get_create_plist().get_nfilters():  # of which a small one may unpack to any number of bytes
                raise UserError(
                    f"{path}{name} in it is packed, and may unpack to any size; `h5repack -f NONE` unpacks it"
                )
            total += max(item.size, math.prod(item.chunks or ())) * item.dtype.itemsize
            if total > nbytes:  # never written, or in chunks larger than what is in them
                raise UserError(f"its arrays take more than the {nbytes:,} bytes that it has; store every number")

    check(h5, "")
