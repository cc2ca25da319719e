"""Parameter groups: lists of (pattern, schedule) that select parameters by name, as in big_vision.

A parameter's path is its stage, then its keys in the parameters, such as `stage2/res2a/res2a_branch2a/kernel`;
`stage_of` names the stages. The first pattern that matches the beginning of the path (`re.match`) gives the parameter
its schedule. One list covers frozen stages, epochs that train only the last layer, and per-stage learning rates.
Another list is the weight-decay mask.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flaxresnet.config.train_config import TrainConfig
from flaxresnet.models.resnet import stage_of
from flaxresnet.training.schedule import steps_for

# A schedule maps the number of steps done to a multiplier. None leaves the parameter out: it is frozen, or not decayed.
ParamGroups = Sequence[tuple[str, optax.Schedule | None]]

# Kernels decay; biases and the scales of batch norm do not (He et al. 2019, arXiv:1812.01187, section 3.1).
WEIGHT_DECAY_GROUPS: ParamGroups = ((".*/kernel", optax.constant_schedule(1.0)), (".*", None))


def frozen_groups(stages: Sequence[str]) -> ParamGroups:
    """Returns groups that freeze the given stages and train all others at the full learning rate."""
    return (*((f"{stage}/", None) for stage in stages), (".*", optax.constant_schedule(1.0)))


def learning_rate_groups(config: TrainConfig, steps_per_epoch: int) -> ParamGroups:
    """Returns the multiplier of the learning rate for each stage, as a function of the steps done.

    `--freeze` freezes stages. `--freeze-backbone-epochs` holds all but the last layer at 0 for the first epochs.
    `--layer-decay` multiplies the rate by its value from each stage to the one before it (Howard & Ruder 2018,
    arXiv:1801.06146, section 3.2).

    Raises:
      UserError: `--freeze-backbone-epochs` is more steps than an int32 counts.
    """
    recipe = config.resolved_recipe
    head_steps = steps_for("freeze_backbone_epochs", recipe.freeze_backbone_epochs, steps_per_epoch)
    groups: list[tuple[str, optax.Schedule | None]] = [("head/", optax.constant_schedule(1.0))]
    for distance, stage in enumerate(reversed(config.stages), start=1):
        schedule = None if stage in config.frozen else _step_schedule(recipe.layer_decay**distance, head_steps)
        groups.append((f"{stage}/", schedule))
    return groups


def _step_schedule(value: float, start: int) -> optax.Schedule:
    """Returns a schedule that is 0 before step `start` and `value` from then on."""
    if start == 0:
        return optax.constant_schedule(value)
    return lambda step: jnp.where(step < start, 0.0, value)


def find_schedule(groups: ParamGroups, path: str) -> optax.Schedule | None:
    """Returns the schedule of the first pattern that matches; raises ValueError if none does."""
    for pattern, schedule in groups:
        if re.match(pattern, path):
            return schedule
    raise ValueError(f"no pattern of {[pattern for pattern, _ in groups]} matches the parameter {path}")


def map_groups(function: Callable[[optax.Schedule | None, Any], Any], groups: ParamGroups, params: Any) -> Any:
    """Returns a pytree like `params` with `function(schedule, leaf)` for each leaf."""

    def apply(keys: tuple[Any, ...], leaf: Any) -> Any:
        names = [key.key for key in keys]
        return function(find_schedule(groups, "/".join([stage_of(names[0]), *names])), leaf)

    return jax.tree_util.tree_map_with_path(apply, params)


def trainable_params(params: Any, groups: ParamGroups) -> Any:
    """Returns the layers and blocks at the top of `params` that have at least one trainable parameter."""
    is_trainable = map_groups(lambda schedule, _: schedule is not None, groups, params)
    return {layer: tree for layer, tree in params.items() if any(jax.tree.leaves(is_trainable[layer]))}


def weight_decay_mask(params: Any) -> Any:
    """Returns a pytree of bool: True for parameters with weight decay."""
    return map_groups(lambda schedule, _: schedule is not None, WEIGHT_DECAY_GROUPS, params)


def scale_by_groups(groups: ParamGroups) -> optax.GradientTransformation:
    """Returns a transformation that multiplies each update by its group's schedule."""

    def init(_: Any) -> optax.ScaleByScheduleState:
        return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

    def update(updates: Any, state: optax.ScaleByScheduleState, _: Any = None) -> tuple[Any, Any]:
        def scale(schedule: optax.Schedule | None, leaf: jax.Array) -> jax.Array:
            if schedule is None:
                return jnp.zeros_like(leaf)
            return leaf * schedule(state.count)

        scaled = map_groups(scale, groups, updates)
        return scaled, optax.ScaleByScheduleState(count=optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)
