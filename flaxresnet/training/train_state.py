"""What training changes from step to step."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from flaxresnet.models.resnet import ResNet, stage_of


class TrainState(flax.struct.PyTreeNode):
    """Everything that a training step reads and writes.

    Attributes:
      step: training steps done, int32 scalar.
      params: trainable parameters, float32.
      batch_stats: batch norm's running averages, float32.
      opt_state: the optimiser's state, for the parameters that learn.
      averaged: the average of the parameters that learn over the steps done (`--ema`); without it, {}.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    averaged: Any = flax.struct.field(default_factory=dict)

    @classmethod
    def create(
        cls,
        model: ResNet,
        optimizer: optax.GradientTransformation,
        key: jax.Array,
        image_size: tuple[int, int],
        averaging: bool = False,
    ) -> "TrainState":
        """The state before the first step, with parameters drawn from `key`; `averaging` with an average of them."""
        variables = model.init(key, jnp.zeros((1, *image_size, 3)))
        trained = learning(variables["params"], model.frozen)
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            opt_state=optimizer.init(trained),
            averaged=copied(trained) if averaging else {},
        )

    @property
    def weights(self) -> Any:
        """The parameters to evaluate and to predict with."""
        return self.params | self.averaged

    @property
    def training(self) -> dict[str, Any]:
        """What a checkpoint holds besides `weights`, so that training goes on as if it had not stopped."""
        kept = {"step": self.step, "batch_stats": self.batch_stats, "opt_state": self.opt_state}
        return kept | ({"params": {layer: self.params[layer] for layer in self.averaged}} if self.averaged else {})

    @property
    def items(self) -> dict[str, Any]:
        """The pytrees of a checkpoint, by name."""
        return {"params": self.weights, "training": self.training}

    def restored(self, items: dict[str, Any]) -> "TrainState":
        """Returns the state whose `items` these are; this one tells whether there is an average."""
        weights, training = items["params"], items["training"]
        averaged = {layer: weights[layer] for layer in self.averaged}
        return self.replace(**(training | {"params": weights | training.get("params", {}), "averaged": averaged}))


def copied(params: Any) -> Any:
    """The same values in memory of their own, for a step gives up what it is passed, each array once."""
    return jax.tree.map(jnp.copy, params)


def moved_average(averaged: Any, new: Any, step: jax.Array, decay: float) -> Any:
    """The average of parameters after one more step: decay_t · average + (1 - decay_t) · new.

    Args:
      averaged, new: pytrees of one structure; an empty one stays empty.
      step: steps done before this one, from 0.
      decay: the limit of decay_t = min(decay, (1 + step) / (10 + step)), which lets the first weights, random ones, be
        forgotten soon; as in TensorFlow's `tf.train.ExponentialMovingAverage` with `num_updates`.
    """
    rate = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, now: rate * old + (1 - rate) * now, averaged, new)


def learning(params: Any, frozen: tuple[str, ...]) -> Any:
    """Those of a network's parameters that are in no frozen part (`stage_of`)."""
    return {layer: tree for layer, tree in params.items() if stage_of(layer) not in frozen}
