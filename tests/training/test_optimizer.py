"""Tests of the optimizers against their algorithms in NumPy, and of the parameter groups."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxresnet.config.train_config import TrainConfig
from flaxresnet.training.optimizer import make_optimizer
from flaxresnet.training.param_groups import learning_rate_groups
from flaxresnet.training.schedule import make_schedule


def optimizer_of(schedule, kind="adam", head_epochs=0, **options):
    """Returns the optimizer of these options, with epochs of one step."""
    config = TrainConfig(recipe="tutorial", optimizer=kind, freeze_backbone_epochs=head_epochs, **options)
    return make_optimizer(config.resolved_recipe, schedule, learning_rate_groups(config, 1))


# Large, ordinary and so small that epsilon matters.
GRADIENTS = np.array([[3.0, -0.2, 1e-7, 0.0], [-1.0, -0.2, -3e-7, 1e-6], [2.5, 0.7, 2e-7, 0.0]])


def adam(gradients, rate, b1=0.9, b2=0.999, epsilon=1e-7):
    """Kingma & Ba 2015, algorithm 1, in float64: the update of each step."""
    m = v = np.zeros_like(gradients[0])
    updates = []
    for t, g in enumerate(gradients, start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        updates.append(-rate(t - 1) * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + epsilon))
    return np.array(updates)


@pytest.mark.parametrize(
    ("schedule", "rate"),
    [
        (optax.constant_schedule(1e-3), lambda step: 1e-3),
        (make_schedule(TrainConfig(epochs=4), 5), lambda step: 2e-3 / 5 * (step + 1)),
    ],
    ids=["constant", "climbing"],
)
def test_adam_follows_algorithm(schedule, rate):
    optimizer = optimizer_of(schedule)
    parameters = {"kernel": jnp.ones(4)}
    state, updates = optimizer.init(parameters), []
    for gradient in GRADIENTS:
        update, state = optimizer.update({"kernel": jnp.asarray(gradient, jnp.float32)}, state, parameters)
        updates.append(np.asarray(update["kernel"]))
    np.testing.assert_allclose(updates, adam(GRADIENTS, rate), rtol=3e-5, atol=1e-12)


def test_adam_check_detects_other_epsilon():
    ours, other = adam(GRADIENTS, lambda step: 1e-3), adam(GRADIENTS, lambda step: 1e-3, epsilon=1e-8)
    assert np.abs(ours / np.where(other == 0, 1, other) - 1)[:, 2].max() > 0.1


PARAMS = {
    "conv1": {"kernel": jnp.ones(2)},
    "res4a": {"res4a_branch2a": {"kernel": jnp.ones(3)}},
    "fc6": {"bias": jnp.ones(1)},
}


def updates_of(optimizer, count):
    """Returns the update of each stage at each step, for gradients of ones: (steps, 3)."""
    state, seen = optimizer.init(PARAMS), []
    for _ in range(count):
        updates, state = jax.jit(optimizer.update)(PARAMS, state, PARAMS)
        seen.append([float(jax.tree.leaves(updates[layer])[0][0]) for layer in ("conv1", "res4a", "fc6")])
    return np.array(seen)


def test_layer_decay_scales_stages():
    full, less = updates_of(optimizer_of(lambda _: 0.1), 2), updates_of(optimizer_of(lambda _: 0.1, layer_decay=0.5), 2)
    np.testing.assert_allclose(less, full * [0.5**5, 0.5**2, 1], rtol=1e-6)


def test_backbone_is_frozen_first():
    full, head = updates_of(optimizer_of(lambda _: 0.1), 4), updates_of(optimizer_of(lambda _: 0.1, head_epochs=2), 4)
    assert (head[:2, :2] == 0).all()
    np.testing.assert_allclose(head[:, 2], full[:, 2], rtol=1e-6)
    np.testing.assert_allclose(head[2:], full[2:], rtol=1e-6)


KERNEL, BIAS = np.array([[0.5, -2.0], [1.5, 0.25]]), np.array([1.0, -3.0])
SLOPES = [(np.array([[3.0, -0.2], [1e-3, 0.7]]), np.array([-1.0, 0.4])), (-KERNEL, BIAS), (np.ones((2, 2)), -2 * BIAS)]
RATES = [0.1, 0.05, 0.2]


def walk(**options):
    """Returns a kernel and a bias after each of three steps of an optimizer."""
    optimizer = optimizer_of(lambda step: jnp.array(RATES)[step], **options)
    params = {"fc6": {"kernel": jnp.asarray(KERNEL, jnp.float32), "bias": jnp.asarray(BIAS, jnp.float32)}}
    state, seen = optimizer.init(params), []
    for kernel, bias in SLOPES:
        slopes = {"fc6": {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}}
        updates, state = optimizer.update(slopes, state, params)
        params = optax.apply_updates(params, updates)
        seen.append((np.asarray(params["fc6"]["kernel"]), np.asarray(params["fc6"]["bias"])))
    return seen


def by_hand(rule, decays=(0.1, 0.0)):
    """Returns the same in float64. `rule(parameter, gradient, state, step, decay)` gives the update; no bias decays."""
    seen, places, memories = [], [KERNEL, BIAS], [{}, {}]
    for t, slopes in enumerate(SLOPES):
        places = [p + rule(p, g, m, t, d) for p, g, m, d in zip(places, slopes, memories, decays, strict=True)]
        seen.append(tuple(places))
    return seen


def sgd(p, g, memory, t, decay):
    """Sutskever et al. 2013 as PyTorch and optax write it: L2 in the gradient, then momentum, then one step ahead."""
    g = g + decay * p
    memory["v"] = 0.9 * memory.get("v", 0) + g
    return -RATES[t] * (g + 0.9 * memory["v"])


def adam_direction(g, memory, t, epsilon):
    memory["m"] = 0.9 * memory.get("m", 0) + 0.1 * g
    memory["v"] = 0.999 * memory.get("v", 0) + 0.001 * g * g
    return memory["m"] / (1 - 0.9 ** (t + 1)) / (np.sqrt(memory["v"] / (1 - 0.999 ** (t + 1))) + epsilon)


def adamw(p, g, memory, t, decay):
    """Loshchilov & Hutter 2019, algorithm 2."""
    return -RATES[t] * (adam_direction(g, memory, t, 1e-7) + decay * p)


def lamb(p, g, memory, t, decay):
    """You et al. 2020, algorithm 2, with φ the identity."""
    r = adam_direction(g, memory, t, 1e-6) + decay * p
    return -RATES[t] * np.linalg.norm(p) / np.linalg.norm(r) * r


@pytest.mark.parametrize(("kind", "rule"), [("sgd", sgd), ("adamw", adamw), ("lamb", lamb)])
def test_optimizer_follows_paper(kind, rule):
    found, expected = walk(kind=kind, weight_decay=0.1), by_hand(rule)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine[0], theirs[0], rtol=3e-5, atol=3e-6)
        np.testing.assert_allclose(mine[1], theirs[1], rtol=3e-5, atol=3e-6)
    assert not np.allclose(walk(kind=kind)[0][0], found[0][0], rtol=1e-3)  # the decay changes the step


@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_clip_grad_scales_global_norm(limit):
    def ellipsize(slopes):
        norm = np.sqrt(sum((g**2).sum() for g in slopes))
        return [g * min(1, limit / norm) for g in slopes]

    places = [KERNEL, BIAS]
    memories = [{}, {}]
    for t, (slopes, found) in enumerate(zip(SLOPES, walk(kind="sgd", clip_grad=limit), strict=True)):
        places = [p + sgd(p, g, m, t, 0) for p, g, m in zip(places, ellipsize(slopes), memories, strict=True)]
        np.testing.assert_allclose(found[0], places[0], rtol=3e-5, atol=3e-6)
        np.testing.assert_allclose(found[1], places[1], rtol=3e-5, atol=3e-6)


@pytest.mark.parametrize("kind", ["sgd", "adamw", "lamb"])
def test_groups_apply_to_every_optimizer(kind):
    options = {"kind": kind, "weight_decay": 0.1, "clip_grad": 1.0}
    full, less, head = (
        updates_of(optimizer_of(lambda _: 0.1, **options, **more), 3)
        for more in ({}, {"layer_decay": 0.5}, {"head_epochs": 2})
    )
    np.testing.assert_allclose(less, full * [0.5**5, 0.5**2, 1], rtol=1e-6)
    assert (head[:2, :2] == 0).all()
    np.testing.assert_allclose(head[:, 2], full[:, 2], rtol=1e-6)
    np.testing.assert_allclose(head[2:], full[2:], rtol=1e-6)
