"""Training of the networks for small images: options that depend on the network's stages and stem."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import TINY_CONFIG

import flaxresnet as fr
from flaxresnet.models.resnet import SIZES
from flaxresnet.runs.run_dir import RunDir
from flaxresnet.training.executable_cache import cache_key
from flaxresnet.weights.flat_params import flatten

CIFAR = TINY_CONFIG | {"model": "resnet20", "width": 4, "recipe": "fast", "epochs": 1}


@pytest.fixture
def one_block_a_stage(monkeypatch):
    monkeypatch.setitem(SIZES, "resnet20", SIZES["resnet20"] | {"stage_sizes": (1, 1, 1)})


def variables_of(run):
    """Returns a run's parameters and statistics, by flat name."""
    return {name: np.asarray(leaf) for name, leaf in flatten(fr.Classifier.load(run).variables).items()}


@pytest.mark.usefixtures("one_block_a_stage")
def test_cifar_network_trains_with_every_schedule(data_folder, tmp_path):
    first = tmp_path / "first"
    options = {"zero_init_residual": True, "ghost_batch_size": 4, "precise_bn_images": 16}
    fr.fit(fr.TrainConfig(data=data_folder, workdir=first, **CIFAR | options), quiet=True)
    metadata = RunDir(first).read_metadata()
    model = metadata.model()
    assert (model.stem, model.shortcut, model.head, model.width) == ("small", "pad", "average", 4)
    assert (model.zero_init_residual, model.ghost_batch_size) == (True, 4)

    second = tmp_path / "second"
    given = {"model": None, "width": None, "recipe": "finetune", "init": str(first), "freeze": "stem,stage2"}
    given |= {"freeze_backbone_epochs": 0.2, "layer_decay": 0.5, "precise_bn_images": 16}
    result = fr.fit(fr.TrainConfig(data=data_folder, workdir=second, **CIFAR | given), quiet=True)
    before = variables_of(first)
    after = variables_of(second)
    frozen = {name for name in before if name.startswith(("conv1", "bn_conv1", "res2", "bn2"))}
    for name, array in before.items():
        assert np.array_equal(array, after[name]) == (name in frozen), name
    assert fr.evaluate(second, data_folder).accuracy == result.test_accuracy


def test_freeze_rejects_missing_stage(data_folder, tmp_path):
    config = fr.TrainConfig(data=data_folder, workdir=tmp_path / "run", freeze="stage5", **CIFAR)
    with pytest.raises(fr.UserError, match="--freeze stage5 names stage5, but resnet20 ends with stage4"):
        fr.fit(config, quiet=True)


@pytest.mark.usefixtures("one_block_a_stage")
def test_small_stem_is_stored_and_compared(data_folder, tmp_path):
    options = TINY_CONFIG | {"recipe": "fast", "epochs": 1, "width": 4, "data": data_folder}
    run = tmp_path / "run"
    fr.fit(fr.TrainConfig(workdir=run, stem="small", **options), quiet=True)
    metadata = RunDir(run).read_metadata()
    assert metadata.config.stem == "small"
    assert metadata.model().stem == "small"
    with pytest.raises(fr.UserError, match="--stem small, not imagenet"):
        fr.fit(fr.TrainConfig(workdir=run, **options), quiet=True)
    init = {"model": None, "width": None, "init": str(run), "stem": "imagenet"}
    with pytest.raises(fr.UserError, match="has --stem small, not imagenet"):
        fr.fit(fr.TrainConfig(workdir=tmp_path / "other", **options | init), quiet=True)

    shapes = jax.ShapeDtypeStruct((1,), np.float32)
    changed = replace(metadata, config=replace(metadata.config, stem="imagenet"))
    assert cache_key(changed, shapes) != cache_key(metadata, shapes)
