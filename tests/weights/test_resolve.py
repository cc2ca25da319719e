"""Sources of weights: folders, files and a fake hub."""

import sys
import types

import pytest
from random_weights import assert_same, random_weights

from flaxresnet.runtime.errors import UserError
from flaxresnet.weights.resolve import open_weights
from flaxresnet.weights.weight_files import write_weights


@pytest.fixture
def hub_requests(monkeypatch, tmp_path):
    """Installs a fake `huggingface_hub` with one model, and yields the list of (model, file) that are requested."""
    requests = []

    class EntryNotFoundError(Exception):
        response = object()

    class RepositoryNotFoundError(Exception):
        pass

    def hf_hub_download(model, name):
        requests.append((model, name))
        if model == "other/files":
            raise EntryNotFoundError
        if model == "not/cached":
            error = EntryNotFoundError()
            error.response = None
            raise error
        if model == "off/line":
            raise ConnectionError("no network")
        if model != "timm/resnet18.a1_in1k":
            raise RepositoryNotFoundError
        if name != "model.safetensors":
            raise EntryNotFoundError
        return str(tmp_path / "cache.safetensors")

    package = types.ModuleType("huggingface_hub")
    package.hf_hub_download = hf_hub_download
    errors = types.ModuleType("huggingface_hub.errors")
    errors.EntryNotFoundError = EntryNotFoundError
    errors.RepositoryNotFoundError = RepositoryNotFoundError
    monkeypatch.setitem(sys.modules, "huggingface_hub", package)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    monkeypatch.chdir(tmp_path)
    return requests


def test_open_weights_downloads_hub_model(hub_requests, tmp_path):
    weights = random_weights("resnet18", "torchvision")
    write_weights(weights, tmp_path / "cache.safetensors")
    (tmp_path / "timm").mkdir()  # the owner's name alone does not make the id a local path
    assert_same(open_weights("timm/resnet18.a1_in1k"), weights)
    assert hub_requests == [("timm/resnet18.a1_in1k", "model.safetensors")]


def test_open_weights_explains_hub_failures(hub_requests):
    failures = {
        "no/model": r"no/model is neither a local path nor a public model on the Hugging Face hub",
        "off/line": r"off/line .* hub cannot be reached; go online once, or",
        "not/cached": r"not/cached is not a local path, .* hub cannot be reached; go online once, or",
        "other/files": r"other/files .* has none of the files model\.safetensors, pytorch",
        "folder/weights.h5": r"folder/weights\.h5 does not exist",
    }
    for source, message in failures.items():
        with pytest.raises(UserError, match=message):
            open_weights(source)
    assert ("folder/weights.h5", "model.safetensors") not in hub_requests


def test_open_weights_names_missing_extra(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"microsoft/resnet-50 is not a local path.* pip install 'flaxresnet\[hub\]'"):
        open_weights("microsoft/resnet-50")


def test_open_weights_reads_save_pretrained_folder(tmp_path):
    weights = random_weights("resnet18", "torchvision")
    write_weights(weights, tmp_path / "model.safetensors", "huggingface")
    assert_same(open_weights(str(tmp_path)), weights)


def test_open_weights_rejects_overlong_name():
    with pytest.raises(UserError, match="cannot be read: File name too long"):
        open_weights("x" * 300)
