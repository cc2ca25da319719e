"""Weight files of every format: detection of the format, reading and writing."""

import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from flaxresnet.data.path_checks import require_regular_file
from flaxresnet.runtime.atomic_io import atomic_write
from flaxresnet.runtime.errors import UserError
from flaxresnet.weights import keras_files, torch_files
from flaxresnet.weights.key_maps import KEY_FORMATS
from flaxresnet.weights.pretrained_weights import PretrainedWeights

PICKLED = (".pth", ".pt", ".bin", ".ckpt", ".tar")  # suffixes of PyTorch's files
SUFFIXES = (".h5", ".hdf5", ".keras", ".safetensors", *PICKLED)  # of files that can be read
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
ZIP_MAGIC = b"PK\x03\x04"

Writer = Callable[[PretrainedWeights, str, IO[bytes]], None]
# Suffix → the key formats that such a file can have, and its writer. A suffix precedes those that it ends with.
WRITERS: dict[str, tuple[tuple[str, ...], Writer]] = {
    ".weights.h5": (("tutorial", "keras"), keras_files.write_weights_h5),
    ".h5": (("tutorial", "keras"), keras_files.write_h5),
    ".keras": (("tutorial", "keras"), keras_files.write_keras),
    ".safetensors": (("torchvision", "huggingface"), torch_files.write_safetensors),
    ".pth": (("torchvision", "huggingface"), torch_files.write_pth),
}


def read_weights(path: str | Path) -> PretrainedWeights:
    """Reads a weight file. Its first bytes show the format, and its arrays' names show the network.

    No array is loaded before all names and shapes fit, and a file can declare at most as many elements as it has bytes.
    Memory is therefore bounded by the file's size: three times the size for float32 as usually stored, sixteen times
    for one-byte elements in a compressed archive, and 256 MiB more for the sizes that small files may declare.

    Raises:
      UserError: the file does not exist, is corrupt, has an unknown format, or contains no known ResNet.
    """
    path = Path(path)
    require_regular_file(path)
    try:
        file_format = _detect_format(path)
        if file_format == ".safetensors":
            return torch_files.read_safetensors(path)
        if file_format == ".pth":
            return torch_files.read_pth(path)
        with path.open("rb") as file:
            return keras_files.read_h5(file) if file_format == ".h5" else keras_files.read_keras(file)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give a weight file or a run folder") from None
    except Exception as error:  # the exceptions of h5py, safetensors and torch for corrupt files are not documented
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} cannot be read as weights ({reason}); check that the file is complete") from error


def write_weights(weights: PretrainedWeights, path: str | Path, key_format: str | None = None) -> None:
    """Writes a weight file atomically, in the format of its suffix.

    Args:
      weights: the weights; they must have a last layer.
      path: a path that ends with a key of `WRITERS`. An existing file is replaced.
      key_format: `"torchvision"` or `"huggingface"`, for PyTorch's formats; None means the weights' variant.

    Raises:
      UserError: the suffix is unknown, the format cannot store this network, or the file cannot be written.
    """
    path = Path(path)
    suffix = _known_suffix(path)
    key_format = key_format or weights.network.variant
    _check_writable(weights, suffix, key_format)
    _, write = WRITERS[suffix]
    with atomic_write(path) as temporary, temporary.open("r+b") as file:
        write(weights, key_format, file)


def _known_suffix(path: Path) -> str:
    """Returns the key of `WRITERS` that the path ends with; raises UserError if there is none."""
    for suffix in WRITERS:
        if path.name.endswith(suffix):
            return suffix
    raise UserError(f"{path} has no suffix of a weight file; use one of {', '.join(WRITERS)}")


def _check_writable(weights: PretrainedWeights, suffix: str, key_format: str) -> None:
    """Raises UserError if a file with this suffix and key format cannot store the weights."""
    network = weights.network
    supported = _of_variant(WRITERS[suffix][0], network.variant)
    title = f"a {network.model} of the variant {network.variant}"
    if not supported:
        suffixes = [other for other, (names, _) in WRITERS.items() if _of_variant(names, network.variant)]
        raise UserError(f"{title} cannot be written as {suffix}; use one of {', '.join(suffixes)}")
    if key_format not in supported:
        raise UserError(f"{title} cannot be written in the key format {key_format}; use {' or '.join(supported)}")
    if weights.model.shortcut == "pad" and not KEY_FORMATS[key_format].torch:
        raise UserError(
            f"Keras has no layer that pads channels, so {suffix} cannot hold a {network.model}; train one "
            "with --variant torchvision, and use .safetensors or .pth"
        )
    if key_format == "huggingface" and (network.stem == "small" or weights.model.shortcut == "pad"):
        raise UserError(
            "Hugging Face's ResNet has a 7×7 stem and convolutions in its shortcuts, so it cannot hold "
            f"{title} with the stem {network.stem}; use torchvision"
        )
    if key_format == "huggingface" and (weights.model.groups, weights.model.widen) != (1, 1):
        raise UserError(
            f"Hugging Face's ResNet has no grouped or wide blocks, so it cannot hold a {network.model}; use torchvision"
        )
    if not network.stem_relu and network.variant != "tutorial":
        raise UserError(
            f"{title} without a ReLU in its stem cannot be written: that of {KEY_FORMATS[key_format].title} has one"
        )
    if weights.num_classes is None:
        raise UserError("the weights have no last layer; train one with --init first")


def _of_variant(key_formats: Iterable[str], variant: str) -> list[str]:
    return [name for name in key_formats if KEY_FORMATS[name].variant == variant]


def _detect_format(path: Path) -> str:
    """Returns the format of a file: ".h5", ".keras", ".safetensors" or ".pth"."""
    with path.open("rb") as file:
        start = file.read(9)
    if path.stat().st_size > keras_files.MAX_FILE_SIZE:
        raise UserError(f"the file is larger than {keras_files.MAX_FILE_SIZE // 2**30} GiB, the limit for weights")
    if start.startswith(HDF5_MAGIC):
        return ".h5"
    if start.startswith(ZIP_MAGIC):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if "model.weights.h5" in names:
            return ".keras"
        if any(name.endswith("data.pkl") for name in names):
            return ".pth"
        raise UserError("the archive was written by neither Keras nor PyTorch; give a .keras or .pth file")
    if start[8:] == b"{" or path.suffix == ".safetensors":
        return ".safetensors"
    if path.suffix in PICKLED:
        return ".pth"
    raise UserError(f"the file is in no format of weights; the known ones are {', '.join(WRITERS)}")
