"""Batch norm over the batch, height and width of images (Ioffe & Szegedy 2015, arXiv:1502.03167).

The same layer as `nn.BatchNorm`, written as small compiled functions with the gradient of the paper's section 3: a
network of fifty of them is a program a quarter shorter, and traced sooner.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from flaxresnet.models.sharding import psum_to_match

IMAGES = (0, 1, 2)  # the axes that are averaged over: batch, height and width


class BatchNorm(nn.Module):
    """Batch norm with `nn.BatchNorm`'s parameters (`scale`, `bias`) and statistics (`mean`, `var` in `batch_stats`).

    `__call__(x, use_running_average)` takes and returns (batch, height, width, channels). With the batch's own
    statistics, and `mutable=["batch_stats"]`, the running ones are updated.

    Attributes:
      momentum: decay of the running statistics: new = momentum · old + (1 - momentum) · batch's.
      epsilon: added to the variance.
      group: images that statistics are taken over, neighbours in the batch ("ghost batch norm", Hoffer et al. 2017,
        arXiv:1705.08741); the running statistics take the mean of all groups' means and variances. None, or a batch
        that it does not divide: over the whole batch.
      dtype: of the result, None for that of `x`. Statistics and arithmetic are at least float32 in any case.
      scale_init, bias_init: initialisers of the parameters.
    """

    momentum: float = 0.99
    epsilon: float = 1e-5
    group: int | None = None
    dtype: Any = None
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool) -> jax.Array:
        features = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, features)
        var = self.variable("batch_stats", "var", jnp.ones, features)
        scale, bias = self.param("scale", self.scale_init, features), self.param("bias", self.bias_init, features)
        dtype = x.dtype if self.dtype is None else self.dtype
        if use_running_average:
            return _normalize(x, mean.value, var.value, scale, bias, self.epsilon).astype(dtype)
        group = len(x) if self.group is None or len(x) % self.group else self.group
        y, batch_mean, batch_var = normalize_groups(x, scale, bias, self.epsilon, group)
        if not self.is_initializing():
            mean.value = _decay(mean.value, batch_mean, self.momentum)
            var.value = _decay(var.value, batch_var, self.momentum)
        return y.astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalize_batch(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Images normalised with their own statistics, and those.

    Args:
      x: (batch, height, width, channels).
      scale, bias: (channels,).
      epsilon: added to the variance.

    Returns:
      (x - mean) · scale / √(var + ε) + bias, like x but at least float32, and mean and variance, (channels,), through
      which no gradient flows.
    """
    mean, var = _statistics(x)
    return _normalize(x, mean, var, scale, bias, epsilon), mean, var


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> Any:
    mean, var = _statistics(x)  # and not normalize_batch's, through which a second derivative would not go
    return (_normalize(x, mean, var, scale, bias, epsilon), mean, var), (x, scale, bias, mean, var)


def _backward(epsilon: float, residuals: Any, gradients: Any) -> tuple[jax.Array, ...]:
    x, scale, bias, mean, var = residuals
    found = _gradients(x, scale, mean, var, gradients[0], epsilon)
    return tuple(psum_to_match(primal, gradient) for primal, gradient in zip((x, scale, bias), found, strict=True))


normalize_batch.defvjp(_forward, _backward)


def normalize_groups(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, group: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As `normalize_batch`, each `group` neighbouring images by themselves; with the mean of their statistics."""
    if group == len(x):
        return normalize_batch(x, scale, bias, epsilon)
    groups = x.reshape(-1, group, *x.shape[1:])
    y, means, variances = jax.vmap(lambda images: normalize_batch(images, scale, bias, epsilon))(groups)
    return y.reshape(x.shape), means.mean(0), variances.mean(0)


# Compiled functions in themselves, so that layers of the same shape are traced once.
@jax.jit
def _statistics(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = x.mean(IMAGES)
    # Both sums in one pass over x; rounding may leave a variance just below zero.
    return mean, jnp.maximum((x * x).mean(IMAGES) - mean * mean, 0)


@partial(jax.jit, static_argnames="epsilon")
def _normalize(
    x: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> jax.Array:
    return (x - mean) * (scale * lax.rsqrt(var + epsilon)) + bias


@partial(jax.jit, static_argnames="epsilon")
def _gradients(
    x: jax.Array, scale: jax.Array, mean: jax.Array, var: jax.Array, g: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    inverse, centred, count = lax.rsqrt(var + epsilon), x - mean, x.size // x.shape[-1]
    by_bias, by_scale = g.sum(IMAGES), (g * centred).sum(IMAGES) * inverse
    by_x = (g - by_bias / count - centred * (by_scale * inverse / count)) * (scale * inverse)
    return by_x.astype(x.dtype), by_scale, by_bias


@partial(jax.jit, static_argnames="momentum")
def _decay(running: jax.Array, new: jax.Array, momentum: float) -> jax.Array:
    return momentum * running + (1 - momentum) * new
