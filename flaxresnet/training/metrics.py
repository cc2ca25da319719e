"""Sums that become a loss and an accuracy."""

from typing import Any, Self

import flax.struct
import jax
import jax.numpy as jnp

NO_STEP = -1


class Metrics(flax.struct.PyTreeNode):
    """Sums over images, added up on the device so that the host need not wait for a step.

    Attributes:
      loss: summed cross-entropy, float32 scalar, nats.
      correct: images whose largest logit is their label's, float32 scalar.
      count: images, float32 scalar.
      first_non_finite_step: the first step whose objective was not finite, else `NO_STEP`; int32 scalar.
    """

    loss: jax.Array
    correct: jax.Array
    count: jax.Array
    first_non_finite_step: jax.Array

    @classmethod
    def zero(cls) -> Self:
        return cls(*(jnp.zeros(()) for _ in range(3)), jnp.full((), NO_STEP, jnp.int32))

    def add(self, losses: jax.Array, correct: jax.Array, mask: jax.Array) -> Self:
        """Adds (batch,) losses and hits where `mask`, (batch,) 0 or 1, is 1."""
        return self.replace(
            loss=self.loss + jnp.sum(jnp.where(mask > 0, losses, 0)),
            correct=self.correct + jnp.sum(jnp.where(mask > 0, correct, 0)),
            count=self.count + jnp.sum(mask),
        )

    def record_non_finite(self, objective: jax.Array, step: jax.Array) -> Self:
        """Remembers `step` if it is the first whose objective is not finite."""
        first = (self.first_non_finite_step == NO_STEP) & ~jnp.isfinite(objective)
        return self.replace(first_non_finite_step=jnp.where(first, step, self.first_non_finite_step))

    def means(self) -> tuple[float, float]:
        """Loss and accuracy an image; waits for the device."""
        count = max(float(self.count), 1.0)
        return float(self.loss) / count, float(self.correct) / count


def all_finite(tree: Any) -> jax.Array:
    """Whether there is neither a NaN nor an infinity in any array of a pytree: bool scalar."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
