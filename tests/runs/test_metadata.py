"""Metadata of a run: its network and its JSON."""

import dataclasses
import json

import pytest
from example_run import INFO, with_options

from flaxresnet.config.train_config import TrainConfig
from flaxresnet.runs.metadata import FORMAT, RunMetadata


def test_model_follows_config():
    model = INFO.model()
    assert model.num_classes == 3
    assert model.stage_sizes == (2, 2, 2, 2)
    assert model.width == 8
    assert model.stem_relu is False
    assert model.head == "average"
    assert model.frozen == ()
    assert model.momentum == 0.8
    for freeze, stages in (
        ("stage3,stem", ("stem", "stage3")),
        ("stage3, stem", ("stem", "stage3")),
        ("backbone", ("stem", "stage2", "stage3", "stage4", "stage5")),
    ):
        assert with_options(freeze=freeze).model().frozen == stages


def test_model_follows_unresolved_recipe():
    info = dataclasses.replace(INFO, config=TrainConfig(recipe="tutorial"))
    assert info.model().momentum == 0.99


@pytest.mark.parametrize("size", [None, 8])
def test_model_has_ghost_batch_size(size):
    assert with_options(ghost_batch_size=size).model().ghost_batch_size == size


def test_metadata_json_has_documented_fields():
    values = json.loads(json.dumps(INFO.to_json()))
    assert values == {
        "format": FORMAT,
        "config": INFO.config.to_json(),
        "class_names": ["Fäuste", "五", "palm"],
        "preprocessing": json.loads(json.dumps(INFO.preprocessing.to_json())),
        "data": {
            "source": "signs.h5",
            "path": None,
            "train_fingerprint": "0123456789abcdef",
            "test_fingerprint": "fedcba9876543210",
        },
        "versions": {"python": "3.12.1", "jax": "0.7.0"},
        "device": "",
    }
    assert RunMetadata.from_json(values) == INFO
