"""Differences between a stored run and a new configuration that affect resuming."""

from collections.abc import Iterator

from flaxresnet.config.validation import flag
from flaxresnet.data.dataset import is_same_data
from flaxresnet.runs.metadata import RunMetadata
from flaxresnet.runtime.errors import listed

# Options that may change when a run resumes, because they do not affect the result of a training step.
# The data's path is one of them: the fingerprints of the data are compared instead.
RESUMABLE = {
    "data",
    "image_size",
    "resize",
    "max_corrupt_fraction",
    "workdir",
    "epochs",
    "precise_bn_images",
    "resume",
    "compilation_cache",
    "verbose",
    "report",
    "tensorboard",
    "profile",
    "checkpoint_steps",
    "input",
    "workers",
    "shard_optimizer",
    "distributed",
    "coordinator_address",
    "num_processes",
    "process_id",
    "allow_config_changes",
}
# Options that may also change with --allow-config-changes: the weights, the optimizer state and the step count still
# fit.
RESUMABLE_WITH_FLAG = {
    "recipe",
    "seed",
    "learning_rate",
    "schedule",
    "warmup_epochs",
    "label_smoothing",
    "bn_momentum",
    "zero_init_residual",
    "aug_strength",
    "aug_warmup_epochs",
    "background_prob",
    "crop_min_area",
    "auto_augment",
    "random_erasing",
    "mixup",
    "cutmix",
    "hflip",
    "precision",
}


def config_diff(info: RunMetadata, stored: RunMetadata) -> Iterator[tuple[str, bool]]:
    """Yields the differences between a new run and a stored one that change the result of training.

    Args:
      info: the new run.
      stored: the run in the workdir.

    Yields:
      A description of the difference, and whether --allow-config-changes can resume the run in spite of it.
    """
    options = info.config.resolve().to_json()
    stored_options = stored.config.resolve().to_json()
    for name, value in options.items():
        if name not in RESUMABLE and value != stored_options[name]:
            yield f"{flag(name)} {stored_options[name]}, not {value}", name in RESUMABLE_WITH_FLAG
    if info.config.resolved_recipe.crop_min_area < 1:
        stored_streams = bool(stored.data.get("streamed"))
        if bool(info.data.get("streamed")) != stored_streams:
            crop_source = "full-size images (--input stream)" if stored_streams else "resized images (--input memory)"
            yield f"random crops of {crop_source}", True
    if info.preprocessing != stored.preprocessing:
        yield "images of another size, resize mode or scaling", False
    if info.class_names != stored.class_names:
        yield f"classes {listed(stored.class_names)}, not {listed(info.class_names)}", False
    if not is_same_data(info.data["train_fingerprint"], stored.data["train_fingerprint"]):
        yield f"other training data ({stored.data['source']})", _steps_per_epoch(info) == _steps_per_epoch(stored)
    if not is_same_data(info.data["test_fingerprint"], stored.data["test_fingerprint"]):
        yield f"other test data ({stored.data['source']})", True


def _steps_per_epoch(info: RunMetadata) -> int:
    return info.data.get("train_images", 0) // info.config.batch_size
