"""The inputs of a training step: augmented, normalized images and their labels."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from flaxresnet.augment.auto_augment import POLICIES, apply_policy
from flaxresnet.augment.background import replace_background
from flaxresnet.augment.crop_erase import erase
from flaxresnet.augment.geometric import augment
from flaxresnet.augment.mixup_cutmix import mix
from flaxresnet.config.train_config import TrainConfig
from flaxresnet.data.loader import Batch
from flaxresnet.data.preprocess import Preprocessing

Inputs = Callable[[jax.Array, Batch], tuple[jax.Array, jax.Array]]

# Streams of a step's key, apart from 0 and 1, into which `augment` splits it.
POLICY_STREAM = 2
ERASE_STREAM = 3
MIX_STREAM = 4
BACKGROUND_STREAM = 5


def make_inputs(
    preprocessing: Preprocessing,
    config: TrainConfig,
    augmentation: optax.Schedule,
    num_classes: int,
    cropped: bool = False,
) -> Inputs:
    """Returns a function from a step and a batch to the network's images and labels.

    The function applies, in this order: background replacement, geometry and light, auto-augment, random erasing, mixup
    or CutMix, normalization. All random numbers depend only on the seed and the step, so a resumed run repeats them.

    Args:
      preprocessing: the normalization of pixels.
      config: the run's options.
      augmentation: schedule of the augmentation's strength.
      num_classes: number of classes.
      cropped: whether the images already are random crops, which the decoder takes from the full-size photo.

    Returns:
      A function (step, batch) → (images, labels). The labels are the batch's, (batch,) int, or class distributions
      (batch, classes) if mixup or CutMix is on.
    """
    recipe = config.resolved_recipe
    crop_min_area = 1.0 if cropped else recipe.crop_min_area
    seed_key = jax.random.key(config.seed)

    def inputs(step: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        images = batch.images.astype(jnp.float32) / 255
        labels = batch.labels
        key = jax.random.fold_in(seed_key, step)
        if recipe.background_prob:
            images = replace_background(jax.random.fold_in(key, BACKGROUND_STREAM), images, recipe.background_prob)
        if recipe.aug_strength or crop_min_area < 1 or config.uses_hflip:
            strength = augmentation(step) if recipe.aug_strength else None
            images = augment(key, images, strength, config.hflip, crop_min_area)
        if recipe.auto_augment in POLICIES:
            images = apply_policy(jax.random.fold_in(key, POLICY_STREAM), images, POLICIES[recipe.auto_augment])
        if recipe.random_erasing:
            images = erase(jax.random.fold_in(key, ERASE_STREAM), images, recipe.random_erasing)
        if recipe.mixup or recipe.cutmix:
            targets = jax.nn.one_hot(labels, num_classes)
            images, labels = mix(jax.random.fold_in(key, MIX_STREAM), images, targets, recipe.mixup, recipe.cutmix)
        return preprocessing.normalize(images), labels

    return inputs
