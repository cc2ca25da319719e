"""Sums on the device that give a mean loss and an accuracy."""

from typing import Any, Self

import flax.struct
import jax
import jax.numpy as jnp

NO_STEP = -1


class Metrics(flax.struct.PyTreeNode):
    """Sums over images. They stay on the device, so that the host does not have to wait for each step.

    Attributes:
      loss: summed cross-entropy in nats, float32 scalar.
      correct: number of correct predictions, float32 scalar.
      count: number of images, float32 scalar.
      first_non_finite_step: the first step whose objective was NaN or infinite, else `NO_STEP`; int32 scalar.
    """

    loss: jax.Array
    correct: jax.Array
    count: jax.Array
    first_non_finite_step: jax.Array

    @classmethod
    def zero(cls) -> Self:
        """Returns the metrics over zero images."""
        return cls(
            loss=jnp.zeros(()),
            correct=jnp.zeros(()),
            count=jnp.zeros(()),
            first_non_finite_step=jnp.full((), NO_STEP, jnp.int32),
        )

    def add(self, losses: jax.Array, correct: jax.Array, mask: jax.Array) -> Self:
        """Returns the sums with the images added whose mask is 1.

        `losses` and `correct` are (batch,) float32, as `per_example_metrics` returns them; `mask` is (batch,) 0 or 1.
        """
        return self.replace(
            loss=self.loss + jnp.sum(jnp.where(mask > 0, losses, 0)),
            correct=self.correct + jnp.sum(jnp.where(mask > 0, correct, 0)),
            count=self.count + jnp.sum(mask),
        )

    def record_non_finite(self, objective: jax.Array, step: jax.Array) -> Self:
        """Returns the metrics with `step` recorded if its objective is the first that is not finite."""
        is_first = (self.first_non_finite_step == NO_STEP) & ~jnp.isfinite(objective)
        return self.replace(first_non_finite_step=jnp.where(is_first, step, self.first_non_finite_step))

    def means(self) -> tuple[float, float]:
        """Returns the mean loss in nats and the accuracy from 0 to 1. Waits for the device."""
        count = max(float(self.count), 1.0)
        return float(self.loss) / count, float(self.correct) / count


def all_finite(tree: Any) -> jax.Array:
    """Returns whether no array of a pytree holds a NaN or an infinity: bool scalar."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
