"""Files of weights of every world: which kind a file is, reading and writing it."""

import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

from flaxresnet.data.path_checks import require_regular_file
from flaxresnet.runtime.atomic_io import atomic_write
from flaxresnet.runtime.errors import UserError
from flaxresnet.weights import keras_files, torch_files
from flaxresnet.weights.key_maps import KEY_FORMATS
from flaxresnet.weights.pretrained_weights import PretrainedWeights

PICKLED = (".pth", ".pt", ".bin", ".ckpt", ".tar")  # how PyTorch's files are called
SUFFIXES = (".h5", ".hdf5", ".keras", ".safetensors", *PICKLED)  # of files that are read
HDF5, ZIP = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"  # what such files begin with


def _write_keras_kind(write: Callable[..., None]) -> Callable[[PretrainedWeights, str, Path], None]:
    def writer(weights: PretrainedWeights, key_format: str, path: Path) -> None:
        with path.open("r+b") as file:
            write(weights, file)

    return writer


def _write_safetensors(weights: PretrainedWeights, key_format: str, path: Path) -> None:
    path.write_bytes(torch_files.write_safetensors(weights, key_format))


# Kind of file → whose names it can carry, and how it is written. Longer suffixes come first.
WRITERS: dict[str, tuple[tuple[str, ...], Callable[[PretrainedWeights, str, Path], None]]] = {
    ".weights.h5": (("tutorial", "keras"), _write_keras_kind(keras_files.write_weights_h5)),
    ".h5": (("tutorial", "keras"), _write_keras_kind(keras_files.write_h5)),
    ".keras": (("tutorial", "keras"), _write_keras_kind(keras_files.write_keras)),
    ".safetensors": (("torchvision", "huggingface"), _write_safetensors),
    ".pth": (("torchvision", "huggingface"), torch_files.write_pth),
}


def read_weights(path: str | Path) -> PretrainedWeights:
    """Reads a file of weights; its first bytes tell its kind, its names the network.

    Names and shapes are found to be a network's before any array is loaded, and a file holds no more numbers than it
    has bytes. So memory is bounded by the file's size: three times it for float32 as they are usually stored, sixteen
    times at most, for numbers of one byte in an archive that is packed; 256 MiB more for what small files declare.

    Raises:
      UserError: there is no such file, or it is damaged, of no known kind, or holds no ResNet that fits.
    """
    path = Path(path)
    require_regular_file(path)
    try:
        kind = _kind(path)
        if kind == ".safetensors":
            return torch_files.read_safetensors(path)
        if kind == ".pth":
            return torch_files.read_pth(path)
        with path.open("rb") as file:
            return keras_files.read_h5(file) if kind == ".h5" else keras_files.read_keras(file)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give a file of weights or a run's folder") from None
    except Exception as error:  # what a damaged file makes a reader raise is anybody's guess
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} cannot be read as weights ({reason}); is it whole?") from error


def write_weights(weights: PretrainedWeights, path: str | Path, key_format: str | None = None) -> None:
    """Writes a file of weights, whole or not at all; its suffix says which kind.

    Args:
      weights: what to write.
      path: a file that ends in one of `WRITERS`; what is there is replaced.
      world: whose names to use, `"torchvision"` or `"huggingface"`; None: the first world of the weights' variant.

    Raises:
      UserError: the kind is unknown, cannot hold this network, or the file cannot be written.
    """
    path = Path(path)
    kind = kind_to_write(path)
    key_format = key_format or weights.network.variant
    check_writable(weights, kind, key_format)
    with atomic_write(path) as temporary:
        WRITERS[kind][1](weights, key_format, temporary)


def kind_to_write(path: Path) -> str:
    """The kind of file that a name asks for; raises UserError where it asks for none."""
    for kind in WRITERS:
        if path.name.endswith(kind):
            return kind
    raise UserError(f"{path} does not say what to write; let its name end in {', '.join(WRITERS)}")


def check_writable(weights: PretrainedWeights, kind: str, key_format: str) -> None:
    """Raises UserError where a kind of file cannot hold these weights under that world's names."""
    network, worlds = weights.network, WRITERS[kind][0]
    fitting = _of_variant(worlds, network.variant)
    this = f"a {network.model} of the variant {network.variant}"
    if not fitting:
        others = [other for other, (names, _) in WRITERS.items() if _of_variant(names, network.variant)]
        raise UserError(f"{this} cannot be written as {kind}; its kinds are {', '.join(others)}")
    if key_format not in fitting:
        raise UserError(f"{this} cannot be written with the names of {key_format}; choose {' or '.join(fitting)}")
    if key_format == "huggingface" and (weights.model.groups, weights.model.widen) != (1, 1):
        raise UserError(
            f"Hugging Face's ResNet has neither groups nor wide blocks, so it cannot hold a {network.model}"
        )
    if not network.stem_relu and network.variant != "tutorial":
        raise UserError(
            f"{this} without a ReLU in its stem cannot be written for {KEY_FORMATS[key_format].title}, which has one"
        )
    if weights.num_classes is None:
        raise UserError("the weights have no last layer; train one with --init first")


def _of_variant(worlds: Iterable[str], variant: str) -> list[str]:
    return [name for name in worlds if KEY_FORMATS[name].variant == variant]


def _kind(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(9)
    if path.stat().st_size > keras_files.LARGEST:
        raise UserError(f"it is larger than {keras_files.LARGEST // 2**30} GiB, which no ResNet is")
    if start.startswith(HDF5):
        return ".h5"
    if start.startswith(ZIP):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if "model.weights.h5" in names:
            return ".keras"
        if any(name.endswith("data.pkl") for name in names):
            return ".pth"
        raise UserError("it is an archive of neither Keras nor PyTorch")
    if start[8:] == b"{" or path.suffix == ".safetensors":
        return ".safetensors"
    if path.suffix in PICKLED:
        return ".pth"
    raise UserError(f"it is no file of weights; known are {', '.join(WRITERS)}")
