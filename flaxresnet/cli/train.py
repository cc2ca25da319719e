"""`flaxresnet train`, and `python train.py`: trains a network."""

import dataclasses
import shlex
from pathlib import Path

from flaxresnet.cli.parser import HelpLayout, format_value
from flaxresnet.config.recipes import NETWORKS, RECIPES, Network, Recipe
from flaxresnet.config.train_config import TrainConfig

Arguments = TrainConfig

GROUPS = {
    "data": (
        "data",
        "image_size",
        "resize",
        "max_corrupt_fraction",
        "input",
        "workers",
    ),
    "recipe": (
        "recipe",
        "epochs",
        "batch_size",
        "seed",
    ),
    "network": (
        "model",
        "variant",
        "width",
        "stem",
        "stem_relu",
        "init",
        "freeze",
        "zero_init_residual",
        "bn_momentum",
        "ghost_batch_size",
        "freeze_bn_stats",
        "precise_bn_images",
    ),
    "augmentation": (
        "aug_strength",
        "aug_warmup_epochs",
        "background_prob",
        "crop_min_area",
        "crop_pct",
        "auto_augment",
        "random_erasing",
        "mixup",
        "cutmix",
        "hflip",
        "label_smoothing",
    ),
    "optimization": (
        "optimizer",
        "learning_rate",
        "schedule",
        "warmup_epochs",
        "weight_decay",
        "clip_grad",
        "ema",
        "freeze_backbone_epochs",
        "layer_decay",
    ),
    "scale": (
        "precision",
        "grad_accum_steps",
        "shard_optimizer",
        "distributed",
        "coordinator_address",
        "num_processes",
        "process_id",
    ),
    "run": (
        "workdir",
        "resume",
        "allow_config_changes",
        "checkpoint_steps",
        "report",
        "tensorboard",
        "profile",
        "verbose",
        "compilation_cache",
    ),
}
# The options that `--help` shows.
COMMON = (
    "data",
    "image_size",
    "recipe",
    "epochs",
    "batch_size",
    "seed",
    "model",
    "init",
    "learning_rate",
    "precision",
    "workdir",
    "resume",
    "report",
)


def recipe_defaults() -> dict[str, str]:
    """Returns each option's defaults as text: for `robust`, then for recipes that differ, such as "1.25; fast: 0.0"."""
    networks = {name: NETWORKS.get(name, Network()) for name in RECIPES}
    texts = {}
    for kind, chosen in ((Recipe, RECIPES), (Network, networks)):
        for field in dataclasses.fields(kind):
            texts[field.name] = _default_text({name: getattr(chosen[name], field.name) for name in RECIPES})
    return texts


def _default_text(values: dict[str, object]) -> str:
    recipes: dict[str, list[str]] = {}
    for recipe, value in values.items():
        recipes.setdefault(format_value(value), []).append(recipe)
    usual = format_value(values["robust"])
    others = [f"{', '.join(names)}: {text}" for text, names in recipes.items() if text != usual]
    return "; ".join([usual, *others])


# The defaults that depend on other options, the data or the machine.
COMPUTED_DEFAULTS = {
    "data": "datasets/ if it exists, else generated hand signs",
    "image_size": "the size of --init, else 64 64",
    "width": "64, and 16 for resnet20 to resnet110",
    "stem": "imagenet, and small for resnet20 to resnet110",
    "resize": "that of --init, else stretch",
    "workers": "CPU cores - 1, at most 16; 0 on one or two cores",
    "ghost_batch_size": "all images of the batch, or of each part with --grad-accum-steps",
}
LAYOUT = HelpLayout(GROUPS, COMMON, recipe_defaults() | COMPUTED_DEFAULTS)


def main(config: TrainConfig) -> int:
    from flaxresnet.fitting import fit
    from flaxresnet.runtime.distributed import is_process_zero

    result = fit(config, cache_executables=True)
    if is_process_zero():
        print_summary(result.workdir, result.test_loss, result.test_accuracy)
    return 0


def print_summary(workdir: Path, test_loss: float, test_accuracy: float) -> None:
    """Prints the folder of a run, its size, the next command, and the two lines of the tutorials."""
    size = sum(path.stat().st_size for path in workdir.rglob("*") if path.is_file())
    print(f"run: {workdir} ({size / 1e6:,.0f} MB)")
    print(f"next: flaxresnet predict {shlex.quote(str(workdir))} PHOTO")
    print()
    print(f"Loss = {test_loss:.4f}")
    print(f"Test Accuracy = {test_accuracy:.4f}")
