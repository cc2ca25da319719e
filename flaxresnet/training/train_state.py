"""The state that a training step reads and writes."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from flaxresnet.models.resnet import ResNet
from flaxresnet.training.param_groups import frozen_groups, trainable_params


class TrainState(flax.struct.PyTreeNode):
    """Everything that a training step changes.

    Attributes:
      step: training steps done, int32 scalar.
      params: all parameters, float32.
      batch_stats: the running averages of batch norm, float32.
      opt_state: the optimizer's state for the trainable parameters.
      ema_params: the exponential moving average (EMA, `--ema`) of the trainable parameters; {} if it is off.
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
        use_ema: bool = False,
    ) -> "TrainState":
        """Returns the state before the first step, with random parameters.

        Args:
          model, optimizer: as for `make_train_step`.
          key: the random key of the initialization.
          image_size: (height, width) in pixels.
          use_ema: whether to maintain the EMA of the trainable parameters.
        """
        variables = model.init(key, jnp.zeros((1, *image_size, 3)))
        trained = trainable_params(variables["params"], frozen_groups(model.frozen))
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            opt_state=optimizer.init(trained),
            ema_params=copy_tree(trained) if use_ema else {},
        )

    @property
    def eval_params(self) -> Any:
        """The parameters for evaluation and prediction: the EMA of trainable ones if it is on, and all others."""
        return self.params | self.ema_params

    @property
    def resume_state(self) -> dict[str, Any]:
        """The pytrees that a checkpoint needs in addition to `eval_params`, so that training resumes exactly."""
        state = {"step": self.step, "batch_stats": self.batch_stats, "opt_state": self.opt_state}
        if self.ema_params:
            state["params"] = {layer: self.params[layer] for layer in self.ema_params}
        return state

    @property
    def items(self) -> dict[str, Any]:
        """The pytrees of a checkpoint, by name."""
        return {"params": self.eval_params, "training": self.resume_state}

    def restored(self, items: dict[str, Any]) -> "TrainState":
        """Returns the state with these `items` of a checkpoint. The layers in `self.ema_params` have an EMA."""
        eval_params = items["params"]
        resume_state = items["training"]
        ema_params = {layer: eval_params[layer] for layer in self.ema_params}
        params = eval_params | resume_state.get("params", {})
        return self.replace(**(resume_state | {"params": params, "ema_params": ema_params}))


def copy_tree(tree: Any) -> Any:
    """Copies each array, because a jitted step that donates its state must not receive a buffer twice."""
    return jax.tree.map(jnp.copy, tree)
