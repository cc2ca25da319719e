"""Where weights come from: folders, files and the hub, which is played here."""

import sys
import types

import pytest
from random_weights import assert_same, random_weights

from flaxresnet.runtime.errors import UserError
from flaxresnet.weights.resolve import open_weights
from flaxresnet.weights.weight_files import write_weights


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with one model; what it is asked for is noted."""
    asked = []

    class NotFoundError(Exception):
        response = object()

    class NoSuchModelError(Exception):
        pass

    def download(model, name):
        asked.append((model, name))
        if model == "other/files":
            raise NotFoundError
        if model == "not/cached":
            error = NotFoundError()
            error.response = None
            raise error
        if model == "off/line":
            raise ConnectionError("no network")
        if model != "timm/resnet18.a1_in1k":
            raise NoSuchModelError
        if name != "model.safetensors":
            raise NotFoundError
        return str(tmp_path / "cache.safetensors")

    package = types.ModuleType("huggingface_hub")
    package.hf_hub_download = download
    errors = types.ModuleType("huggingface_hub.errors")
    errors.EntryNotFoundError, errors.RepositoryNotFoundError = NotFoundError, NoSuchModelError
    monkeypatch.setitem(sys.modules, "huggingface_hub", package)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    monkeypatch.chdir(tmp_path)
    return asked


def test_a_model_on_the_hub_is_fetched_and_read(hub, tmp_path):
    weights = random_weights("resnet18", "torchvision")
    write_weights(weights, tmp_path / "cache.safetensors")
    (tmp_path / "timm").mkdir()  # a folder of that name is in nobody's way
    assert_same(open_weights("timm/resnet18.a1_in1k"), weights)
    assert hub == [("timm/resnet18.a1_in1k", "model.safetensors")]


def test_what_the_hub_has_not_and_what_cannot_be_reached_is_said(hub):
    with pytest.raises(UserError, match=r"no/model is neither a file or folder here nor a public model on the hub"):
        open_weights("no/model")
    with pytest.raises(UserError, match=r"off/line .* hub cannot be reached; go online once, or"):
        open_weights("off/line")
    with pytest.raises(UserError, match=r"not/cached is no file .* hub cannot be reached; go online once, or"):
        open_weights("not/cached")
    with pytest.raises(UserError, match=r"other/files on the hub holds none of model\.safetensors, pytorch"):
        open_weights("other/files")
    with pytest.raises(UserError, match=r"folder/weights\.h5 does not exist"):
        open_weights("folder/weights.h5")
    assert ("folder/weights.h5", "model.safetensors") not in hub


def test_without_the_hubs_package_the_sentence_says_so(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"microsoft/resnet-50 is no file .* pip install 'flaxresnet\[hub\]'"):
        open_weights("microsoft/resnet-50")


def test_a_folder_of_hugging_face_is_read(tmp_path):
    weights = random_weights("resnet18", "torchvision")
    write_weights(weights, tmp_path / "model.safetensors", "huggingface")
    assert_same(open_weights(str(tmp_path)), weights)


def test_a_name_that_is_too_long_is_no_traceback():
    with pytest.raises(UserError, match="cannot be read: File name too long"):
        open_weights("x" * 300)
