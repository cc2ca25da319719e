"""Tests of the training and evaluation steps against calculations by hand."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flaxresnet as fr
from flaxresnet.augment.pipeline import make_inputs
from flaxresnet.data.loader import Batch
from flaxresnet.data.preprocess import Preprocessing
from flaxresnet.training.metrics import NO_STEP, Metrics
from flaxresnet.training.step import make_eval_step, make_train_step
from flaxresnet.training.train_state import TrainState

MODEL = fr.ResNet(num_classes=3, stage_sizes=(1,), bottleneck=False, width=8)
PREPROCESSING = Preprocessing(32, 32)


def make_batch(count=8, mask=None):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)
    images[:, :, :16] //= 4  # dark on the left, so that mirroring changes an image
    mask = np.ones(count, np.float32) if mask is None else np.asarray(mask, np.float32)
    return Batch(jnp.asarray(images), jnp.asarray(np.arange(count) % 3), jnp.asarray(mask))


@pytest.fixture(scope="module")
def state():
    create = jax.jit(lambda: TrainState.create(MODEL, optax.sgd(0.1), jax.random.key(0), (32, 32)))
    return create()


@functools.cache  # a program takes seconds to compile
def train_step(**options):
    config = fr.TrainConfig(recipe="tutorial", **options)
    return jax.jit(
        make_train_step(MODEL, optax.sgd(0.1), PREPROCESSING, config, lambda _: config.resolved_recipe.aug_strength)
    )


@functools.cache
def inputs(**options):
    """Returns the compiled part of a training step before the network: (step, batch) → (images, labels)."""
    config = fr.TrainConfig(recipe="tutorial", **options)
    return jax.jit(make_inputs(PREPROCESSING, config, lambda _: config.resolved_recipe.aug_strength, 3))


def test_eval_step_ignores_padding(state):
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    step = jax.jit(make_eval_step(MODEL, PREPROCESSING))
    padded = step(variables, Metrics.zero(), make_batch(8, mask=[1, 1, 1, 1, 1, 0, 0, 0]))
    batch = make_batch(8)
    logits = np.asarray(jax.jit(MODEL.apply)(variables, batch.images[:5] / 255), np.float64)
    log_sums = np.log(np.exp(logits).sum(axis=1))
    expected = (log_sums - logits[np.arange(5), batch.labels[:5]]).mean()
    loss, accuracy = padded.means()
    assert loss == pytest.approx(expected, rel=1e-4)
    assert accuracy == pytest.approx((logits.argmax(axis=1) == batch.labels[:5]).mean())
    assert float(padded.count) == 5


def test_step_follows_cross_entropy_gradient(state):
    batch = make_batch()

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
    assert int(metrics.first_non_finite_step) == NO_STEP


def test_label_smoothing_keeps_reported_loss(state):
    plain, metrics = train_step()(state, Metrics.zero(), make_batch())
    smooth, same = train_step(label_smoothing=0.2)(state, Metrics.zero(), make_batch())
    assert metrics.means() == pytest.approx(same.means())
    assert not np.allclose(plain.params["fc3"]["bias"], smooth.params["fc3"]["bias"])


def test_augmentation_depends_on_seed_and_step():
    batch = make_batch()
    first, second, again = (np.asarray(inputs(aug_strength=1.0)(jnp.int32(step), batch)[0]) for step in (0, 1, 1))
    other_seed = np.asarray(inputs(aug_strength=1.0, seed=1)(jnp.int32(0), batch)[0])
    np.testing.assert_array_equal(second, again)
    plain = np.asarray(batch.images, np.float32) / 255
    for one, other in itertools.combinations((first, second, other_seed, plain), 2):
        assert np.abs(one - other).max() > 0.1


def logits_of(model, state, images):
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return model.apply(variables, images, train=True, mutable=["batch_stats"])


def assert_close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def one_step(model, state, batch=None, **options):
    config = fr.TrainConfig(recipe="tutorial", **options)
    step = make_train_step(model, optax.sgd(0.1), PREPROCESSING, config, lambda _: config.resolved_recipe.aug_strength)
    return jax.jit(step)(state, Metrics.zero(), make_batch() if batch is None else batch)


def test_accumulation_equals_batch_with_frozen_bn(state):
    model = MODEL.clone(frozen=("stem", "stage2", "stage3", "stage4", "stage5"))
    start = TrainState.create(model, optax.sgd(0.1), jax.random.key(0), (32, 32))
    full, full_metrics = one_step(model, start, mixup=1.0)
    parts, parts_metrics = one_step(model, start, mixup=1.0, grad_accum_steps=4)
    jax.tree.map(assert_close, full.params, parts.params)
    assert not np.allclose(full.params["fc3"]["kernel"], start.params["fc3"]["kernel"])
    assert full_metrics.means() == pytest.approx(parts_metrics.means(), rel=1e-5)
    assert float(parts_metrics.count) == 8


def test_accumulation_follows_mean_gradient(state):
    batch = make_batch()
    new, metrics = train_step(grad_accum_steps=2)(state, Metrics.zero(), batch)

    def loss(params, stats, images, labels):
        variables = {"params": params, "batch_stats": stats}
        logits, new = MODEL.apply(variables, images, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new["batch_stats"]

    loss_and_gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    stats = state.batch_stats
    gradients = []
    losses = []
    for part in (slice(0, None, 2), slice(1, None, 2)):
        (value, stats), gradient = loss_and_gradient(state.params, stats, batch.images[part] / 255, batch.labels[part])
        gradients.append(gradient)
        losses.append(float(value))
    jax.tree.map(
        lambda p, a, b, actual: assert_close(actual, p - 0.1 * (a + b) / 2), state.params, *gradients, new.params
    )
    jax.tree.map(assert_close, new.batch_stats, stats)
    assert metrics.means()[0] == pytest.approx(np.mean(losses), rel=1e-4)


def test_ghost_batch_norm_changes_step(state):
    full, _ = one_step(MODEL, state)
    groups, _ = one_step(MODEL.clone(ghost_batch_size=2), state)
    assert not np.allclose(full.params["conv1"]["kernel"], groups.params["conv1"]["kernel"], rtol=1e-3)
    means = [np.asarray(new.batch_stats["bn_conv1"]["mean"]) for new in (full, groups)]
    np.testing.assert_allclose(means[0], means[1], rtol=1e-3, atol=1e-6)  # the stem sees the same images


def test_step_updates_ema(state):
    start = state.replace(ema_params=state.params)
    new, _ = one_step(MODEL, start, ema=0.5)
    expected = lambda old, now: 0.1 * old + 0.9 * now  # noqa: E731 - (1 + 0) / (10 + 0) is below 0.5
    jax.tree.map(
        lambda old, now, mean: assert_close(mean, expected(old, now)), state.params, new.params, new.ema_params
    )
    assert train_step()(state, Metrics.zero(), make_batch())[0].ema_params == {}


@pytest.mark.parametrize(
    "option",
    [
        {"crop_min_area": 0.1},
        {"auto_augment": "trivialaugment"},
        {"random_erasing": 1.0},
        {"cutmix": 1.0},
        pytest.param({"auto_augment": "randaugment"}, marks=pytest.mark.campaign),
        pytest.param({"mixup": 1.0}, marks=pytest.mark.campaign),
    ],
    ids=str,
)
def test_augmentation_option_depends_on_step(option):
    batch = make_batch()
    first, again, later = (np.asarray(inputs(**option)(jnp.int32(step), batch)[0]) for step in (0, 0, 3))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - later).max() > 0.1
    assert np.abs(first - batch.images / 255).max() > 0.1


def test_background_depends_on_step():
    images = np.full((8, 32, 32, 3), 200, np.uint8)
    images[:, 8:28, 8:24] = (150, 80, 40)
    batch = make_batch().replace(images=jnp.asarray(images))
    config = fr.TrainConfig(recipe="tutorial", background_prob=1.0)
    replace = jax.jit(make_inputs(PREPROCESSING, config, lambda _: 0.0, 3))
    first, again, later = (np.asarray(replace(jnp.int32(step), batch)[0]) for step in (0, 0, 3))
    np.testing.assert_array_equal(first, again)
    corners = [changed[:, 0, 0] for changed in (first, later)]
    assert np.abs(corners[0] - corners[1]).max() > 0.1
    np.testing.assert_allclose(first[:, 12:24, 12:20] * 255, images[:, 12:24, 12:20], atol=3)


def test_mixup_uses_soft_labels(state):
    config = fr.TrainConfig(recipe="tutorial", mixup=1.0, seed=3)
    batch = make_batch()
    images, soft_labels = jax.jit(make_inputs(PREPROCESSING, config, lambda _: 0.0, 3))(state.step, batch)
    assert soft_labels.shape == (8, 3)
    assert len(np.unique(soft_labels)) > 2
    new, metrics = train_step(mixup=1.0, seed=3, label_smoothing=0.3)(state, Metrics.zero(), batch)
    logits, _ = jax.jit(functools.partial(logits_of, MODEL))(state, images)
    log_probabilities = np.asarray(jax.nn.log_softmax(logits), np.float64)
    loss, accuracy = metrics.means()
    assert loss == pytest.approx(-(np.asarray(soft_labels) * log_probabilities).sum(axis=1).mean(), rel=1e-4)
    assert accuracy == pytest.approx(
        (log_probabilities.argmax(axis=1) == np.asarray(soft_labels).argmax(axis=1)).mean()
    )
    # The bias of the last layer moves by the mean of softmax - smoothed labels.
    smooth = np.asarray(soft_labels) * 0.7 + 0.1
    change = new.params["fc3"]["bias"] - state.params["fc3"]["bias"]
    np.testing.assert_allclose(change, -0.1 * (np.exp(log_probabilities) - smooth).mean(axis=0), rtol=1e-3, atol=1e-6)


def mirrored_images(images: jax.Array, batch: Batch) -> list[bool]:
    """Returns for each image whether it is closer to the batch's mirrored image than to the plain one."""
    plain = np.asarray(batch.images, np.float32) / 255
    from_plain = np.abs(images - plain).mean(axis=(1, 2, 3))
    from_mirrored = np.abs(images - plain[:, :, ::-1]).mean(axis=(1, 2, 3))
    return list(from_mirrored < from_plain)


@pytest.mark.parametrize("option", [{"crop_min_area": 0.99999}, {"aug_strength": 1e-6}], ids=str)
def test_flip_mirrors_half_unless_off(option):
    batch = make_batch(32)
    images, still = (np.asarray(inputs(hflip=flip, **option)(jnp.int32(0), batch)[0]) for flip in (True, False))
    np.testing.assert_allclose(still, batch.images / 255, atol=1e-2)
    assert 4 < sum(mirrored_images(images, batch)) < 28
    assert not any(mirrored_images(still, batch))
