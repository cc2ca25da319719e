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

    With `config.grad_accum_steps` the batch, augmented as a whole, goes through the network in so many parts, one after
    another, and the step follows the mean of their gradients: the same step in less memory, but for batch norm, which
    normalises each part with the part's own statistics and moves its running averages at every part.
    """
    recipe = config.resolved_recipe
    inputs = make_inputs(preprocessing, config, augmentation, model.num_classes, cropped)

    def objective(trained: Any, rest: Any, batch_stats: Any, images: jax.Array, labels: jax.Array) -> Any:
        variables = {"params": rest | trained, "batch_stats": batch_stats}
        logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
        targets = optax.smooth_labels(to_soft_labels(labels, model.num_classes), recipe.label_smoothing)
        return optax.softmax_cross_entropy(logits, targets).mean(), (logits, updated["batch_stats"])

    slope = jax.value_and_grad(objective, has_aux=True)

    def train_step(state: TrainState, metrics: Metrics, batch: Batch) -> tuple[TrainState, Metrics]:
        images, labels = inputs(state.step, batch)
        trained = trainable_params(state.params, model.frozen)

        def follow(batch_stats: Any, images: jax.Array, labels: jax.Array) -> tuple[Any, Any]:
            (value, (logits, batch_stats)), gradients = slope(trained, state.params, batch_stats, images, labels)
            return batch_stats, ((gradients, value), per_example_metrics(logits, labels))

        parts = config.grad_accum_steps, (jax.tree.map(jnp.zeros_like, trained), jnp.zeros(()))
        batch_stats, ((gradients, value), (losses, hits)) = in_parts(follow, *parts, state.batch_stats, images, labels)
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


def in_parts(
    follow: Callable[..., tuple[Any, Any]], count: int, zero: Any, batch_stats: Any, *batch: jax.Array
) -> tuple[Any, Any]:
    """`follow(batch_stats, *batch)`, on `count` equal parts of the batch one after another.

    Args:
      follow: (batch_stats, *arrays) → (batch_stats, (means, scores)); `per_example_metrics` have an entry an image.
      count: parts; part i has the images i, i + count, i + 2 · count, …, so that a batch whose neighbours lie on one
        device keeps all devices busy with every part.
      zero: zeros like the means.
      batch_stats: passed on from part to part.
      batch: arrays (batch, …).

    Returns:
      What `follow` returns of the whole: the mean of the parts' means, and all images' scores, part by part.
    """
    if count == 1:
        return follow(batch_stats, *batch)
    parts = [jnp.moveaxis(array.reshape(-1, count, *array.shape[1:]), 1, 0) for array in batch]

    def one(carried: tuple[Any, Any], part: list[jax.Array]) -> tuple[tuple[Any, Any], Any]:
        batch_stats, (means, scored) = follow(carried[0], *part)
        return (batch_stats, jax.tree.map(jnp.add, carried[1], means)), scored

    (batch_stats, sums), scored = jax.lax.scan(one, (batch_stats, zero), parts)
    return batch_stats, (jax.tree.map(lambda leaf: leaf / count, sums), jax.tree.map(jnp.ravel, scored))


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
