"""`flaxresnet train`, and `python train.py`: trains a network."""

import dataclasses

from flaxresnet.cli.parser import HelpLayout, format_value
from flaxresnet.config.recipes import NETWORKS, RECIPES, Network, Recipe
from flaxresnet.config.train_config import TrainConfig

Arguments = TrainConfig

GROUPS = {
    "data": ("data", "image_size", "skip_bad", "input", "workers"),
    "recipe": ("recipe", "epochs", "batch_size", "seed"),
    "network": (
        *("model", "variant", "width", "stem_relu", "init", "freeze", "residual_scale"),
        *("momentum", "norm_batch", "keep_statistics", "recalibrate"),
    ),
    "augmentation": (
        *("augment", "augment_ramp", "backgrounds", "crop", "centre", "policy", "erase"),
        *("mixup", "cutmix", "flip", "label_smoothing"),
    ),
    "optimization": (
        *("optimizer", "learning_rate", "schedule", "warmup_epochs", "weight_decay", "clip", "ema"),
        *("head_epochs", "layer_decay"),
    ),
    "scale": (
        *("precision", "accumulate", "shard_optimizer", "distributed"),
        *("coordinator_address", "num_processes", "process_id"),
    ),
    "run": (
        *("workdir", "resume", "resume_changed", "checkpoint_steps", "report", "tensorboard", "profile"),
        "compilation_cache",
    ),
}
COMMON = (
    *("data", "image_size", "recipe", "epochs", "batch_size", "seed", "model", "init", "learning_rate"),
    *("precision", "workdir", "resume", "report"),
)


def recipe_defaults() -> dict[str, str]:
    """Returns, by option, the default of the recipe `robust`, and the recipes that have another: "1.25; fast: 0.0"."""
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


LAYOUT = HelpLayout(GROUPS, COMMON, recipe_defaults())


def main(config: TrainConfig) -> int:
    from flaxresnet.fitting import fit
    from flaxresnet.runtime.distributed import is_process_zero

    run = fit(config, keep_programs=True)
    if is_process_zero():  # of the processes that trained together
        print(f"Loss = {run.test_loss:.4f}")
        print(f"Test Accuracy = {run.test_accuracy:.4f}")
    return 0
