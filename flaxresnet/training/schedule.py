"""Schedules of the learning rate and of the augmentation strength, as functions of the steps done."""

import optax

from flaxresnet.config.train_config import MAX_STEPS, TrainConfig
from flaxresnet.config.validation import flag
from flaxresnet.runtime.errors import UserError


def steps_for(option: str, epochs: float, steps_per_epoch: int) -> int:
    """Converts a number of epochs to the nearest number of steps.

    Args:
      option: name of the option's field, for the error.
      epochs: the option's value.
      steps_per_epoch: training steps per epoch.

    Raises:
      UserError: the number of steps exceeds the range of an int32.
    """
    steps = epochs * steps_per_epoch
    if steps > MAX_STEPS:
        raise UserError(
            f"{flag(option)} {epochs:.12g} is {steps:.3g} steps, more than the {MAX_STEPS:,} that can be counted; "
            "give fewer epochs"
        )
    return round(steps)


def make_schedule(config: TrainConfig, steps_per_epoch: int) -> optax.Schedule:
    """Returns the learning rate by step: a linear warm-up, then a constant rate or half a cosine that ends at zero.

    The cosine ends at the last step of `config.epochs` (Loshchilov & Hutter 2017, arXiv:1608.03983, without
    restarts).

    Raises:
      UserError: `--epochs` or `--warmup-epochs` is more steps than an int32 counts.
    """
    recipe = config.resolved_recipe
    peak = recipe.learning_rate
    warmup = steps_for("warmup_epochs", recipe.warmup_epochs, steps_per_epoch)
    total = steps_for("epochs", config.epochs, steps_per_epoch)
    if recipe.schedule == "cosine":
        after_warmup = optax.cosine_decay_schedule(peak, max(1, total - warmup))
    else:
        after_warmup = optax.constant_schedule(peak)
    if warmup == 0:
        return after_warmup
    # The warm-up starts at peak / warmup, because step 0 would have no effect at a rate of zero.
    ramp = optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1))
    return optax.join_schedules([ramp, after_warmup], [warmup])


def augmentation_schedule(config: TrainConfig, steps_per_epoch: int) -> optax.Schedule:
    """Returns the augmentation strength by step: a linear rise from zero, then `--aug-strength`.

    With full strength from the first step, the network needs several epochs before the loss falls.

    Raises:
      UserError: `--aug-warmup-epochs` is more steps than an int32 counts.
    """
    recipe = config.resolved_recipe
    warmup = steps_for("aug_warmup_epochs", recipe.aug_warmup_epochs, steps_per_epoch)
    if warmup == 0:
        return optax.constant_schedule(recipe.aug_strength)
    return optax.linear_schedule(0.0, recipe.aug_strength, warmup)
