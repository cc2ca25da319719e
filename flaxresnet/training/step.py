"""One training step and one evaluation step: pure functions, ready for jit."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from flaxresnet.config import TrainConfig
from flaxresnet.data.augment import augment
from flaxresnet.data.loader import Batch
from flaxresnet.data.preprocess import Preprocessing
from flaxresnet.models.resnet import ResNet
from flaxresnet.training.metrics import Metrics
from flaxresnet.training.state import TrainState, learning

TrainStep = Callable[[TrainState, Metrics, Batch], tuple[TrainState, Metrics]]
EvalStep = Callable[[Any, Metrics, Batch], Metrics]


def make_train_step(
    model: ResNet,
    optimizer: optax.GradientTransformation,
    preprocessing: Preprocessing,
    config: TrainConfig,
    augmentation: optax.Schedule,
) -> TrainStep:
    """A function (state, metrics, batch) → (state, metrics) that takes one step of gradient descent.

    The objective is the mean cross-entropy with `config.label_smoothing`; the metrics add up the plain cross-entropy,
    so that training and test losses compare. Augmentation, of strength `augmentation(step)`, is keyed by (seed, step)
    alone: a resumed run repeats it. Parameters in the model's frozen parts stay as they are and cost no gradient.
    A training batch is full, so its mask is not looked at.
    """
    settings = config.settings
    seed_key = jax.random.key(config.seed)

    def train_step(state: TrainState, metrics: Metrics, batch: Batch) -> tuple[TrainState, Metrics]:
        images = batch.images.astype(jnp.float32) / 255
        if settings.augment:
            key, strength = jax.random.fold_in(seed_key, state.step), augmentation(state.step)
            images = augment(key, images, strength, config.flip)
        images = preprocessing.normalized(images)

        trained = learning(state.params, model.frozen)

        def objective(trained: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            variables = {"params": state.params | trained, "batch_stats": state.batch_stats}
            logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
            targets = optax.smooth_labels(jax.nn.one_hot(batch.labels, logits.shape[-1]), settings.label_smoothing)
            return optax.softmax_cross_entropy(logits, targets).mean(), (logits, updated["batch_stats"])

        (value, (logits, batch_stats)), gradients = jax.value_and_grad(objective, has_aux=True)(trained)
        updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
        new_state = state.replace(
            step=state.step + 1,
            params=state.params | optax.apply_updates(trained, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return new_state, metrics.mark(value, state.step + 1).add(*scores(logits, batch.labels), jnp.ones(len(logits)))

    return train_step


def make_eval_step(model: nn.Module, preprocessing: Preprocessing) -> EvalStep:
    """A function (variables, metrics, batch) → metrics that adds a batch's loss and hits, padding left out."""

    def eval_step(variables: Any, metrics: Metrics, batch: Batch) -> Metrics:
        logits = model.apply(variables, preprocessing.scaled(batch.images), train=False)
        return metrics.add(*scores(logits, batch.labels), batch.mask)

    return eval_step


def scores(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy in nats and whether the largest logit is the label's, both (batch,) float32."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses, (logits.argmax(axis=-1) == labels).astype(jnp.float32)
