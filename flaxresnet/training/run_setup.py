"""What must hold before the first step: fitting data, and a folder that takes this run."""

import os
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax

from flaxresnet.config.train_config import TrainConfig
from flaxresnet.data.dataset import USUAL_SIZE, Dataset, Splits
from flaxresnet.data.preprocess import Preprocessing
from flaxresnet.models.resnet import MIN_IMAGE_SIZE
from flaxresnet.runs.checkpoint_files import checkpoint_paths, last_epoch
from flaxresnet.runs.lock import WorkdirLock
from flaxresnet.runs.metadata import RunMetadata, package_versions
from flaxresnet.runs.resume_check import config_diff
from flaxresnet.runs.run_dir import RunDir
from flaxresnet.runtime.errors import UserError

NEW_WORKDIR_HINT = "give another --workdir, or --no-resume to start anew"


def resolve_image_size(config: TrainConfig, like: Preprocessing | None) -> tuple[int, int]:
    """Height and width for pictures of any size: as asked for, as the run that goes on has them, or as weights do."""
    folder = RunDir(config.workdir)
    if config.image_size is None and config.resume and folder.exists() and folder.has_progress():
        like = folder.read_metadata().preprocessing
    return config.image_size or ((like.height, like.width) if like else USUAL_SIZE)


def check_splits(splits: Splits, config: TrainConfig) -> tuple[Dataset, Dataset]:
    """The training and the test split; raises UserError where training cannot begin with them."""
    train, test = check_trainable(splits)
    if config.image_size not in (None, train.image_size):
        wanted, there = ("×".join(map(str, size)) for size in (config.image_size or (), train.image_size))
        raise UserError(f"--image-size {wanted} is for folders of pictures; the images in {splits.source} are {there}")
    if config.batch_size > len(train):
        raise UserError(f"--batch-size {config.batch_size} is more than the {len(train)} training images; give fewer")
    if config.batch_size % (config.grad_accum_steps * (devices := jax.device_count())):
        parts = f" in {config.grad_accum_steps} parts (--grad-accum-steps)" if config.grad_accum_steps > 1 else ""
        raise UserError(
            f"--batch-size {config.batch_size} cannot be divided over {devices} devices{parts}; "
            f"give a multiple of {config.grad_accum_steps * devices}"
        )
    return train, test


def check_trainable(splits: Splits) -> tuple[Dataset, Dataset]:
    """Both splits; raises UserError where no configuration could train on them."""
    source, train, test = splits.source, splits.train, splits.test
    for some in (train, test):
        if some is not None and len(some.class_names) < 2:
            raise UserError(f"{source} has one class ({some.class_names[0]}); a classifier needs two or more")
    if train is None or test is None:
        missing = "training" if train is None else "test"
        raise UserError(f"{source} has no {missing} split; give both, in one file or in a folder of two")
    if len(there := train.class_counts().nonzero()[0]) == 1:
        only = f"all {len(train)} training images are of the class {train.class_names[there[0]]}"
        raise UserError(f"{source}: {only}; a classifier needs two or more, so look at the labels")
    if min(train.image_size) < MIN_IMAGE_SIZE:
        height, width = train.image_size
        needed = f"the network needs {MIN_IMAGE_SIZE}×{MIN_IMAGE_SIZE} or more"
        raise UserError(f"{source} has images of {height}×{width} pixels; {needed}")
    return train, test


def describe_run(
    config: TrainConfig, splits: Splits, train: Dataset, test: Dataset, like: Preprocessing | None = None
) -> RunMetadata:
    """The run's description, for `config.json`; photos are resized and scaled `like` those of given weights."""
    height, width = train.image_size
    like = like or Preprocessing(height, width)
    return RunMetadata(
        config=config,
        class_names=train.class_names,
        preprocessing=replace(like, height=height, width=width, crop_pct=splits.crop_pct),
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
        device=device_words(),
    )


def device_words() -> str:
    """What this computes on: "1 × cpu (x86_64, 2 cores)"."""
    kind = jax.devices()[0].device_kind
    host = f" ({platform.machine()}, {os.cpu_count()} cores)" if kind == "cpu" else ""
    return f"{jax.device_count()} × {kind}{host}"


def prepare_folder(info: RunMetadata, lock: WorkdirLock, note: Callable[[str], None]) -> RunDir:
    """The run's folder, locked, its `config.json` written; raises UserError where it is in use or holds another run."""
    folder = RunDir(info.config.workdir)
    folder.lock(lock)
    if info.config.resume:
        if folder.has_progress():
            info = _resume_run(info, folder, note)
        elif folder.exists() and [*config_diff(info, folder.read_metadata())]:  # refuses what describes no run
            # What a start leaves that was refused or cut off before its first step does not bind the next one.
            note(f"no step was made in {folder.path}; how it was to be is in {folder.backup_config()}")
    elif folder.exists() or folder.has_progress():
        note(f"the run in {folder.path} is kept as {set_aside(folder, lock)}")
        folder.lock(lock)
    folder.create(info)
    return folder


def set_aside(folder: RunDir, lock: WorkdirLock) -> Path:
    """Renames the folder of an old run, releases its lock, and returns its new path."""
    aside = folder.rename_old_run()
    lock.rename(aside)
    lock.release()
    return aside


def _resume_run(info: RunMetadata, folder: RunDir, note: Callable[[str], None]) -> RunMetadata:
    """The description of a run that goes on in its folder; raises UserError where it cannot, or would lose rows."""
    if not folder.exists():
        what = "checkpoints" if folder.has_checkpoints() else "a metrics.jsonl"
        raise UserError(f"--workdir {folder.path} holds {what} of a run without its config.json; {NEW_WORKDIR_HINT}")
    stored = folder.read_metadata()
    made_of = stored.data["source"] if stored.data["train_fingerprint"] is None else stored.data.get("adapted")
    if made_of:
        raise UserError(
            f"--workdir {folder.path} holds {made_of}, no run to go on with; "
            f"start from it with --init {folder.path} and give another --workdir"
        )
    check_same_experiment(info, stored, note)
    if not (checkpoint_paths(folder.checkpoints) or checkpoint_paths(folder.mid_epoch)):
        _check_figures(folder, note)
    # Where nothing will be trained, the record of how many epochs were stays.
    return replace(info, config=replace(info.config, epochs=max(info.config.epochs, last_epoch(folder.checkpoints))))


def _check_figures(folder: RunDir, note: Callable[[str], None]) -> None:
    """Keeps the figures of a run without checkpoints; raises UserError where these have been taken away."""
    rows = folder.read_metrics()
    # A second epoch's row is written when the first one's checkpoint is whole; the first one's may be before that.
    if len(rows) > 1 or (rows and not folder.checkpoints.is_dir()):
        raise UserError(
            f"--workdir {folder.path} holds the figures of {len(rows)} epoch(s), but no checkpoint to go on from; "
            f"put its checkpoints back, or {NEW_WORKDIR_HINT}"
        )
    if rows:
        note(f"epoch 1 begins anew, for its checkpoint was not written; its figures are in {folder.backup_metrics()}")


def check_same_experiment(info: RunMetadata, stored: RunMetadata, note: Callable[[str], None]) -> None:
    """Raises UserError if a stored run is another experiment, unless `--allow-config-changes` lets it go on.

    What differs then, and versions of packages that do, is told to `note`.
    """
    told = info.config.allow_config_changes
    for difference, fits in config_diff(info, stored):
        if not (told and fits):
            way = ", or --allow-config-changes to go on with it all the same" if fits else ""
            raise UserError(f"--workdir {info.config.workdir} holds a run with {difference}; {NEW_WORKDIR_HINT}{way}")
        note(f"--allow-config-changes: the run so far was with {difference}")
    if others := [name for name, number in stored.versions.items() if info.versions.get(name, number) != number]:
        changes = ", ".join(f"{name} {stored.versions[name]} (here {info.versions[name]})" for name in others)
        note(f"the run so far was made with {changes}: figures may differ from those of one version by rounding")
