"""Makes the optimizer from a configuration."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from flaxresnet.config.recipes import Optimizer
from flaxresnet.config.train_config import STAGES
from flaxresnet.models.resnet import stage_of

ADAM = {"b1": 0.9, "b2": 0.999, "eps": 1e-7}  # Keras's constants


def weight_decay_mask(params: Any) -> Any:
    """Which parameters decay: kernels, not biases and batch norm's scales (He et al. 2019, arXiv:1812.01187)."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


# The optimisers by name, from the learning rate by the steps done and the weight decay.
OPTIMIZERS: dict[Optimizer, Callable[[optax.Schedule, float], optax.GradientTransformation]] = {
    # Kingma & Ba 2015, arXiv:1412.6980.
    "adam": lambda rate, _: optax.adam(rate, **ADAM),
    # Nesterov's momentum as in Sutskever et al. 2013; the decay is part of the gradient, as published for ResNets.
    "sgd": lambda rate, decay: optax.chain(
        optax.add_decayed_weights(decay, weight_decay_mask), optax.sgd(rate, momentum=0.9, nesterov=True)
    ),
    # Loshchilov & Hutter 2019, arXiv:1711.05101: the decay goes past Adam's averages, multiplied by the learning rate.
    "adamw": lambda rate, decay: optax.adamw(rate, **ADAM, weight_decay=decay, mask=weight_decay_mask),
    # You et al. 2020, arXiv:1904.00962, algorithm 2: AdamW's step, brought to the length of each array it is for.
    "lamb": lambda rate, decay: optax.lamb(
        rate, b1=0.9, b2=0.999, eps=1e-6, weight_decay=decay, mask=weight_decay_mask
    ),
}


def make_optimizer(
    schedule: optax.Schedule,
    layer_decay: float = 1.0,
    head_steps: int = 0,
    kind: Optimizer = "adam",
    weight_decay: float = 0.0,
    clip_grad: float = 0.0,
) -> optax.GradientTransformation:
    """The optimiser, from the gradient of the parameters that learn to their change.

    Args:
      schedule: the learning rate by the steps done.
      layer_decay: the last layer learns at the full rate, each part before it (stage 5, …, stage 2, stem) at this
        factor of the next one's (Howard & Ruder 2018, arXiv:1801.06146, section 3.2).
      head_steps: steps at the beginning in which only the last layer learns.
      kind: a name in `OPTIMIZERS`.
      weight_decay: of parameters with two axes or more; "adam" has none.
      clip_grad: a gradient whose norm, over all parameters, is above this is shortened to it; 0 leaves all as they are.
    """
    clipped, optimizer = (
        [optax.clip_by_global_norm(clip_grad)] * (clip_grad > 0),
        OPTIMIZERS[kind](schedule, weight_decay),
    )
    by_depth = optax.stateless(lambda updates, _: _layerwise_lr_scale(updates, layer_decay))
    head_first = optax.masked(optax.scale_by_schedule(lambda done: (done >= head_steps) * 1.0), _not_of_head)
    extras = [by_depth] * (layer_decay != 1) + [head_first] * (head_steps > 0)
    return optax.chain(*clipped, optimizer, *extras) if clipped or extras else optimizer


def _layerwise_lr_scale(updates: Any, decay: float) -> Any:
    factors = {part: decay**distance for distance, part in enumerate(("head", *reversed(STAGES)))}
    return {layer: jax.tree.map(lambda u: u * factors[stage_of(layer)], tree) for layer, tree in updates.items()}  # noqa: B023 - called at once


def _not_of_head(params: Any) -> Any:
    return {layer: jax.tree.map(lambda _: stage_of(layer) != "head", tree) for layer, tree in params.items()}  # noqa: B023
