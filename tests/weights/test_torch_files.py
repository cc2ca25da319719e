"""PyTorch's weights, by torchvision's and by Hugging Face's names, against networks in PyTorch."""

import pickle
import zipfile

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

HUGGING_FACE = [size for size, fields in SIZES.items() if "widen" not in fields]


CASES = [("torchvision", size) for size in SIZES] + [("huggingface", size) for size in HUGGING_FACE]
# Of each kind of block, one network.
KINDS = [("torchvision", "resnet14"), ("torchvision", "resnet18"), ("torchvision", "resnext50_32x4d")]
KINDS += [("torchvision", "wide_resnet50_2"), ("huggingface", "resnet14"), ("huggingface", "resnet18")]


@pytest.fixture(scope="module")
def torch():
    """PyTorch, which takes seconds to import."""
    torch = pytest.importorskip("torch", reason="install torch (the `peers` extra) to compare with it")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what waits for others takes time of a core as well
    yield torch
    torch.set_num_threads(threads)


def width_of(size: str) -> int:
    return 32 if "next" in size else 8


def torchvision(size: str):
    from torch_resnet import ResNet  # it imports torch

    return ResNet(**SIZES[size], width=width_of(size), classes=5)


def hugging_face(size: str):
    transformers = pytest.importorskip("transformers", reason="install transformers (the `peers` extra)")
    fields, width = SIZES[size], width_of(size)
    bottleneck = fields.get("bottleneck", True)
    stages = range(len(fields["stage_sizes"]))
    config = transformers.ResNetConfig(
        embedding_size=width,
        hidden_sizes=[width * 2**stage * (4 if bottleneck else 1) for stage in stages],
        depths=list(fields["stage_sizes"]),
        layer_type="bottleneck" if bottleneck else "basic",
        num_labels=5,
    )
    network = transformers.ResNetForImageClassification(config)
    forward = network.forward
    network.forward = lambda x: forward(x).logits
    return network


MAKERS = {"torchvision": torchvision, "huggingface": hugging_face}


@pytest.fixture
def whole_resnet14(monkeypatch):
    """The other tests make it one stage deep, which the networks in PyTorch are not."""
    monkeypatch.setitem(SIZES, "resnet14", {"stage_sizes": (1, 1, 1, 1)})


@pytest.mark.parity
@pytest.mark.parametrize(("key_format", "size"), KINDS)
def test_shallow_networks_agree_with_pytorch(torch, tmp_path, monkeypatch, key_format, size):
    fields = {"bottleneck": True} if size == "resnet14" else SIZES[size]  # the tests make it a basic one
    monkeypatch.setitem(SIZES, size, fields | {"stage_sizes": (2, 1)})
    check_exchange(torch, tmp_path, key_format, size)


@pytest.mark.campaign
@pytest.mark.parametrize(("key_format", "size"), CASES)
def test_pytorch_and_we_read_each_others_weights_and_agree(torch, whole_resnet14, tmp_path, key_format, size):
    check_exchange(torch, tmp_path, key_format, size)


@pytest.mark.parity
def test_names_and_shapes_equal_pytorchs(torch, whole_resnet14):
    for key_format, size in CASES:
        with torch.device("meta"):  # described, and never made
            state = MAKERS[key_format](size).state_dict()
        theirs = {name: tuple(tensor.shape) for name, tensor in state.items() if not name.endswith("tracked")}
        shapes = flat_params.shapes_of(resnet(size, "torchvision", num_classes=5, width=width_of(size)), (64, 64))
        ours = {KEY_FORMATS[key_format].key(name, 5): shape for name, shape in shapes.items()}
        assert ours.keys() == theirs.keys(), (key_format, size)
        turned = {name: KEY_FORMATS[key_format].import_shape(shape) for name, shape in theirs.items()}
        assert ours == turned, (key_format, size)


def check_exchange(torch, tmp_path, key_format, size):
    """Has PyTorch read our weights, answer and learn, and reads its own."""
    network = MAKERS[key_format](size)
    ours, images = random_weights(size, "torchvision", width_of(size)), random_images()
    # Ours → theirs: every name and shape must be there, and no other.
    write_weights(ours, tmp_path / "ours.pth", key_format)
    network.load_state_dict(torch.load(tmp_path / "ours.pth", weights_only=True), strict=True)
    from safetensors.torch import load_file, save_file

    write_weights(ours, tmp_path / "ours.safetensors", key_format)
    network.load_state_dict(load_file(tmp_path / "ours.safetensors"), strict=True)
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    with torch.inference_mode():
        expected = network.eval()(x).numpy()
    assert_close(logits_of(ours, images), expected)

    # Theirs → ours.
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, tmp_path / "t.safetensors")
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}, "epoch": 3}, tmp_path / "t.pth"
    )
    for name in ("t.safetensors", "t.pth", "ours.safetensors", "ours.pth"):
        assert_same(read_weights(tmp_path / name), ours)
    for name in ("ours.safetensors", "ours.pth"):
        back = read_weights(tmp_path / name)
        assert (back.class_names, back.preprocessing) == (ours.class_names, ours.preprocessing)

    if key_format == "torchvision":
        write_run(ours, tmp_path / "run", "a test")
        assert_same(read_run(tmp_path / "run"), ours)
    # Training: PyTorch forgets a tenth a step.
    pixels = {}
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(
                lambda _, x, out, name=name: pixels.update({name: x[0].numel() / x[0].shape[1]})
            )
    with torch.no_grad():
        network.train()(x)
    state, key = network.state_dict(), KEY_FORMATS[key_format].key
    for name, got in after_one_pass(ours, images, momentum=0.9).items():
        expected = state[key(name, 5)].numpy()
        if name.endswith("var"):
            # PyTorch averages the unbiased variance, n / (n - 1) times the batch's.
            n, kept = pixels[key(name, 5).rsplit(".", 1)[0]], 0.9 * ours.arrays[name]
            expected = kept + (expected - kept) * (n - 1) / n
        assert_close(got, expected)


@pytest.mark.parity
def test_half_precision_is_read(torch, tmp_path):
    from safetensors.torch import save_file

    network = torchvision("resnet18")
    save_file(
        {k: v.to(torch.bfloat16).contiguous() for k, v in network.state_dict().items()}, tmp_path / "h.safetensors"
    )
    table = read_weights(tmp_path / "h.safetensors").arrays
    assert {array.dtype for array in table.values()} == {np.dtype("float32")}
    expected = network.state_dict()["fc.weight"].to(torch.bfloat16).float().numpy().T
    np.testing.assert_array_equal(table["fc/kernel"], expected)


class Harm:
    def __reduce__(self):
        return open, ("harm-was-done", "w")


@pytest.mark.parity
def test_no_pickle_is_executed(torch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": Harm()}, tmp_path / "harm.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"conv1.weight": Harm()}, protocol=2))
    for name in ("harm.pth", "old.pth"):
        with pytest.raises(UserError, match=rf"{name}: it holds more than tensors; in PyTorch: torch\.save"):
            read_weights(name)
    assert not (tmp_path / "harm-was-done").exists()


def test_without_torch_the_sentence_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(UserError, match=r"to write \.pth needs torch; install it, or use \.safetensors"):
        torch_files.write_pth(random_weights("resnet14", "torchvision"), "torchvision", tmp_path / "w.pth")


PREFIXES = (("torchvision", "_orig_mod."), ("torchvision", "model."), ("huggingface", "module."))


def headless(entries):
    """The arrays as Hugging Face's network without its last layer has them."""
    return {key.removeprefix("resnet."): array for key, array in entries.items() if not key.startswith("classifier")}


def test_wrappers_prefixes_are_dropped(tmp_path):
    ours = random_weights("resnet14", "torchvision")
    for key_format, prefix in PREFIXES:
        entries = torch_files.state_dict(ours, key_format)
        save_file({prefix + key: array for key, array in entries.items()}, tmp_path / "w.safetensors")
        assert_same(read_weights(tmp_path / "w.safetensors"), ours)
    save_file(headless(entries), tmp_path / "w.safetensors")
    back = read_weights(tmp_path / "w.safetensors")
    assert (back.network.model, back.num_classes) == ("resnet14", None)


@pytest.mark.parity
def test_what_wrappers_put_before_the_names_is_taken_off(torch, tmp_path):
    ours = random_weights("resnet18", "torchvision")
    for key_format, prefix in PREFIXES:
        entries = torch_files.state_dict(ours, key_format)
        wrapped = {
            prefix + key: torch.nn.Parameter(torch.from_numpy(array))
            for key, array in entries.items()
            if array.dtype.kind == "f"
        }
        torch.save({"state_dict": wrapped}, tmp_path / "w.pth")
        assert_same(read_weights(tmp_path / "w.pth"), ours)
    torch.save({key: torch.from_numpy(array) for key, array in headless(entries).items()}, tmp_path / "w.pth")
    back = read_weights(tmp_path / "w.pth")
    assert (back.network.model, back.num_classes) == ("resnet18", None)


@pytest.mark.parity
def test_a_file_that_holds_no_table_is_refused(torch, tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth: it holds a list; in PyTorch: torch\.save\(model"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parity
def test_a_tensor_that_repeats_one_number_is_refused(torch, tmp_path):
    arrays = torch_files.state_dict(random_weights("resnet18", "torchvision"), "torchvision")
    state = {key: torch.from_numpy(array) for key, array in arrays.items()}
    state["fc.weight"] = torch.zeros(1, dtype=torch.float16).expand(10**7, 64)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth: its arrays have 640,\d{3},\d{3} numbers, and it has [\d,]+ bytes"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parity
def test_an_archive_that_unpacks_to_far_more_is_refused_before_it_does(torch, tmp_path):
    torch.save({"conv1.weight": torch.zeros(2**23)}, tmp_path / "stored.pth")
    with (
        zipfile.ZipFile(tmp_path / "stored.pth") as stored,
        zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    with pytest.raises(
        UserError,
        match=r"w\.pth: it unpacks to 33,\d{3},\d{3} bytes and has [\d,]+; store weights without packing them",
    ):
        read_weights(tmp_path / "w.pth")
