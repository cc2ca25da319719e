"""What a training step looks at: a batch's images, augmented and scaled, and its labels, mixed where images are."""

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

# Streams of a step's key, apart from 0 and 1, which are what `augment` splits it into.
POLICY, ERASE, MIX, BACKGROUND = 2, 3, 4, 5


def make_inputs(
    preprocessing: Preprocessing,
    config: TrainConfig,
    augmentation: optax.Schedule,
    num_classes: int,
    cropped: bool = False,
) -> Inputs:
    """A function (step, batch) → (images, labels), in the order: background, position and light, policy, box, mix.

    All that is random depends on (seed, step) alone: a resumed run repeats it. The images are as the network takes
    them. The labels are the batch's, (batch,); where images are mixed, shares of the classes, (batch, classes).
    `cropped` says that random crops were taken where the images were decoded, from all the pixels that there are.
    """
    recipe = config.resolved_recipe
    crop = 1.0 if cropped else recipe.crop_min_area
    seed_key = jax.random.key(config.seed)

    def inputs(step: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        images, labels = batch.images.astype(jnp.float32) / 255, batch.labels
        key = jax.random.fold_in(seed_key, step)
        if recipe.background_prob:
            images = replace_background(jax.random.fold_in(key, BACKGROUND), images, recipe.background_prob)
        if recipe.aug_strength or crop < 1 or config.uses_hflip:
            strength = augmentation(step) if recipe.aug_strength else None
            images = augment(key, images, strength, config.hflip, crop)
        if recipe.auto_augment in POLICIES:
            images = apply_policy(jax.random.fold_in(key, POLICY), images, POLICIES[recipe.auto_augment])
        if recipe.random_erasing:
            images = erase(jax.random.fold_in(key, ERASE), images, recipe.random_erasing)
        if recipe.mixup or recipe.cutmix:
            shares = jax.nn.one_hot(labels, num_classes)
            images, labels = mix(jax.random.fold_in(key, MIX), images, shares, recipe.mixup, recipe.cutmix)
        return preprocessing.normalize(images), labels

    return inputs
