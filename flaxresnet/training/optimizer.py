"""Makes the optimizer that a recipe names."""

import optax

from flaxresnet.config.recipes import Recipe
from flaxresnet.training.param_groups import ParamGroups, scale_by_groups, weight_decay_mask

# The constants of Adam and AdamW, as in Keras.
B1 = 0.9
B2 = 0.999
EPS = 1e-7


def make_optimizer(recipe: Recipe, schedule: optax.Schedule, groups: ParamGroups) -> optax.GradientTransformation:
    """Returns the transformation from the gradient of the trainable parameters to their update.

    Args:
      recipe: gives the optimizer, the weight decay and `clip_grad`. If the global norm of the gradient exceeds
        `clip_grad`, the gradient is scaled down to that norm; 0 turns clipping off.
      schedule: the learning rate as a function of the steps done.
      groups: multipliers of the learning rate for `layer_decay` and `freeze_backbone_epochs`; see
        `learning_rate_groups`.
    """
    parts = [_base_optimizer(recipe, schedule)]
    if recipe.clip_grad > 0:
        parts.insert(0, optax.clip_by_global_norm(recipe.clip_grad))
    if recipe.layer_decay != 1 or recipe.freeze_backbone_epochs > 0:
        parts.append(scale_by_groups(groups))
    return optax.chain(*parts) if len(parts) > 1 else parts[0]


def _base_optimizer(recipe: Recipe, schedule: optax.Schedule) -> optax.GradientTransformation:
    decay = recipe.weight_decay
    if recipe.optimizer == "adam":
        # Kingma & Ba 2015, arXiv:1412.6980.
        return optax.adam(schedule, B1, B2, EPS)
    if recipe.optimizer == "sgd":
        # Nesterov's momentum as in Sutskever et al. 2013; the decay is an L2 term, as in He et al. 2016.
        momentum = optax.sgd(schedule, momentum=0.9, nesterov=True)
        return optax.chain(optax.add_decayed_weights(decay, weight_decay_mask), momentum)
    if recipe.optimizer == "adamw":
        # Loshchilov & Hutter 2019, arXiv:1711.05101: the decay bypasses Adam's averages and scales with the rate.
        return optax.adamw(schedule, B1, B2, EPS, weight_decay=decay, mask=weight_decay_mask)
    # You et al. 2020, arXiv:1904.00962, algorithm 2: AdamW's update, scaled to the norm of each array.
    return optax.lamb(schedule, B1, B2, eps=1e-6, weight_decay=decay, mask=weight_decay_mask)
