"""Schedules of the learning rate and of the augmentation strength, as functions of the steps done."""

import optax

from flaxresnet.config.train_config import MAX_STEPS, TrainConfig
from flaxresnet.config.validation import flag
from flaxresnet.runtime.errors import UserError


def steps_for(option: str, epochs: float, steps_per_epoch: int) -> int:
    """The steps of as many epochs as an option says; raises UserError where these are more than can be counted."""
    if epochs * steps_per_epoch > MAX_STEPS:
        many = f"{epochs * steps_per_epoch:.3g} steps, more than the {MAX_STEPS:,} that can be counted"
        raise UserError(f"{flag(option)} {epochs} is {many}; give fewer epochs")
    return round(epochs * steps_per_epoch)


def make_schedule(config: TrainConfig, steps_per_epoch: int) -> optax.Schedule:
    """Learning rate as a function of the steps done: a linear warm-up, then constant or half a cosine down to zero.

    The cosine ends with the last step of `config.epochs`
    (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts). Raises as `steps_for` does.
    """
    recipe = config.resolved_recipe
    peak, warmup = recipe.learning_rate, steps_for("warmup_epochs", recipe.warmup_epochs, steps_per_epoch)
    total = steps_for("epochs", config.epochs, steps_per_epoch)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, max(1, total - warmup)),
    }[recipe.schedule]()
    if warmup == 0:
        return after
    # Step 0 takes the first rung, not a rate of zero, which would waste it.
    ramp = optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1))
    return optax.join_schedules([ramp, after], [warmup])


def augmentation_schedule(config: TrainConfig, steps_per_epoch: int) -> optax.Schedule:
    """Strength of the augmentation as a function of the steps done: up from zero in a line, then constant.

    A network that is given distorted images from the first step on takes epochs to learn anything at all. Raises as
    `steps_for` does.
    """
    recipe = config.resolved_recipe
    ramp = steps_for("aug_warmup_epochs", recipe.aug_warmup_epochs, steps_per_epoch)
    return (
        optax.linear_schedule(0.0, recipe.aug_strength, ramp) if ramp else optax.constant_schedule(recipe.aug_strength)
    )
