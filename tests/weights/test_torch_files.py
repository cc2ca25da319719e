"""PyTorch's weights in torchvision's and Hugging Face's key formats, compared with networks in PyTorch."""

import pickle
import sys
import zipfile
from functools import partial

import numpy as np
import pytest
from random_weights import after_one_pass, assert_close, assert_same, logits_of, random_images, random_weights
from safetensors.numpy import save_file

from flaxresnet.models.resnet import SIZES, resnet
from flaxresnet.runtime.errors import UserError
from flaxresnet.weights import flat_params, torch_files
from flaxresnet.weights.key_maps import KEY_FORMATS
from flaxresnet.weights.run_weights import read_run, write_run
from flaxresnet.weights.weight_files import read_weights, write_weights

PUBLISHED = {size: fields for size, fields in SIZES.items() if "shortcut" not in fields}
ALL_CASES = [("torchvision", size) for size in PUBLISHED]
ALL_CASES += [("huggingface", size) for size, fields in PUBLISHED.items() if "widen" not in fields]
# One network for each kind of block.
BLOCK_CASES = [("torchvision", "resnet14"), ("torchvision", "resnet18"), ("torchvision", "resnext50_32x4d")]
BLOCK_CASES += [("torchvision", "wide_resnet50_2"), ("huggingface", "resnet14"), ("huggingface", "resnet18")]
PREFIXES = (("torchvision", "_orig_mod."), ("torchvision", "model."), ("huggingface", "module."))


@pytest.fixture(scope="module")
def torch():
    """Yields PyTorch, which takes seconds to import."""
    torch = pytest.importorskip("torch", reason="install torch (the `peers` extra) to compare with it")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # idle threads of PyTorch busy-wait
    yield torch
    torch.set_num_threads(threads)


def width_of(size: str) -> int:
    return 32 if "next" in size else 8


def torchvision(size: str):
    from torch_resnet import ResNet  # it imports torch

    return ResNet(**SIZES[size], width=width_of(size), classes=5)


def hugging_face(size: str):
    transformers = pytest.importorskip("transformers", reason="install transformers (the `peers` extra)")
    fields = SIZES[size]
    bottleneck = fields.get("bottleneck", True)
    depths = list(fields["stage_sizes"])
    expansion = 4 if bottleneck else 1
    config = transformers.ResNetConfig(
        embedding_size=width_of(size),
        hidden_sizes=[width_of(size) * 2**stage * expansion for stage in range(len(depths))],
        depths=depths,
        layer_type="bottleneck" if bottleneck else "basic",
        num_labels=5,
    )
    network = transformers.ResNetForImageClassification(config)
    forward = network.forward
    network.forward = lambda x: forward(x).logits
    return network


PYTORCH_NETWORKS = {"torchvision": torchvision, "huggingface": hugging_face}


@pytest.fixture
def full_resnet14(monkeypatch):
    """Restores the four stages of resnet14, which `conftest.py` reduces to one."""
    monkeypatch.setitem(SIZES, "resnet14", {"stage_sizes": (1, 1, 1, 1)})


@pytest.mark.parity
@pytest.mark.parametrize(("key_format", "size"), BLOCK_CASES)
def test_shallow_networks_agree_with_pytorch(torch, tmp_path, monkeypatch, key_format, size):
    fields = {"bottleneck": True} if size == "resnet14" else SIZES[size]  # conftest.py makes resnet14 a basic one
    monkeypatch.setitem(SIZES, size, fields | {"stage_sizes": (2, 1)})
    check_exchange(torch, tmp_path, key_format, size)


def test_read_safetensors_with_cifar_names(tmp_path):
    """Public networks for CIFAR have a 3×3 `conv1`, and often `shortcut` and `linear` for `downsample` and `fc`."""
    weights = random_weights("resnet18", "torchvision", image=32, stem="small")
    state = torch_files.state_dict(weights, "torchvision")
    renamed = {}
    for name, array in state.items():
        renamed[name.replace("downsample", "shortcut").replace("fc.", "linear.")] = array
    save_file(renamed, tmp_path / "cifar.safetensors")
    restored = read_weights(tmp_path / "cifar.safetensors")
    assert_same(restored, weights)
    assert restored.network.stem == "small"
    assert (restored.preprocessing.height, restored.preprocessing.width) == (32, 32)


@pytest.mark.campaign
@pytest.mark.parametrize(("key_format", "size"), ALL_CASES)
def test_all_networks_agree_with_pytorch(torch, full_resnet14, tmp_path, key_format, size):
    check_exchange(torch, tmp_path, key_format, size)


@pytest.mark.parity
def test_names_and_shapes_equal_pytorchs(torch, full_resnet14):
    for key_format, size in ALL_CASES:
        with torch.device("meta"):  # shapes without memory
            state = PYTORCH_NETWORKS[key_format](size).state_dict()
        expected = {}
        for name, tensor in state.items():
            if not name.endswith("num_batches_tracked"):
                expected[name] = KEY_FORMATS[key_format].import_shape(tuple(tensor.shape))
        shapes = flat_params.shapes_of(resnet(size, "torchvision", num_classes=5, width=width_of(size)), (64, 64))
        actual = {KEY_FORMATS[key_format].key(name, 5): shape for name, shape in shapes.items()}
        assert actual == expected, (key_format, size)


def check_exchange(torch, folder, key_format, size):
    """Loads exported weights into PyTorch, compares logits and running statistics, and imports PyTorch's files."""
    from safetensors.torch import load_file, save_file

    network = PYTORCH_NETWORKS[key_format](size)
    weights = random_weights(size, "torchvision", width_of(size))
    images = random_images()
    # Export. strict=True requires all names and shapes, and no others.
    write_weights(weights, folder / "ours.pth", key_format)
    network.load_state_dict(torch.load(folder / "ours.pth", weights_only=True), strict=True)
    write_weights(weights, folder / "ours.safetensors", key_format)
    network.load_state_dict(load_file(folder / "ours.safetensors"), strict=True)
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    with torch.inference_mode():
        assert_close(logits_of(weights, images), network.eval()(x).numpy())

    # Import.
    state = network.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "torch.safetensors")
    checkpoint = {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3}
    torch.save(checkpoint, folder / "torch.pth")
    for name in ("torch.safetensors", "torch.pth"):
        assert_same(read_weights(folder / name), weights)
    for name in ("ours.safetensors", "ours.pth"):
        restored = read_weights(folder / name)
        assert_same(restored, weights)
        assert restored.class_names == weights.class_names
        assert restored.preprocessing == weights.preprocessing
    if key_format == "torchvision":
        write_run(weights, folder / "run", "a test")
        assert_same(read_run(folder / "run"), weights)

    # Running statistics; PyTorch's default momentum is 0.1, which is 0.9 in Flax.
    elements = {}

    def count_elements(name, module, inputs, output):
        elements[name] = inputs[0].numel() / inputs[0].shape[1]

    for name, module in network.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(partial(count_elements, name))
    with torch.no_grad():
        network.train()(x)
    state = network.state_dict()
    for name, actual in after_one_pass(weights, images, momentum=0.9).items():
        key = KEY_FORMATS[key_format].key(name, 5)
        expected = state[key].numpy()
        if name.endswith("var"):
            # PyTorch averages the unbiased variance, n / (n - 1) times the batch's.
            n = elements[key.removesuffix(".running_var")]
            old = 0.9 * weights.arrays[name]
            expected = old + (expected - old) * (n - 1) / n
        assert_close(actual, expected)


@pytest.mark.parity
def test_bfloat16_is_read_as_float32(torch, tmp_path):
    from safetensors.torch import save_file

    state = {name: tensor.to(torch.bfloat16) for name, tensor in torchvision("resnet18").state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    arrays = read_weights(tmp_path / "w.safetensors").arrays
    assert {array.dtype for array in arrays.values()} == {np.dtype("float32")}
    np.testing.assert_array_equal(arrays["fc/kernel"], state["fc.weight"].float().numpy().T)


class MaliciousPickle:
    def __reduce__(self):
        return open, ("executed", "w")


@pytest.mark.parity
def test_pickles_are_not_executed(torch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": MaliciousPickle()}, tmp_path / "zip.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"conv1.weight": MaliciousPickle()}, protocol=2))
    for name in ("zip.pth", "old.pth"):
        with pytest.raises(UserError, match=rf"{name}: the file holds more than tensors; in PyTorch: torch\.save"):
            read_weights(name)
    assert not (tmp_path / "executed").exists()


def test_pth_without_torch_names_alternative(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"to write \.pth needs torch; install torch, or use \.safetensors"):
        write_weights(random_weights("resnet14", "torchvision"), tmp_path / "w.pth")


def drop_head(entries):
    """Returns the entries of Hugging Face's `ResNetModel`, which has no last layer."""
    return {key.removeprefix("resnet."): array for key, array in entries.items() if not key.startswith("classifier")}


def test_wrapper_prefixes_are_stripped(tmp_path):
    weights = random_weights("resnet14", "torchvision")
    for key_format, prefix in PREFIXES:
        entries = torch_files.state_dict(weights, key_format)
        save_file({prefix + key: array for key, array in entries.items()}, tmp_path / "w.safetensors")
        assert_same(read_weights(tmp_path / "w.safetensors"), weights)
    save_file(drop_head(entries), tmp_path / "w.safetensors")
    headless = read_weights(tmp_path / "w.safetensors")
    assert (headless.network.model, headless.num_classes) == ("resnet14", None)


@pytest.mark.parity
def test_wrapped_parameters_are_read(torch, tmp_path):
    weights = random_weights("resnet18", "torchvision")
    entries = torch_files.state_dict(weights, "torchvision")
    state = {}
    for key, array in entries.items():
        if array.dtype.kind == "f":
            state["_orig_mod." + key] = torch.nn.Parameter(torch.from_numpy(array))
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    assert_same(read_weights(tmp_path / "w.pth"), weights)


@pytest.mark.parity
def test_pth_without_state_dict_is_rejected(torch, tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth: the file holds a list; in PyTorch: torch\.save\(model"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parity
def test_expanded_tensor_is_rejected(torch, tmp_path):
    arrays = torch_files.state_dict(random_weights("resnet18", "torchvision"), "torchvision")
    state = {key: torch.from_numpy(array) for key, array in arrays.items()}
    state["fc.weight"] = torch.zeros(1, dtype=torch.float16).expand(10**7, 64)  # one stored element
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth: the arrays have 640,\d{3},\d{3} elements, but the file has [\d,]+"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parity
def test_pth_zip_bomb_is_rejected(torch, tmp_path):
    torch.save({"conv1.weight": torch.zeros(2**23)}, tmp_path / "stored.pth")
    with (
        zipfile.ZipFile(tmp_path / "stored.pth") as stored,
        zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as compressed,
    ):
        for name in stored.namelist():
            compressed.writestr(name, stored.read(name))
    with pytest.raises(UserError, match=r"w\.pth: the archive has [\d,]+ bytes but unpacks to 33,\d{3},\d{3}"):
        read_weights(tmp_path / "w.pth")
