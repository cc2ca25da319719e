"""PyTorch's weights: safetensors, and `.pth` where torch is installed; no pickle is executed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from flaxresnet.errors import UserError
from flaxresnet.interop.layers import Table
from flaxresnet.interop.weights import Weights, describe, recognise
from flaxresnet.interop.worlds import WORLDS

ABOUT = "flaxresnet"  # the entry of the file's metadata that holds `describe`'s words
WRAPPERS = ("state_dict", "model_state_dict", "model")  # under which training scripts keep the weights in a checkpoint


def read_safetensors(path: Path) -> Weights:
    """Raises UserError or SafetensorError."""
    with safe_open(path, framework="flax") as file:
        about = (file.metadata() or {}).get(ABOUT)
        entries = {key: np.asarray(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118 - it is no dict
    return recognise(entries, about=json.loads(about) if about else None)


def read_pth(path: Path) -> Weights:
    """Raises UserError, or whatever torch raises for a damaged file or one that holds more than tensors."""
    torch = _torch("read")
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = next((state[name] for name in WRAPPERS if isinstance(state.get(name), dict)), state)
    tensors = {name.removeprefix("module."): tensor for name, tensor in state.items() if torch.is_tensor(tensor)}
    return recognise({name: tensor.to(torch.float32).numpy() for name, tensor in tensors.items()})


def write_safetensors(weights: Weights, world: str) -> bytes:
    return save(state_dict(weights, world), {"format": "pt", ABOUT: json.dumps(describe(weights))})


def write_pth(weights: Weights, world: str, path: Path) -> None:
    torch = _torch("write")
    torch.save({key: torch.from_numpy(array.copy()) for key, array in state_dict(weights, world).items()}, path)


def state_dict(weights: Weights, world: str) -> Table:
    """The arrays by PyTorch's names, with the counters that its batch norm has: all that `strict=True` asks for."""
    theirs = WORLDS[world]
    entries = {theirs.key(name, weights.num_classes): theirs.to_theirs(a) for name, a in weights.table.items()}
    counted = [key.removesuffix("running_mean") for key in entries if key.endswith("running_mean")]
    return entries | {f"{layer}num_batches_tracked": np.array(0, np.int64) for layer in counted}


def _torch(verb: str) -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(f"to {verb} .pth needs torch; install it, or use .safetensors") from None
    return torch
