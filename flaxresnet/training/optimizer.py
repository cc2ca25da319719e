"""The optimiser, and the course of its learning rate and of the augmentation, from a configuration."""

from typing import Any

import jax
import optax

from flaxresnet.config import PARTS, TrainConfig
from flaxresnet.models.resnet import part_of


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


def make_optimizer(
    schedule: optax.Schedule, layer_decay: float = 1.0, head_steps: int = 0
) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015, arXiv:1412.6980) with Keras's constants.

    Args:
      schedule: the learning rate by the steps done.
      layer_decay: the last layer learns at the full rate, each part before it (stage 5, …, stage 2, stem) at this
        factor of the next one's (Howard & Ruder 2018, arXiv:1801.06146, section 3.2).
      head_steps: steps at the beginning in which only the last layer learns.
    """
    adam = optax.adam(schedule, b1=0.9, b2=0.999, eps=1e-7)
    by_depth = optax.stateless(lambda updates, _: _scaled(updates, layer_decay))
    head_first = optax.masked(optax.scale_by_schedule(lambda done: (done >= head_steps) * 1.0), _not_of_head)
    extras = [by_depth] * (layer_decay != 1) + [head_first] * (head_steps > 0)
    return optax.chain(adam, *extras) if extras else adam


def _scaled(updates: Any, decay: float) -> Any:
    factors = {part: decay**distance for distance, part in enumerate(("head", *reversed(PARTS)))}
    return {layer: jax.tree.map(lambda u: u * factors[part_of(layer)], tree) for layer, tree in updates.items()}  # noqa: B023 - called at once


def _not_of_head(params: Any) -> Any:
    return {layer: jax.tree.map(lambda _: part_of(layer) != "head", tree) for layer, tree in params.items()}  # noqa: B023
