"""Differences between a new run and a stored one that keep it from resuming."""

import dataclasses

import pytest
from example_run import INFO, with_data, with_options

from flaxresnet.config.validation import flag
from flaxresnet.runs.resume_check import config_diff

# A different value of each option.
OTHER_VALUES = {
    "data": "other.h5",
    "workdir": "elsewhere",
    "image_size": (96, 80),
    "resize": "pad",
    "max_corrupt_fraction": 0.5,
    "input": "stream",
    "workers": 3,
    "checkpoint_steps": 5,
    "shard_optimizer": True,
    "distributed": True,
    "coordinator_address": "host:1",
    "num_processes": 2,
    "process_id": 1,
    "epochs": 9,
    "batch_size": 4,
    "seed": 5,
    "recipe": "tutorial",
    "init": "other.h5",
    "freeze": "stem",
    "model": "resnet14",
    "stem": "small",
    "variant": "torchvision",
    "width": 16,
    "stem_relu": True,
    "precision": "bfloat16",
    "learning_rate": 0.5,
    "schedule": "constant",
    "warmup_epochs": 2.5,
    "label_smoothing": 0.3,
    "aug_strength": 0.25,
    "aug_warmup_epochs": 1.5,
    "hflip": False,
    "bn_momentum": 0.7,
    "zero_init_residual": False,
    "freeze_backbone_epochs": 2.0,
    "layer_decay": 0.25,
    "precise_bn_images": 0,
    "freeze_bn_stats": True,
    "grad_accum_steps": 2,
    "ghost_batch_size": 2,
    "optimizer": "lamb",
    "weight_decay": 0.25,
    "clip_grad": 0.5,
    "ema": 0.5,
    "crop_min_area": 0.5,
    "crop_pct": 0.5,
    "auto_augment": "randaugment",
    "background_prob": 0.5,
    "random_erasing": 0.5,
    "mixup": 0.5,
    "cutmix": 0.5,
    "report": False,
    "tensorboard": True,
    "profile": True,
    "verbose": True,
    "resume": False,
    "allow_config_changes": True,
    "compilation_cache": False,
}

# Options that may change when a run resumes.
RESUMABLE = {
    "data",
    "image_size",
    "resize",
    "max_corrupt_fraction",
    "workdir",
    "epochs",
    "precise_bn_images",
    "report",
    "tensorboard",
    "profile",
    "verbose",
    "resume",
    "compilation_cache",
    "input",
    "workers",
    "checkpoint_steps",
    "shard_optimizer",
    "distributed",
    "allow_config_changes",
    "coordinator_address",
    "num_processes",
    "process_id",
}


def descriptions(info, stored=INFO):
    return [description for description, _ in config_diff(info, stored)]


def fits(info):
    return [resumable for _, resumable in config_diff(info, INFO)]


def test_other_values_cover_all_options():
    assert set(OTHER_VALUES) == set(INFO.config.to_json())
    assert all(value != getattr(INFO.config, name) for name, value in OTHER_VALUES.items())


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_config_diff_names_changed_option(name):
    value = OTHER_VALUES[name]
    expected = [] if name in RESUMABLE else [f"{flag(name)} {getattr(INFO.config, name)}, not {value}"]
    assert descriptions(with_options(**{name: value}))[:1] == expected


def test_config_diff_names_changed_classes():
    info = dataclasses.replace(INFO, class_names=("palm", "五", "Fäuste"))
    assert descriptions(info) == ["classes Fäuste, 五, palm, not palm, 五, Fäuste"]


@pytest.mark.parametrize("changes", [{"height": 32}, {"scale": 1 / 255}, {"channels": "bgr"}], ids=str)
def test_config_diff_names_changed_preprocessing(changes):
    info = dataclasses.replace(INFO, preprocessing=dataclasses.replace(INFO.preprocessing, **changes))
    assert descriptions(info) == ["images of another size, resize mode or scaling"]


def test_config_diff_compares_data_fingerprints():
    assert descriptions(with_data(train_fingerprint="f" * 64)) == ["other training data (signs.h5)"]
    assert descriptions(with_data(test_fingerprint="f" * 64)) == ["other test data (signs.h5)"]
    assert descriptions(with_data(source="moved.h5")) == []


def test_config_diff_reports_resumable_changes():
    changed = with_options(learning_rate=OTHER_VALUES["learning_rate"], aug_strength=OTHER_VALUES["aug_strength"])
    assert fits(changed) == [True, True]
    for name in ("model", "width", "optimizer", "batch_size", "grad_accum_steps", "ema", "freeze", "weight_decay"):
        assert fits(with_options(**{name: OTHER_VALUES[name]})) == [False], name
    assert fits(dataclasses.replace(INFO, class_names=INFO.class_names[::-1])) == [False]
    assert fits(with_data(train_fingerprint="f" * 64)) == [True]
    assert fits(with_data(train_fingerprint="f" * 64, train_images=INFO.config.batch_size)) == [False]
    assert fits(with_data(test_fingerprint="f" * 64)) == [True]


def test_config_diff_ignores_package_versions():
    assert descriptions(dataclasses.replace(INFO, versions={"python": "3.13.0"})) == []


def test_config_diff_compares_crop_source():
    cropped = with_options(crop_min_area=0.5)
    streamed = dataclasses.replace(cropped, data=INFO.data | {"streamed": True})
    assert descriptions(cropped, streamed) == ["random crops of full-size images (--input stream)"]
    assert descriptions(streamed, cropped) == ["random crops of resized images (--input memory)"]
    assert descriptions(with_data(streamed=True)) == []
