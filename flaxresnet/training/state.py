"""What training changes from step to step."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from flaxresnet.models.resnet import ResNet, part_of


class TrainState(flax.struct.PyTreeNode):
    """Everything that a training step reads and writes.

    Attributes:
      step: training steps done, int32 scalar.
      params: trainable parameters, float32.
      batch_stats: batch norm's running averages, float32.
      opt_state: the optimiser's state, for the parameters that learn.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState

    @classmethod
    def create(
        cls, model: ResNet, optimizer: optax.GradientTransformation, key: jax.Array, image_size: tuple[int, int]
    ) -> "TrainState":
        """The state before the first step, with parameters drawn from `key`."""
        variables = model.init(key, jnp.zeros((1, *image_size, 3)))
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            opt_state=optimizer.init(learning(variables["params"], model.frozen)),
        )


def learning(params: Any, frozen: tuple[str, ...]) -> Any:
    """Those of a network's parameters that are in no frozen part (`part_of`)."""
    return {layer: tree for layer, tree in params.items() if part_of(layer) not in frozen}
