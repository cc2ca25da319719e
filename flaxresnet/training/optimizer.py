"""The optimiser, and the course of its learning rate and of the augmentation, from a configuration."""

import optax

from flaxresnet.config import TrainConfig


def make_schedule(config: TrainConfig, steps_per_epoch: int) -> optax.Schedule:
    """Learning rate as a function of the steps done: a linear warm-up, then constant or half a cosine down to zero.

    The cosine ends with the last step of `config.epochs`
    (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts).
    """
    settings = config.settings
    peak, warmup = settings.learning_rate, round(settings.warmup_epochs * steps_per_epoch)
    total = config.epochs * steps_per_epoch
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, max(1, total - warmup)),
    }[settings.schedule]()
    if warmup == 0:
        return after
    # Step 0 takes the first rung, not a rate of zero, which would waste it.
    ramp = optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1))
    return optax.join_schedules([ramp, after], [warmup])


def make_augmentation(config: TrainConfig, steps_per_epoch: int) -> optax.Schedule:
    """Strength of the augmentation as a function of the steps done: up from zero in a line, then constant.

    A network that is given distorted images from the first step on takes epochs to learn anything at all.
    """
    settings = config.settings
    ramp = round(settings.augment_ramp * steps_per_epoch)
    return optax.linear_schedule(0.0, settings.augment, ramp) if ramp else optax.constant_schedule(settings.augment)


def make_optimizer(schedule: optax.Schedule) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015, arXiv:1412.6980) with Keras's constants."""
    return optax.adam(schedule, b1=0.9, b2=0.999, eps=1e-7)
