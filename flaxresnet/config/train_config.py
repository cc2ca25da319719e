"""Every option of a training run, once: its type, default, help text and check; to and from JSON."""

import dataclasses
import os
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeVar

import numpy as np

from flaxresnet.config.recipes import (
    NETWORKS,
    RATE_IS_FOR,
    RECIPES,
    AugmentPolicy,
    Model,
    Network,
    Optimizer,
    Recipe,
    Variant,
)
from flaxresnet.config.validation import (
    POSITIVE,
    UNIT_CLOSED_OPEN,
    UNIT_OPEN_CLOSED,
    Check,
    at_least,
    at_most,
    between,
    check_value,
)
from flaxresnet.runtime.errors import UserError

CheckpointChoice = Literal["latest", "best"]  # after the last epoch, or the best on the test images
Defaults = TypeVar("Defaults", Recipe, Network)
MAX_EPOCHS = 1_000_000
MAX_STEPS = 2**31 - 1  # that are counted in 32 bits
STAGES = ("stem", "stage2", "stage3", "stage4", "stage5")


IMAGE_SIZE: Check = (lambda value: min(value) >= 32 and max(value) <= 2**16, "two numbers of 32 or more")
NOT_EMPTY: Check = (lambda value: value != ""), "a name"
STAGE_LIST: Check = (
    (lambda value: set(value.replace(" ", "").split(",")) <= {*STAGES, "backbone"}),
    f"backbone, or some of {','.join(STAGES)}, divided by commas",
)


def field_with_checks(default: Any, *checks: Check) -> Any:
    return field(default=default, metadata={"checks": checks})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Trains a network on labeled images. The recipe sets the defaults of most options.

    Example: flaxresnet train --data datasets/ --epochs 20

    Raises:
      UserError: a value is of the wrong type or out of range. The error, a ValueError, names the option and the value.
    """

    data: str | None = None
    """HDF5 or ArrayRecord files, or a folder of pictures for each class. Left out: datasets/, or drawn hand signs."""

    image_size: tuple[int, int] | None = field_with_checks(None, IMAGE_SIZE)
    """Height and width that pictures in folders are resized to. Left out: those of --init, or 64 64."""

    max_corrupt_fraction: float = field_with_checks(0.0, UNIT_CLOSED_OPEN)
    """Maximum fraction of corrupt images to skip; training fails above it."""

    workdir: str = field_with_checks("runs/default", NOT_EMPTY)
    """Folder for configuration, metrics and checkpoints. A run found there goes on where it stopped."""

    input: Literal["auto", "memory", "stream"] = "auto"
    """Where images are: in memory, on the devices; or on disk, read while training. auto: in memory if they are few."""

    workers: int | None = field_with_checks(None, at_least(0), at_most(1024))
    """Processes that read images; 0: threads of this one. Left out: 0 on two cores, else cores but one, up to 16."""

    epochs: int = field_with_checks(20, at_least(1), at_most(MAX_EPOCHS))
    """Passes over the training images, counted from the beginning of the run."""

    batch_size: int = field_with_checks(32, at_least(1), at_most(MAX_STEPS))
    """Images in a training step, over all devices together."""

    grad_accum_steps: int = field_with_checks(1, at_least(1), at_most(MAX_STEPS))
    """Parts that a batch goes through the network in, to save memory, for one step; batch norm sees each part alone."""

    ghost_batch_size: int | None = field_with_checks(None, at_least(1), at_most(MAX_STEPS))
    """Images that batch norm takes its statistics over in training. Left out: all of the batch, or of its part."""

    seed: int = field_with_checks(0, between(0, 2**32 - 1))
    """Random seed for initialization, shuffling and augmentation."""

    recipe: Literal["robust", "fast", "tutorial", "finetune", "imagenet"] = "robust"
    """robust: others' photos. fast: few epochs. tutorial: as in Keras. finetune: from --init. imagenet: many images."""

    init: str | None = field_with_checks(None, NOT_EMPTY)
    """Weights to start from: a Keras or PyTorch file, a run's folder or a Hugging Face model; the network is theirs."""

    freeze: str | None = field_with_checks(None, STAGE_LIST)
    """Parts that do not learn, batch norm's statistics among them: stem,stage2,…,stage5; backbone is all of them."""

    model: Model | None = None
    """Architecture. With --init, left out: that of the weights."""

    variant: Variant | None = None
    """As in the tutorials, Keras Applications, or torchvision. With --init, left out: that of the weights."""

    width: int | None = field_with_checks(None, at_least(1), at_most(4096))
    """Features of the first convolution, which all others scale with. With --init, left out: that of the weights."""

    stem_relu: bool | None = None
    """Apply a ReLU after bn_conv1; one of the two tutorials has none. With --init, left out: that of the weights."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the layers; parameters, statistics, logits and loss are float32 with either."""

    optimizer: Optimizer | None = None
    """adam, sgd (Nesterov's momentum of 0.9), adamw (Adam with weight decay), or lamb, for batches of thousands."""

    learning_rate: float | None = field_with_checks(None, POSITIVE)
    """Learning rate; with a schedule, its peak."""

    schedule: Literal["constant", "cosine"] | None = None
    """Course of the learning rate after the warm-up: constant, or down to zero along half a cosine."""

    warmup_epochs: float | None = field_with_checks(None, at_least(0), at_most(MAX_EPOCHS))
    """Epochs in which the learning rate rises from zero."""

    weight_decay: float | None = field_with_checks(None, at_least(0))
    """Pull of kernels towards zero, not of biases and batch norm; for sgd an L2 term in the gradient. Not for adam."""

    clip_grad: float | None = field_with_checks(None, at_least(0))
    """Largest norm of the gradient of all parameters together; longer ones are shortened to it. 0: any."""

    ema: float | None = field_with_checks(None, UNIT_CLOSED_OPEN)
    """Decay of an average of the weights over the steps, which is what is evaluated and predicts. 0: no average."""

    label_smoothing: float | None = field_with_checks(None, UNIT_CLOSED_OPEN)
    """Share of the target probability that is spread evenly over all classes."""

    aug_strength: float | None = field_with_checks(None, between(0, 2))
    """Strength of random geometry, light, colour, blur and noise; 0: none of these (see --hflip, --background-prob)."""

    aug_warmup_epochs: float | None = field_with_checks(None, at_least(0), at_most(MAX_EPOCHS))
    """Epochs in which the augmentation grows from nothing to its strength."""

    background_prob: float | None = field_with_checks(None, between(0, 1))
    """Share of the images with a plain background that get another one at random."""

    crop_min_area: float | None = field_with_checks(None, UNIT_OPEN_CLOSED)
    """Smallest share of an image's area in a random crop, which is brought to the full size. 1: no crops."""

    crop_pct: float | None = field_with_checks(None, UNIT_OPEN_CLOSED)
    """Share of a test picture's shorter side that evaluation and prediction take, at its middle. 1: whole pictures."""

    auto_augment: AugmentPolicy | None = None
    """trivialaugment: one random operation an image, of any strength; randaugment: two strong operations."""

    random_erasing: float | None = field_with_checks(None, between(0, 1))
    """Share of the images in which a random box is replaced by noise (random erasing)."""

    mixup: float | None = field_with_checks(None, at_least(0), at_most(1000))
    """Alpha of mixup: images and labels averaged in pairs; with --cutmix too a batch takes one of the two. 0: off."""

    cutmix: float | None = field_with_checks(None, at_least(0), at_most(1000))
    """Alpha of CutMix: a box of one image is laid into another, and labels are mixed by its share. 0: off."""

    hflip: bool = True
    """Flip half of the images if any augmentation moves pixels; turn it off if mirror images mean other classes."""

    bn_momentum: float | None = field_with_checks(None, UNIT_CLOSED_OPEN)
    """Momentum of batch norm's running averages."""

    zero_init_residual: bool | None = None
    """Start each block's last batch norm with a scale of 0 (zero-init), so that it begins as its shortcut alone."""

    freeze_backbone_epochs: float | None = field_with_checks(None, at_least(0), at_most(MAX_EPOCHS))
    """Epochs at the beginning in which only the last layer learns."""

    layer_decay: float | None = field_with_checks(None, UNIT_OPEN_CLOSED)
    """Factor of the learning rate from each stage to the one before it, the last layer having the full rate."""

    freeze_bn_stats: bool | None = None
    """Batch norm's statistics stay as --init has them while the weights learn; for batches of a few images."""

    precise_bn_images: int = field_with_checks(512, at_least(0), at_most(MAX_STEPS))
    """Images, augmented as in training, to measure batch norm's statistics on, unless kept; 0: running averages."""

    report: bool = True
    """Write a page about the run at its end, report/index.html in the workdir, and calibrate its probabilities."""

    tensorboard: bool = False
    """Write the figures of each epoch for TensorBoard too, and pictures of mistakes at the end (extra tensorboard)."""

    profile: bool = False
    """Write a trace of five training steps into the folder profile in the workdir, for XProf or TensorBoard."""

    checkpoint_steps: int = field_with_checks(1000, at_least(1), at_most(MAX_STEPS))
    """Training steps between checkpoints within an epoch; after an epoch there is one in any case."""

    shard_optimizer: bool = False
    """Divide the optimiser's state over the devices (ZeRO, stage 1), so that each has less to keep."""

    distributed: bool = False
    """Train with the other processes of this job, as Slurm, Open MPI, Kubernetes or a TPU tells of them."""

    coordinator_address: str | None = field_with_checks(None, NOT_EMPTY)
    """HOST:PORT of process 0, where nothing tells: the same for all processes."""

    num_processes: int | None = field_with_checks(None, at_least(1), at_most(2**20))
    """How many processes train together, where nothing tells."""

    process_id: int | None = field_with_checks(None, at_least(0), at_most(2**20))
    """Which of them this is, from 0, where nothing tells."""

    resume: bool = True
    """Go on with the run in the workdir; otherwise start anew and keep the old run beside it, renamed."""

    allow_config_changes: bool = False
    """Go on with it although options or data differ from those so far, where weights and steps still fit."""

    verbose: bool = False
    """Also print details for engineers, such as the place of the images and the time of compilation."""

    compilation_cache: bool = True
    """Keep compiled programs in the user's cache folder, so that the next start is faster."""

    def __post_init__(self) -> None:
        for name in ("data", "workdir", "init"):
            if isinstance(value := getattr(self, name), os.PathLike):
                object.__setattr__(self, name, os.fspath(value))
        if isinstance(self.image_size, list):  # as JSON has it
            object.__setattr__(self, "image_size", tuple(self.image_size))
        hints = typing.get_type_hints(type(self))
        for f in dataclasses.fields(self):
            check_value(f.name, value := getattr(self, f.name), hints[f.name], f.metadata.get("checks", ()))
            if isinstance(value, np.generic):
                object.__setattr__(self, f.name, value.item())

    @property
    def resolved_recipe(self) -> Recipe:
        """The recipe's options, with those given explicitly in place of the recipe's."""
        recipe = RECIPES[self.recipe]
        share = self.batch_size / RATE_IS_FOR.get(self.recipe, self.batch_size)
        return self._override(dataclasses.replace(recipe, learning_rate=recipe.learning_rate * share))

    @property
    def network(self) -> Network:
        """Which network, with what was left out filled in."""
        return self._override(NETWORKS.get(self.recipe, Network()))

    def _override(self, defaults: Defaults) -> Defaults:
        """The defaults, with the options that were given in their place."""
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(defaults)}
        return dataclasses.replace(defaults, **{name: value for name, value in options.items() if value is not None})

    @property
    def frozen(self) -> tuple[str, ...]:
        """The parts of the network that `freeze` names."""
        named = self.freeze.replace(" ", "").split(",") if self.freeze else []
        return STAGES if "backbone" in named else tuple(part for part in STAGES if part in named)

    @property
    def measures_statistics(self) -> bool:
        """Whether batch norm's statistics are measured for evaluation: not where all of them stay as they are."""
        return self.precise_bn_images > 0 and not self.resolved_recipe.freeze_bn_stats and self.frozen != STAGES

    @property
    def uses_hflip(self) -> bool:
        """Whether half of the images are mirrored: with any of what changes where in an image things are."""
        recipe = self.resolved_recipe
        return self.hflip and (recipe.aug_strength > 0 or recipe.crop_min_area < 1 or recipe.auto_augment != "none")

    def check(self) -> None:
        """Raises UserError where options that are well each by itself do not fit together."""
        recipe, part = self.resolved_recipe, self.batch_size // self.grad_accum_steps
        if self.batch_size % self.grad_accum_steps:
            raise UserError(
                f"--grad-accum-steps {self.grad_accum_steps} does not divide --batch-size {self.batch_size}; "
                "give a divisor of it"
            )
        if self.ghost_batch_size and part % self.ghost_batch_size:
            parts = f" / --grad-accum-steps {self.grad_accum_steps}" if self.grad_accum_steps > 1 else ""
            raise UserError(
                f"--ghost-batch-size {self.ghost_batch_size} does not divide --batch-size {self.batch_size}{parts}; "
                f"give a divisor of {part}"
            )
        if recipe.weight_decay and recipe.optimizer == "adam":
            raise UserError(
                f"--weight-decay {recipe.weight_decay} is not for --optimizer adam, whose steps would undo it; "
                "give --optimizer adamw, or --weight-decay 0"
            )
        if recipe.freeze_bn_stats and not self.init:
            raise UserError(
                "--freeze-bn-stats needs --init, whose statistics of batch norm it keeps; give --init, or "
                "--no-freeze-bn-stats"
            )
        if recipe.freeze_bn_stats and self.ghost_batch_size:
            raise UserError(
                f"--ghost-batch-size {self.ghost_batch_size} says what batch norm takes its statistics over, which "
                "--freeze-bn-stats keeps as they are; leave one of them out"
            )
        if recipe.ema and not self.precise_bn_images and not recipe.freeze_bn_stats and self.frozen != STAGES:
            raise UserError(
                f"--ema {recipe.ema} needs --precise-bn-images above 0, for batch norm's running averages are those of "
                "the weights before averaging; leave --precise-bn-images out, or give --ema 0"
            )

    def resolve(self) -> Self:
        """The same configuration with every option filled in that was left to the recipe or to the network."""
        return dataclasses.replace(self, **dataclasses.asdict(self.resolved_recipe), **dataclasses.asdict(self.network))

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_json`. Raises UserError for a name that is no option, or a value that does not fit."""
        unknown = sorted(set(values) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise UserError(f"unknown options {unknown}; the options are those of `python train.py --help`")
        return cls(**values)
