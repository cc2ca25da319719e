"""PyTorch's weights: safetensors, and `.pth` where torch is installed; no pickle is executed."""

import io
import json
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from flaxresnet.runtime.errors import UserError
from flaxresnet.weights.flat_params import Entries, FlatParams, LazyArray
from flaxresnet.weights.key_maps import KEY_FORMATS
from flaxresnet.weights.pretrained_weights import METADATA_KEY, PretrainedWeights, describe, identify
from flaxresnet.weights.zip_limits import check_compression_ratio

# Under which training scripts keep the weights in a checkpoint.
WRAPPERS = ("state_dict", "state_dict_ema", "model_state_dict", "model")


def read_safetensors(path: Path) -> PretrainedWeights:
    """Raises UserError or SafetensorError."""
    with safe_open(path, framework="flax") as file:
        about = (file.metadata() or {}).get(METADATA_KEY)

        def entry(key: str) -> LazyArray:
            return LazyArray(tuple(file.get_slice(key).get_shape()), lambda: np.asarray(file.get_tensor(key)))

        entries = {key: entry(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
        return identify(strip_prefix(entries), path.stat().st_size, about=json.loads(about) if about else None)


def read_pth(path: Path) -> PretrainedWeights:
    """Raises UserError, or whatever torch raises for a damaged file or one that holds more than tensors."""
    torch = _torch("read")
    if zipfile.is_zipfile(path):  # else a pickle, as PyTorch wrote before 1.6
        with zipfile.ZipFile(path) as archive:
            check_compression_ratio(archive, path.stat().st_size)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError("it holds more than tensors; in PyTorch: torch.save(model.state_dict(), …)") from None
    if isinstance(state, dict):
        state = next((state[name] for name in WRAPPERS if isinstance(state.get(name), dict)), state)
    if not isinstance(state, dict):
        raise UserError(f"it holds a {type(state).__name__}; in PyTorch: torch.save(model.state_dict(), …)")
    about = getattr(state, "_metadata", {}).get(METADATA_KEY)
    tensors = {name: tensor.detach() for name, tensor in state.items() if torch.is_tensor(tensor)}

    def entry(tensor: Any) -> LazyArray:
        # NumPy has no bfloat16, and what is no real number is for `identify` to name.
        return LazyArray(
            tuple(tensor.shape),
            lambda: (tensor.to(torch.float32) if tensor.is_floating_point() else tensor).numpy(),
        )

    entries = {name: entry(tensor) for name, tensor in tensors.items()}
    return identify(strip_prefix(entries), path.stat().st_size, about=about)


def write_safetensors(weights: PretrainedWeights, key_format: str) -> bytes:
    return save(state_dict(weights, key_format), {"format": "pt", METADATA_KEY: json.dumps(describe(weights))})


def write_pth(weights: PretrainedWeights, key_format: str, path: Path) -> None:
    torch = _torch("write")
    state = OrderedDict((key, torch.from_numpy(array.copy())) for key, array in state_dict(weights, key_format).items())
    # Where PyTorch keeps its modules' versions; `load_state_dict` looks only for its own entries.
    state._metadata = {METADATA_KEY: describe(weights)}  # type: ignore[attr-defined]
    buffer = io.BytesIO()  # of a full disk PyTorch would tell in its own way
    torch.save(state, buffer)
    path.write_bytes(buffer.getbuffer())


def state_dict(weights: PretrainedWeights, key_format: str) -> FlatParams:
    """The arrays by PyTorch's names, with the counters that its batch norm has: all that `strict=True` asks for."""
    theirs = KEY_FORMATS[key_format]
    entries = {theirs.key(name, weights.num_classes): theirs.export_array(a) for name, a in weights.arrays.items()}
    counted = [key.removesuffix("running_mean") for key in entries if key.endswith("running_mean")]
    return entries | {f"{layer}num_batches_tracked": np.array(0, np.int64) for layer in counted}


def strip_prefix(entries: Entries) -> Entries:
    """The entries without what wrappers put before their names: DataParallel, torch.compile, Lightning and the like.

    Hugging Face's network without its last layer leaves out `resnet.`, which is put back.
    """
    stem_keys = [key_format.stem_key for key_format in KEY_FORMATS.values() if key_format.torch]
    if not any(stem_key in entries for stem_key in stem_keys):
        # The first convolution's name is the shortest of those that end alike.
        ends = [(name, stem_key) for stem_key in stem_keys for name in entries if name.endswith("." + stem_key)]
        name, stem_key = min(ends, key=lambda pair: len(pair[0]), default=("", ""))
        entries = {key.removeprefix(name.removesuffix(stem_key)): entry for key, entry in entries.items()}
    whole = "resnet.embedder.embedder.convolution.weight"
    headless = whole.removeprefix("resnet.") in entries
    return {f"resnet.{name}": entry for name, entry in entries.items()} if headless else entries


def _torch(verb: str) -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(f"to {verb} .pth needs torch; install it, or use .safetensors") from None
    return torch
