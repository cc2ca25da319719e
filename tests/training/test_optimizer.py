"""The learning rate by a formula, and the optimisers written out in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxresnet.config.train_config import TrainConfig
from flaxresnet.runtime.errors import UserError
from flaxresnet.training.optimizer import make_augmentation, make_optimizer, make_schedule, steps_for

RATE = 2e-3  # of the recipe `robust`


def rates(config, steps_per_epoch):
    schedule = make_schedule(config, steps_per_epoch)
    return np.array([schedule(step) for step in range(config.epochs * steps_per_epoch)], np.float64)


def expected_rate(step, peak, warmup, total):
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


def test_the_tutorials_rate_is_constant_without_warm_up():
    np.testing.assert_allclose(rates(TrainConfig(recipe="tutorial", epochs=3), 4), np.full(12, 1e-3), rtol=1e-6)


def test_the_robust_rate_climbs_for_an_epoch_and_then_falls_along_half_a_cosine():
    found = rates(TrainConfig(recipe="robust", epochs=4), 5)
    np.testing.assert_allclose(found, [expected_rate(s, RATE, 5, 20) for s in range(20)], rtol=1e-5)
    np.testing.assert_allclose(found[:5], RATE * np.array([0.2, 0.4, 0.6, 0.8, 1]), rtol=1e-6)
    assert found.max() == pytest.approx(RATE, rel=1e-6)
    assert 0 < found[-1] < 0.02 * RATE


def test_the_cosine_is_at_zero_once_all_steps_are_done_and_stays_there():
    schedule = make_schedule(TrainConfig(epochs=4), 5)
    np.testing.assert_allclose([schedule(20), schedule(25)], 0, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "steps_per_epoch", "warmup"),
    [
        ({"learning_rate": 0.3}, 5, 5),
        ({"warmup_epochs": 0.4}, 5, 2),
        ({"warmup_epochs": 0.2}, 5, 1),
        ({"warmup_epochs": 0}, 5, 0),
        ({"warmup_epochs": 2.5}, 4, 10),
        ({"recipe": "tutorial", "schedule": "cosine", "learning_rate": 1e-3}, 6, 0),
    ],
)
def test_peak_and_warm_up_are_those_of_the_configuration(options, steps_per_epoch, warmup):
    config, total = TrainConfig(epochs=4, **options), 4 * steps_per_epoch
    peak = options.get("learning_rate", RATE)
    expected = [expected_rate(step, peak, warmup, total) for step in range(total)]
    np.testing.assert_allclose(rates(config, steps_per_epoch), expected, rtol=1e-5, atol=1e-9)


def test_a_constant_rate_after_a_warm_up_stays_at_the_peak():
    found = rates(TrainConfig(schedule="constant", warmup_epochs=1, learning_rate=0.4, epochs=3), 4)
    np.testing.assert_allclose(found, [0.1, 0.2, 0.3, *[0.4] * 9], rtol=1e-6)


@pytest.mark.parametrize("warmup_epochs", [2, 5])
def test_a_warm_up_as_long_as_the_run_or_longer_only_climbs(warmup_epochs):
    found = rates(TrainConfig(warmup_epochs=warmup_epochs, epochs=2), 5)
    np.testing.assert_allclose(found, RATE * np.arange(1, 11) / (5 * warmup_epochs), rtol=1e-5)


def test_the_rate_can_be_had_inside_jit():
    schedule = make_schedule(TrainConfig(epochs=4), 5)
    found = jax.jit(jax.vmap(schedule))(jnp.arange(20))
    np.testing.assert_allclose(found, [expected_rate(s, RATE, 5, 20) for s in range(20)], rtol=1e-5, atol=1e-9)


def test_augmentation_grows_in_a_line_and_stays():
    strength = make_augmentation(TrainConfig(augment=0.5, augment_ramp=1.5), steps_per_epoch=4)
    found = [float(strength(step)) for step in range(9)]
    np.testing.assert_allclose(found, [0.5 * min(step / 6, 1) for step in range(9)], rtol=1e-6)


def test_augmentation_without_a_ramp_is_constant():
    strength = make_augmentation(TrainConfig(augment=0.5, augment_ramp=0), steps_per_epoch=4)
    assert [float(strength(step)) for step in (0, 1, 100)] == [0.5] * 3


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
        (make_schedule(TrainConfig(epochs=4), 5), lambda step: RATE / 5 * (step + 1)),
    ],
    ids=["constant", "climbing"],
)
def test_the_first_three_updates_are_those_of_adam(schedule, rate):
    optimizer = make_optimizer(schedule)
    parameters = {"kernel": jnp.ones(4)}
    state, updates = optimizer.init(parameters), []
    for gradient in GRADIENTS:
        update, state = optimizer.update({"kernel": jnp.asarray(gradient, jnp.float32)}, state, parameters)
        updates.append(np.asarray(update["kernel"]))
    np.testing.assert_allclose(updates, adam(GRADIENTS, rate), rtol=3e-5, atol=1e-12)


def test_the_check_above_would_see_another_epsilon():
    ours, other = adam(GRADIENTS, lambda step: 1e-3), adam(GRADIENTS, lambda step: 1e-3, epsilon=1e-8)
    assert np.abs(ours / np.where(other == 0, 1, other) - 1)[:, 2].max() > 0.1


PARAMS = {
    "conv1": {"kernel": jnp.ones(2)},
    "res4a": {"res4a_branch2a": {"kernel": jnp.ones(3)}},
    "fc6": {"bias": jnp.ones(1)},
}


def steps_of(optimizer, count):
    """The updates of each part, at each step, for gradients of ones."""
    state, seen = optimizer.init(PARAMS), []
    for _ in range(count):
        updates, state = jax.jit(optimizer.update)(PARAMS, state, PARAMS)
        seen.append([float(jax.tree.leaves(updates[layer])[0][0]) for layer in ("conv1", "res4a", "fc6")])
    return np.array(seen)


def test_earlier_layers_learn_at_a_lower_rate():
    full, less = steps_of(make_optimizer(lambda _: 0.1), 2), steps_of(make_optimizer(lambda _: 0.1, layer_decay=0.5), 2)
    np.testing.assert_allclose(less, full * [0.5**5, 0.5**2, 1], rtol=1e-6)


def test_only_the_last_layer_learns_at_first():
    full, head = steps_of(make_optimizer(lambda _: 0.1), 4), steps_of(make_optimizer(lambda _: 0.1, head_steps=2), 4)
    assert (head[:2, :2] == 0).all()
    np.testing.assert_allclose(head[:, 2], full[:, 2], rtol=1e-6)
    np.testing.assert_allclose(head[2:], full[2:], rtol=1e-6)


KERNEL, BIAS = np.array([[0.5, -2.0], [1.5, 0.25]]), np.array([1.0, -3.0])
SLOPES = [(np.array([[3.0, -0.2], [1e-3, 0.7]]), np.array([-1.0, 0.4])), (-KERNEL, BIAS), (np.ones((2, 2)), -2 * BIAS)]
RATES = [0.1, 0.05, 0.2]


def walk(**options):
    """Where three steps of an optimiser lead a kernel and a bias, after each."""
    optimizer = make_optimizer(lambda step: jnp.array(RATES)[step], **options)
    params = {"fc6": {"kernel": jnp.asarray(KERNEL, jnp.float32), "bias": jnp.asarray(BIAS, jnp.float32)}}
    state, seen = optimizer.init(params), []
    for kernel, bias in SLOPES:
        slopes = {"fc6": {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}}
        updates, state = optimizer.update(slopes, state, params)
        params = optax.apply_updates(params, updates)
        seen.append((np.asarray(params["fc6"]["kernel"]), np.asarray(params["fc6"]["bias"])))
    return seen


def by_hand(rule, decays=(0.1, 0.0)):
    """The same in float64: `rule(parameter, slope, memory, step, decay)` gives the change; the bias never decays."""
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
def test_three_steps_are_those_of_the_published_rule_and_biases_do_not_decay(kind, rule):
    found, expected = walk(kind=kind, weight_decay=0.1), by_hand(rule)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine[0], theirs[0], rtol=3e-5, atol=3e-6)
        np.testing.assert_allclose(mine[1], theirs[1], rtol=3e-5, atol=3e-6)
    assert not np.allclose(walk(kind=kind)[0][0], found[0][0], rtol=1e-3)  # the decay counts


@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_a_gradient_above_the_limit_is_shortened_as_a_whole(limit):
    def shortened(slopes):
        norm = np.sqrt(sum((g**2).sum() for g in slopes))
        return [g * min(1, limit / norm) for g in slopes]

    places = [KERNEL, BIAS]
    memories = [{}, {}]
    for t, (slopes, found) in enumerate(zip(SLOPES, walk(kind="sgd", clip=limit), strict=True)):
        places = [p + sgd(p, g, m, t, 0) for p, g, m in zip(places, shortened(slopes), memories, strict=True)]
        np.testing.assert_allclose(found[0], places[0], rtol=3e-5, atol=3e-6)
        np.testing.assert_allclose(found[1], places[1], rtol=3e-5, atol=3e-6)


@pytest.mark.parametrize("kind", ["sgd", "adamw", "lamb"])
def test_depth_and_the_head_first_count_for_every_optimiser(kind):
    options = {"kind": kind, "weight_decay": 0.1, "clip": 1.0}
    full, less, head = (
        steps_of(make_optimizer(lambda _: 0.1, **options, **more), 3)
        for more in ({}, {"layer_decay": 0.5}, {"head_steps": 2})
    )
    np.testing.assert_allclose(less, full * [0.5**5, 0.5**2, 1], rtol=1e-6)
    assert (head[:2, :2] == 0).all()
    np.testing.assert_allclose(head[:, 2], full[:, 2], rtol=1e-6)
    np.testing.assert_allclose(head[2:], full[2:], rtol=1e-6)


@pytest.mark.parametrize("option", ["epochs", "warmup_epochs", "augment_ramp"])
def test_more_steps_than_can_be_counted_are_refused(option):
    config = TrainConfig(**{option: 1_000_000})
    message = (
        rf"--{option.replace('_', '-')} 1000000 is 5e\+09 steps, more than the 2,147,483,647 that can be counted; "
    )
    with pytest.raises(UserError, match=message + "give fewer epochs"):
        make_schedule(config, 5000), make_augmentation(config, 5000)
    with pytest.raises(UserError, match="--head-epochs 1000000 is"):
        steps_for("head_epochs", 1_000_000, 5000)
    assert steps_for("head_epochs", 0.5, 5000) == 2500
