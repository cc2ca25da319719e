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
      ema_params: the exponential moving average (EMA) of the parameters that learn over the steps done (`--ema`);
      without it, {}.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema_params: Any = flax.struct.field(default_factory=dict)

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
        trained = trainable_params(variables["params"], model.frozen)
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            opt_state=optimizer.init(trained),
            ema_params=copy_tree(trained) if averaging else {},
        )

    @property
    def eval_params(self) -> Any:
        """The parameters to evaluate and to predict with."""
        return self.params | self.ema_params

    @property
    def resume_state(self) -> dict[str, Any]:
        """What a checkpoint holds besides `eval_params`, so that training goes on as if it had not stopped."""
        kept = {"step": self.step, "batch_stats": self.batch_stats, "opt_state": self.opt_state}
        return kept | ({"params": {layer: self.params[layer] for layer in self.ema_params}} if self.ema_params else {})

    @property
    def items(self) -> dict[str, Any]:
        """The pytrees of a checkpoint, by name."""
        return {"params": self.eval_params, "training": self.resume_state}

    def restored(self, items: dict[str, Any]) -> "TrainState":
        """Returns the state whose `items` these are; this one tells whether there is an average."""
        weights, training = items["params"], items["training"]
        ema_params = {layer: weights[layer] for layer in self.ema_params}
        return self.replace(**(training | {"params": weights | training.get("params", {}), "ema_params": ema_params}))


def copy_tree(params: Any) -> Any:
    """The same values in memory of their own, for a step gives up what it is passed, each array once."""
    return jax.tree.map(jnp.copy, params)


def ema_update(ema_params: Any, new: Any, step: jax.Array, decay: float) -> Any:
    """The average of parameters after one more step: decay_t · average + (1 - decay_t) · new.

    Args:
      ema_params, new: pytrees of one structure; an empty one stays empty.
      step: steps done before this one, from 0.
      decay: the limit of decay_t = min(decay, (1 + step) / (10 + step)), which lets the first weights, random ones, be
        forgotten soon; as in TensorFlow's `tf.train.ExponentialMovingAverage` with `num_updates`.
    """
    rate = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, now: rate * old + (1 - rate) * now, ema_params, new)


def trainable_params(params: Any, frozen: tuple[str, ...]) -> Any:
    """Those of a network's parameters that are in no frozen part (`stage_of`)."""
    return {layer: tree for layer, tree in params.items() if stage_of(layer) not in frozen}
