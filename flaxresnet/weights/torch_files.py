"""PyTorch's weight files: `.safetensors`, and `.pth` if torch is installed. No pickle is executed."""

import io
import json
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from flaxresnet.runtime.errors import UserError
from flaxresnet.weights.flat_params import Entries, FlatParams, LazyArray
from flaxresnet.weights.key_maps import KEY_FORMATS
from flaxresnet.weights.pretrained_weights import METADATA_KEY, PretrainedWeights, describe, identify
from flaxresnet.weights.zip_limits import check_compression_ratio

# Keys of a training checkpoint that hold the state_dict.
WRAPPERS = ("state_dict", "state_dict_ema", "model_state_dict", "model")
SHORTCUT = re.compile(r"^(layer\d\.\d+)\.shortcut\.")


def read_safetensors(path: Path) -> PretrainedWeights:
    """Reads a `.safetensors` file. Raises UserError, or SafetensorError for a corrupt file."""
    with safe_open(path, framework="flax") as file:
        metadata = (file.metadata() or {}).get(METADATA_KEY)

        def entry(key: str) -> LazyArray:
            return LazyArray(tuple(file.get_slice(key).get_shape()), lambda: np.asarray(file.get_tensor(key)))

        entries = {key: entry(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
        if metadata is not None:
            metadata = json.loads(metadata)
        return identify(strip_prefix(entries), path.stat().st_size, metadata=metadata)


def read_pth(path: Path) -> PretrainedWeights:
    """Reads a `.pth` file: a state_dict, or a checkpoint with one under a key of `WRAPPERS`.

    Raises:
      UserError: torch is missing, the file holds other objects than tensors, or it contains no known ResNet.
      Exception: any error that torch raises for a corrupt file.
    """
    torch = _import_torch("read")
    if zipfile.is_zipfile(path):  # PyTorch wrote plain pickles before 1.6
        with zipfile.ZipFile(path) as archive:
            check_compression_ratio(archive, path.stat().st_size)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError("the file holds more than tensors; in PyTorch: torch.save(model.state_dict(), …)") from None
    if isinstance(state, dict):
        state = next((state[name] for name in WRAPPERS if isinstance(state.get(name), dict)), state)
    if not isinstance(state, dict):
        raise UserError(f"the file holds a {type(state).__name__}; in PyTorch: torch.save(model.state_dict(), …)")

    def entry(tensor: Any) -> LazyArray:
        # NumPy has no bfloat16. `identify` rejects complex and boolean tensors.
        array = tensor.detach()
        if array.is_floating_point():
            return LazyArray(tuple(array.shape), lambda: array.to(torch.float32).numpy())
        return LazyArray(tuple(array.shape), array.numpy)

    entries = {name: entry(tensor) for name, tensor in state.items() if torch.is_tensor(tensor)}
    metadata = getattr(state, "_metadata", {}).get(METADATA_KEY)
    return identify(strip_prefix(entries), path.stat().st_size, metadata=metadata)


def write_safetensors(weights: PretrainedWeights, key_format: str, file: IO[bytes]) -> None:
    """Writes a `.safetensors` file; the metadata of `describe` goes into the header."""
    metadata = {"format": "pt", METADATA_KEY: json.dumps(describe(weights))}
    file.write(save(state_dict(weights, key_format), metadata))


def write_pth(weights: PretrainedWeights, key_format: str, file: IO[bytes]) -> None:
    """Writes a state_dict as `torch.save(model.state_dict(), path)` does."""
    torch = _import_torch("write")
    arrays = state_dict(weights, key_format)
    state = OrderedDict((key, torch.from_numpy(array.copy())) for key, array in arrays.items())
    # PyTorch stores its modules' versions here, and `load_state_dict` ignores other entries.
    state._metadata = {METADATA_KEY: describe(weights)}  # type: ignore[attr-defined]
    buffer = io.BytesIO()  # torch.save turns a full disk into a RuntimeError; file.write raises OSError
    torch.save(state, buffer)
    file.write(buffer.getbuffer())


def state_dict(weights: PretrainedWeights, key_format: str) -> FlatParams:
    """Returns all entries that `load_state_dict(strict=True)` needs, including batch norm's step counters.

    Args:
      weights: the weights; they must have a last layer.
      key_format: a key of `KEY_FORMATS` that has PyTorch's layout.
    """
    names = KEY_FORMATS[key_format]
    state = {names.key(name, weights.num_classes): names.export_array(array) for name, array in weights.arrays.items()}
    norms = [key.removesuffix("running_mean") for key in state if key.endswith("running_mean")]
    return state | {f"{norm}num_batches_tracked": np.array(0, np.int64) for norm in norms}


def strip_prefix(entries: Entries) -> Entries:
    """Returns the entries without the key prefix of wrappers such as DataParallel, torch.compile and Lightning.

    Also adds the prefix `resnet.` that Hugging Face's model without its last layer leaves out, and renames `shortcut`,
    as networks for CIFAR often call the layers of a shortcut, to `downsample`.
    """
    stem_keys = [key_format.stem_key for key_format in KEY_FORMATS.values() if key_format.torch]
    if not any(key in entries for key in stem_keys):
        # Blocks have a `conv1.weight` too; the shortest match is the stem's.
        matches = [(name, key) for key in stem_keys for name in entries if name.endswith("." + key)]
        name, stem_key = min(matches, key=lambda match: len(match[0]), default=("", ""))
        prefix = name.removesuffix(stem_key)
        entries = {key.removeprefix(prefix): entry for key, entry in entries.items()}
    if KEY_FORMATS["huggingface"].stem_key.removeprefix("resnet.") in entries:
        return {f"resnet.{name}": entry for name, entry in entries.items()}
    return {SHORTCUT.sub(r"\1.downsample.", name): entry for name, entry in entries.items()}


def _import_torch(verb: str) -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(f"to {verb} .pth needs torch; install torch, or use .safetensors") from None
    return torch
