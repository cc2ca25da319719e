"""The loss: cross-entropy with label smoothing, for integer and for soft labels."""

import jax
import jax.numpy as jnp
import optax


def smoothed_cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float) -> jax.Array:
    """Returns the cross-entropy with smoothed labels in nats (Szegedy et al. 2016, section 7): (batch,) float32.

    Args:
      logits: (batch, classes).
      labels: integers (batch,), or class weights (batch, classes).
      label_smoothing: fraction of the target probability that is spread over all classes, in [0, 1).
    """
    targets = optax.smooth_labels(to_soft_labels(labels, logits.shape[-1]), label_smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def to_soft_labels(labels: jax.Array, num_classes: int) -> jax.Array:
    """Returns class weights (batch, classes) from integer labels (batch,), or from class weights unchanged."""
    return labels if labels.ndim == 2 else jax.nn.one_hot(labels, num_classes)


def per_example_metrics(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the cross-entropy in nats, and 1 for a correct prediction or 0, both (batch,) float32.

    Args:
      logits: (batch, classes).
      labels: integers (batch,), or class weights (batch, classes), the largest of which marks the correct class.
    """
    if labels.ndim == 2:
        losses = optax.softmax_cross_entropy(logits, labels)
        answers = labels.argmax(axis=-1)
    else:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        answers = labels
    return losses, (logits.argmax(axis=-1) == answers).astype(jnp.float32)
