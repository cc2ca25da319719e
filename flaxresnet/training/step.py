"""One training step and one evaluation step: pure functions, ready for jit."""

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
from flaxresnet.training.gradient_accumulation import accumulate_gradients
from flaxresnet.training.metrics import Metrics
from flaxresnet.training.train_state import TrainState, ema_update, trainable_params

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
    """A function (state, metrics, batch) → (state, metrics) that takes one step of gradient descent.

    The objective is the mean cross-entropy with `config.label_smoothing`; the metrics add up the cross-entropy without
    it, so that training and test losses compare (where images are mixed, with the mixed labels, and an answer is right
    that is the label of the larger share). Augmentation, of strength `augmentation(step)`, is keyed by (seed, step)
    alone: a resumed run repeats it. Parameters in the model's frozen parts stay as they are and cost no gradient.
    A training batch is full, so its mask is not looked at. `cropped` is for `make_inputs`.

    `config.grad_accum_steps` turns on gradient accumulation; see `gradient_accumulation.py`. The batch is augmented
    before it is divided.
    """
    recipe = config.resolved_recipe
    inputs = make_inputs(preprocessing, config, augmentation, model.num_classes, cropped)

    def objective(trained: Any, rest: Any, batch_stats: Any, images: jax.Array, labels: jax.Array) -> Any:
        variables = {"params": rest | trained, "batch_stats": batch_stats}
        logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
        targets = optax.smooth_labels(to_soft_labels(labels, model.num_classes), recipe.label_smoothing)
        return optax.softmax_cross_entropy(logits, targets).mean(), (logits, updated["batch_stats"])

    grad_fn = jax.value_and_grad(objective, has_aux=True)

    def train_step(state: TrainState, metrics: Metrics, batch: Batch) -> tuple[TrainState, Metrics]:
        images, labels = inputs(state.step, batch)
        trained = trainable_params(state.params, model.frozen)

        def micro_step(batch_stats: Any, images: jax.Array, labels: jax.Array) -> tuple[Any, Any]:
            (value, (logits, batch_stats)), gradients = grad_fn(trained, state.params, batch_stats, images, labels)
            return batch_stats, ((gradients, value), per_example_metrics(logits, labels))

        zeros = jax.tree.map(jnp.zeros_like, trained), jnp.zeros(())
        batch_stats, ((gradients, value), (losses, hits)) = accumulate_gradients(
            micro_step, config.grad_accum_steps, zeros, state.batch_stats, images, labels
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
        trained = optax.apply_updates(trained, updates)
        new_state = state.replace(
            step=state.step + 1,
            params=state.params | trained,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema_params=ema_update(state.ema_params, trained if state.ema_params else {}, state.step, recipe.ema),
        )
        return new_state, metrics.record_non_finite(value, state.step + 1).add(losses, hits, jnp.ones(len(images)))

    return train_step


def make_eval_step(model: nn.Module, preprocessing: Preprocessing) -> EvalStep:
    """A function (variables, metrics, batch) → metrics that adds a batch's loss and hits, padding left out."""

    def eval_step(variables: Any, metrics: Metrics, batch: Batch) -> Metrics:
        logits = model.apply(variables, preprocessing.scaled(batch.images), train=False)
        return metrics.add(*per_example_metrics(logits, batch.labels), batch.mask)

    return eval_step


def to_soft_labels(labels: jax.Array, num_classes: int) -> jax.Array:
    """Labels (batch,) or shares of the classes (batch, classes) as the latter."""
    return labels if labels.ndim == 2 else jax.nn.one_hot(labels, num_classes)


def per_example_metrics(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy in nats and whether the largest logit is the label's, both (batch,) float32.

    Labels are (batch,), or shares of the classes (batch, classes), of which the largest is what is to be answered.
    """
    if labels.ndim == 2:
        losses = optax.softmax_cross_entropy(logits, labels)
        return losses, (logits.argmax(axis=-1) == labels.argmax(axis=-1)).astype(jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses, (logits.argmax(axis=-1) == labels).astype(jnp.float32)
