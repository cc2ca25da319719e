"""The training and evaluation steps against calculations by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flaxresnet as fr
from flaxresnet.data.loader import Batch
from flaxresnet.data.preprocess import Preprocessing
from flaxresnet.training.metrics import NO_STEP, Metrics
from flaxresnet.training.state import TrainState
from flaxresnet.training.step import make_eval_step, make_train_step, scores

MODEL = fr.ResNet(num_classes=3, stage_sizes=(1, 1), width=4)
PREPROCESSING = Preprocessing(32, 32)


def some_batch(count=8, mask=None):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)
    images[:, :, :16] //= 4  # dark to the left, so that a mirrored image is another one
    mask = np.ones(count, np.float32) if mask is None else np.asarray(mask, np.float32)
    return Batch(jnp.asarray(images), jnp.asarray(np.arange(count) % 3), jnp.asarray(mask))


@pytest.fixture(scope="module")
def state():
    create = jax.jit(lambda: TrainState.create(MODEL, optax.sgd(0.1), jax.random.key(0), (32, 32)))
    return create()


@functools.cache  # a program takes seconds to compile
def train_step(**options):
    config = fr.TrainConfig(recipe="tutorial", **options)
    return jax.jit(make_train_step(MODEL, optax.sgd(0.1), PREPROCESSING, config, lambda _: config.settings.augment))


def test_scores_are_stable_for_logits_of_any_size():
    logits = np.array([[1000.0, 0.0, -1000.0], [0.0, 0.0, 0.0]])
    losses, correct = scores(jnp.asarray(logits, jnp.float32), jnp.array([2, 0]))
    np.testing.assert_allclose(losses, [2000.0, np.log(3)], rtol=1e-6)
    np.testing.assert_array_equal(correct, [0, 1])


def test_padding_counts_for_nothing_in_an_evaluation(state):
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    step = jax.jit(make_eval_step(MODEL, PREPROCESSING))
    padded = step(variables, Metrics.zero(), some_batch(8, mask=[1, 1, 1, 1, 1, 0, 0, 0]))
    batch = some_batch(8)
    logits = np.asarray(jax.jit(MODEL.apply)(variables, batch.images[:5] / 255), np.float64)
    log_sums = np.log(np.exp(logits).sum(axis=1))
    expected = (log_sums - logits[np.arange(5), batch.labels[:5]]).mean()
    loss, accuracy = padded.means()
    assert loss == pytest.approx(expected, rel=1e-4)
    assert accuracy == pytest.approx((logits.argmax(axis=1) == batch.labels[:5]).mean())
    assert float(padded.count) == 5


def test_a_step_moves_the_parameters_down_the_gradient_of_the_mean_cross_entropy(state):
    batch = some_batch()

    def loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, _ = MODEL.apply(variables, batch.images / 255, train=True, mutable=["batch_stats"])
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), batch.labels[:, None], axis=1).mean()

    gradient = jax.jit(jax.grad(loss))(state.params)
    new, metrics = train_step()(state, Metrics.zero(), batch)
    for before, slope, after in zip(*map(jax.tree.leaves, (state.params, gradient, new.params)), strict=True):
        np.testing.assert_allclose(after, before - 0.1 * slope, rtol=1e-3, atol=1e-5)
    assert int(new.step) == 1
    assert metrics.means()[0] == pytest.approx(float(jax.jit(loss)(state.params)), rel=1e-3)
    assert int(metrics.bad_step) == NO_STEP


def test_label_smoothing_changes_the_step_but_not_the_loss_that_is_reported(state):
    plain, metrics = train_step()(state, Metrics.zero(), some_batch())
    smooth, same = train_step(label_smoothing=0.2)(state, Metrics.zero(), some_batch())
    assert metrics.means() == pytest.approx(same.means())
    assert not np.allclose(plain.params["fc3"]["bias"], smooth.params["fc3"]["bias"])


def test_augmentation_depends_on_the_seed_and_the_step_alone(state):
    batch = some_batch()
    losses = {
        (seed, step): train_step(augment=1.0, seed=seed)(state.replace(step=step), Metrics.zero(), batch)[1].means()[0]
        for seed, step in ((0, 0), (0, 1), (1, 0))
    }
    assert len(set(losses.values())) == 3
    again = train_step(augment=1.0)(state.replace(step=1), Metrics.zero(), batch)[1].means()[0]
    assert again == losses[0, 1]


def test_flipping_can_be_turned_off(state):
    one, other = (
        train_step(augment=1e-6, flip=flip)(state, Metrics.zero(), some_batch())[1].means()[0] for flip in (True, False)
    )
    still = train_step()(state, Metrics.zero(), some_batch())[1].means()[0]
    assert other == pytest.approx(still, rel=1e-3)
    assert one != pytest.approx(still, rel=1e-3)
