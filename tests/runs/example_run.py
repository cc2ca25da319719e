"""An example of a run's metadata and metrics."""

import dataclasses

from flaxresnet.config.train_config import TrainConfig
from flaxresnet.data.preprocess import Preprocessing
from flaxresnet.runs.metadata import RunMetadata
from flaxresnet.runs.run_dir import RunDir

INFO = RunMetadata(
    config=TrainConfig(
        model="resnet26", variant="keras", width=8, stem_relu=False, bn_momentum=0.8, epochs=3
    ).resolve(),
    class_names=("Fäuste", "五", "palm"),
    preprocessing=Preprocessing(64, 48, resize="lanczos", scale=0.1),
    data={
        "source": "signs.h5",
        "path": None,
        "train_fingerprint": "0123456789abcdef",
        "test_fingerprint": "fedcba9876543210",
    },
    versions={"python": "3.12.1", "jax": "0.7.0"},
)
METRICS = (
    "train_loss",
    "train_accuracy",
    "test_loss",
    "test_accuracy",
    "learning_rate",
    "seconds",
    "images_per_second",
)
ROWS = [{"epoch": epoch, "step": 8 * epoch, **dict.fromkeys(METRICS, 1.5 / epoch)} for epoch in (1, 2)]


def create_run(tmp_path, info=INFO):
    run_dir = RunDir(tmp_path / "runs" / "signs")
    run_dir.create(info)
    return run_dir


def with_options(**options):
    return dataclasses.replace(INFO, config=dataclasses.replace(INFO.config, **options))


def with_data(**data):
    return dataclasses.replace(INFO, data=INFO.data | data)
