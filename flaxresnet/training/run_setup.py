"""Checks before the first step: the data suit training, and the workdir can hold this run."""

import os
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax

from flaxresnet.config.train_config import TrainConfig
from flaxresnet.data.dataset import USUAL_SIZE, Dataset, Splits
from flaxresnet.data.preprocess import Preprocessing, ResizeMode
from flaxresnet.models.resnet import MIN_IMAGE_SIZE
from flaxresnet.runs.checkpoint_files import checkpoint_paths, last_epoch
from flaxresnet.runs.lock import WorkdirLock
from flaxresnet.runs.metadata import RunMetadata, package_versions
from flaxresnet.runs.resume_check import config_diff
from flaxresnet.runs.run_dir import RunDir
from flaxresnet.runtime.errors import UserError

NEW_WORKDIR_HINT = "give another --workdir, or --no-resume to start again"


def resolve_image_size(config: TrainConfig, pretrained_preprocessing: Preprocessing | None) -> tuple[int, int]:
    """Returns the (height, width) in pixels to resize image files to.

    It is `--image-size` if given, else the size of the run to resume, else that of the pretrained weights, else 64×64.

    Args:
      config: the options.
      pretrained_preprocessing: the preprocessing of the pretrained weights, or None.
    """
    if config.image_size is not None:
        return config.image_size
    preprocessing = _stored_preprocessing(config) or pretrained_preprocessing
    return (preprocessing.height, preprocessing.width) if preprocessing else USUAL_SIZE


def resolve_resize(config: TrainConfig, pretrained_preprocessing: Preprocessing | None) -> ResizeMode:
    """Returns `--resize`, else the mode of the run to resume or of the pretrained weights, else "stretch"."""
    if config.resize is not None:
        return config.resize
    preprocessing = _stored_preprocessing(config) or pretrained_preprocessing
    return preprocessing.resize_mode if preprocessing else "stretch"


def _stored_preprocessing(config: TrainConfig) -> Preprocessing | None:
    """Returns the preprocessing of the run that `config` resumes, or None."""
    folder = RunDir(config.workdir)
    if config.resume and folder.exists() and folder.has_progress():
        return folder.read_metadata().preprocessing
    return None


def check_splits(splits: Splits, config: TrainConfig) -> tuple[Dataset, Dataset]:
    """Returns the training and the test split; raises UserError if training with the options cannot use them."""
    train, test = check_trainable(splits)
    if config.image_size not in (None, train.image_size):
        requested = "×".join(map(str, config.image_size or ()))
        actual = "×".join(map(str, train.image_size))
        raise UserError(
            f"--image-size {requested} applies to folders of images, and the images in {splits.source} are {actual}; "
            "leave --image-size out"
        )
    if config.batch_size > len(train):
        raise UserError(
            f"--batch-size {config.batch_size} is more than the {len(train)} training images; give a smaller one"
        )
    parts = config.grad_accum_steps * jax.device_count()
    if config.batch_size % parts:
        accumulation = f" × --grad-accum-steps {config.grad_accum_steps}" if config.grad_accum_steps > 1 else ""
        raise UserError(
            f"--batch-size {config.batch_size} is no multiple of {jax.device_count()} devices{accumulation}; "
            f"give a multiple of {parts}"
        )
    return train, test


def check_trainable(splits: Splits) -> tuple[Dataset, Dataset]:
    """Returns the training and the test split; raises UserError if training cannot use them with any options."""
    source = splits.source
    train = splits.train
    test = splits.test
    for split in (train, test):
        if split is not None and len(split.class_names) < 2:
            raise UserError(f"{source} has one class ({split.class_names[0]}); a classifier needs two or more")
    if train is None or test is None:
        missing = "training" if train is None else "test"
        raise UserError(f"{source} has no {missing} split; give both, in one file or in a folder of two")
    present = train.class_counts().nonzero()[0]
    if len(present) == 1:
        raise UserError(
            f"{source}: all {len(train)} training images are of the class {train.class_names[present[0]]}; "
            "a classifier needs two or more, so check the labels"
        )
    height, width = train.image_size
    if min(height, width) < MIN_IMAGE_SIZE:
        raise UserError(
            f"{source} has images of {height}×{width} pixels; the network needs {MIN_IMAGE_SIZE}×{MIN_IMAGE_SIZE} or "
            "more"
        )
    return train, test


def describe_run(
    config: TrainConfig,
    splits: Splits,
    train: Dataset,
    test: Dataset,
    pretrained_preprocessing: Preprocessing | None = None,
) -> RunMetadata:
    """Returns the metadata for `config.json`.

    Args:
      config: the options, with the defaults filled in.
      splits: the data, for their origin.
      train: the training split of `splits`.
      test: the test split of `splits`.
      pretrained_preprocessing: gives resizing and normalization; None for the default, pixels divided by 255.
    """
    height, width = train.image_size
    preprocessing = replace(
        pretrained_preprocessing or Preprocessing(height, width),
        height=height,
        width=width,
        crop_pct=splits.crop_pct,
        resize_mode=resolve_resize(config, pretrained_preprocessing),
    )
    return RunMetadata(
        config=config,
        class_names=train.class_names,
        preprocessing=preprocessing,
        data={
            "source": splits.source,
            "path": splits.path,
            "train_images": len(train),
            "test_images": len(test),
            "streamed": train.is_streamed,
            "train_fingerprint": train.fingerprint(),
            "test_fingerprint": test.fingerprint(),
        },
        versions=package_versions(),
        device=describe_device(),
    )


def describe_device() -> str:
    """Returns the devices in words, such as "1 × cpu (x86_64, 2 cores)"."""
    kind = jax.devices()[0].device_kind
    host = f" ({platform.machine()}, {os.cpu_count()} cores)" if kind == "cpu" else ""
    return f"{jax.device_count()} × {kind}{host}"


def prepare_folder(metadata: RunMetadata, lock: WorkdirLock, note: Callable[[str], None]) -> RunDir:
    """Locks the workdir, writes `config.json`, and returns the folder.

    Args:
      metadata: the run.
      lock: the lock to acquire.
      note: prints a line about each renamed file or folder, and about changed options and versions.

    Raises:
      UserError: the workdir is in use, cannot be written, or holds a run that this run cannot resume.
    """
    folder = RunDir(metadata.config.workdir)
    folder.lock(lock)
    if not metadata.config.resume:
        if folder.exists() or folder.has_progress():
            note(f"the previous run in {folder.path} is now {set_aside(folder, lock)}")
            folder.lock(lock)
    elif folder.has_progress():
        metadata = _resume_run(metadata, folder, note)
    elif folder.exists() and [*config_diff(metadata, folder.read_metadata())]:
        # A start that failed before its first step leaves a config.json that another run may overwrite.
        note(f"{folder.path} has no training step yet; its previous configuration is {folder.backup_config()}")
    folder.create(metadata)
    return folder


def set_aside(folder: RunDir, lock: WorkdirLock) -> Path:
    """Renames the folder of an old run, releases its lock, and returns its new path."""
    new_path = folder.rename_old_run()
    lock.rename(new_path)
    lock.release()
    return new_path


def _resume_run(metadata: RunMetadata, folder: RunDir, note: Callable[[str], None]) -> RunMetadata:
    """Returns the metadata of the resumed run; raises UserError if resuming would lose or mix results."""
    if not folder.exists():
        content = "checkpoints" if folder.has_checkpoints() else "a metrics.jsonl"
        raise UserError(f"--workdir {folder.path} holds {content} of a run without config.json; {NEW_WORKDIR_HINT}")
    stored = folder.read_metadata()
    # Converted weights have no data; an adapted run has the statistics of other photos.
    origin = stored.data["source"] if stored.data["train_fingerprint"] is None else stored.data.get("adapted")
    if origin:
        raise UserError(
            f"--workdir {folder.path} holds {origin}, which cannot be resumed; give --init {folder.path} and another "
            "--workdir to start from its weights"
        )
    check_same_experiment(metadata, stored, note)
    if not (checkpoint_paths(folder.checkpoints) or checkpoint_paths(folder.mid_epoch)):
        _check_metrics_without_checkpoint(folder, note)
    # If --epochs is below the number of finished epochs, nothing is trained and the metadata keep that number.
    epochs = max(metadata.config.epochs, last_epoch(folder.checkpoints))
    return replace(metadata, config=replace(metadata.config, epochs=epochs))


def _check_metrics_without_checkpoint(folder: RunDir, note: Callable[[str], None]) -> None:
    """Backs up the metrics of a first epoch without a checkpoint; raises UserError if later checkpoints are missing."""
    rows = folder.read_metrics()
    # The second epoch writes its row after the first one's checkpoint; only the first row may precede its checkpoint.
    if len(rows) > 1 or (rows and not folder.checkpoints.is_dir()):
        raise UserError(
            f"--workdir {folder.path} holds metrics of {len(rows)} epoch(s), but no checkpoint to resume from; "
            f"restore its checkpoints, or {NEW_WORKDIR_HINT}"
        )
    if rows:
        note(f"epoch 1 has no checkpoint and starts again; its metrics are in {folder.backup_metrics()}")


def check_same_experiment(metadata: RunMetadata, stored: RunMetadata, note: Callable[[str], None]) -> None:
    """Raises UserError if options or data differ from the stored run's.

    `--allow-config-changes` permits changes that fit the weights and the steps; `note` then reports each of them.
    `note` also reports packages whose versions differ.
    """
    config = metadata.config
    for difference, can_resume in config_diff(metadata, stored):
        if config.allow_config_changes and can_resume:
            note(f"--allow-config-changes: the run so far had {difference}")
            continue
        hint = NEW_WORKDIR_HINT
        if can_resume:
            hint += ", or --allow-config-changes to resume anyway"
        raise UserError(f"--workdir {config.workdir} holds a run with {difference}; {hint}")
    changes = []
    for name, number in stored.versions.items():
        current = metadata.versions.get(name, number)
        if current != number:
            changes.append(f"{name} {number} (now {current})")
    if changes:
        note(f"warning: the run so far used {', '.join(changes)}; metrics may differ by rounding")
