"""One training step and one evaluation step: pure functions, ready for `jax.jit`."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from flaxresnet.augment.pipeline import make_inputs
from flaxresnet.config.train_config import TrainConfig
from flaxresnet.data.loader import Batch
from flaxresnet.data.preprocess import Preprocessing
from flaxresnet.models.resnet import ResNet
from flaxresnet.training.ema import ema_update
from flaxresnet.training.gradient_accumulation import accumulate_gradients
from flaxresnet.training.loss import per_example_metrics, smoothed_cross_entropy
from flaxresnet.training.metrics import Metrics
from flaxresnet.training.param_groups import frozen_groups, trainable_params
from flaxresnet.training.train_state import TrainState

TrainStep = Callable[[TrainState, Metrics, Batch], tuple[TrainState, Metrics]]
EvalStep = Callable[[Any, Metrics, Batch], Metrics]


def make_train_step(
    model: ResNet,
    optimizer: optax.GradientTransformation,
    preprocessing: Preprocessing,
    config: TrainConfig,
    augmentation: optax.Schedule,
    cropped: bool = False,
) -> TrainStep:
    """Returns a function (state, metrics, batch) → (state, metrics) that takes one optimizer step.

    The objective is the mean cross-entropy with `label_smoothing`. The metrics sum the cross-entropy without smoothing,
    so that training and test losses are comparable. With mixup or CutMix, that cross-entropy uses the mixed labels, and
    a prediction is correct if it is the class with the largest weight. Random augmentation depends only on the seed and
    the step, so that a resumed run repeats it. Parameters in frozen stages do not change, and no gradient is computed
    for them. The mask of a training batch is ignored, because training batches have no padding.

    Args:
      model: the network, with `frozen` stages.
      optimizer: updates the trainable parameters; see `make_optimizer`.
      preprocessing: normalizes the pixels.
      config: gives the loss, augmentation, EMA and gradient accumulation. The batch is augmented before it is divided.
      augmentation: strength of the augmentation as a function of the steps done.
      cropped: whether the images already are random crops; see `make_inputs`.
    """
    recipe = config.resolved_recipe
    inputs = make_inputs(preprocessing, config, augmentation, model.num_classes, cropped)
    groups = frozen_groups(model.frozen)

    def loss_fn(trained: Any, params: Any, batch_stats: Any, images: jax.Array, labels: jax.Array) -> Any:
        variables = {"params": params | trained, "batch_stats": batch_stats}
        logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
        loss = smoothed_cross_entropy(logits, labels, recipe.label_smoothing).mean()
        return loss, (logits, updated["batch_stats"])

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

    def train_step(state: TrainState, metrics: Metrics, batch: Batch) -> tuple[TrainState, Metrics]:
        images, labels = inputs(state.step, batch)
        trained = trainable_params(state.params, groups)

        def micro_step(batch_stats: Any, images: jax.Array, labels: jax.Array) -> tuple[Any, Any]:
            (loss, (logits, batch_stats)), gradients = grad_fn(trained, state.params, batch_stats, images, labels)
            return batch_stats, ((gradients, loss), per_example_metrics(logits, labels))

        zeros = jax.tree.map(jnp.zeros_like, trained), jnp.zeros(())
        batch_stats, (means, per_example) = accumulate_gradients(
            micro_step, config.grad_accum_steps, zeros, state.batch_stats, images, labels
        )
        gradients, loss = means
        losses, correct = per_example

        updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
        trained = optax.apply_updates(trained, updates)
        ema_params = state.ema_params
        if ema_params:
            ema_params = ema_update(ema_params, trained, state.step, recipe.ema)
        new_state = state.replace(
            step=state.step + 1,
            params=state.params | trained,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema_params=ema_params,
        )
        metrics = metrics.record_non_finite(loss, state.step + 1)
        return new_state, metrics.add(losses, correct, jnp.ones(len(images)))

    return train_step


def make_eval_step(model: nn.Module, preprocessing: Preprocessing) -> EvalStep:
    """Returns a function (variables, metrics, batch) → metrics that adds a batch's losses and correct predictions.

    Padding, which has a mask of 0, does not count.
    """

    def eval_step(variables: Any, metrics: Metrics, batch: Batch) -> Metrics:
        logits = model.apply(variables, preprocessing.preprocess_uint8(batch.images), train=False)
        losses, correct = per_example_metrics(logits, batch.labels)
        return metrics.add(losses, correct, batch.mask)

    return eval_step
