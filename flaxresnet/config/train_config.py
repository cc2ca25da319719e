"""The options of a training run: types, default values, help texts, checks, and conversion to and from JSON."""

import dataclasses
import os
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeVar

from flaxresnet.config.recipes import (
    CIFAR_MODELS,
    CIFAR_WIDTH,
    NETWORKS,
    RECIPES,
    REFERENCE_BATCH_SIZES,
    AugmentPolicy,
    Model,
    Network,
    Optimizer,
    Recipe,
    Stem,
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
from flaxresnet.runtime.local_path import is_url

CheckpointChoice = Literal["latest", "best"]  # the last epoch, or the epoch with the best test accuracy
Defaults = TypeVar("Defaults", Recipe, Network)
MAX_EPOCHS = 1_000_000
MAX_STEPS = 2**31 - 1  # the step counter has 32 bits
STAGES = ("stem", "stage2", "stage3", "stage4", "stage5")

EPOCHS = at_least(0), at_most(MAX_EPOCHS)
POSITIVE_COUNT = at_least(1), at_most(MAX_STEPS)
MIX_ALPHA = at_least(0), at_most(1000)
IMAGE_SIZE: Check = (lambda value: min(value) >= 32 and max(value) <= 2**16, "two numbers between 32 and 65536")
NOT_EMPTY: Check = (lambda value: value != ""), "a name"
LOCAL: Check = (
    (lambda value: not is_url(value)),
    "on a local disk, such as a mounted bucket or a copy of the files",
)
STAGE_LIST: Check = (
    (lambda value: set(value.replace(" ", "").split(",")) <= {*STAGES, "backbone"}),
    f"backbone or a comma-separated list of {', '.join(STAGES)}",
)


def field_with_checks(default: Any, *checks: Check) -> Any:
    """Returns a dataclass field with a default value and the checks of its value."""
    return field(default=default, metadata={"checks": checks})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Trains a network on labeled images. The recipe sets the defaults of most options.

    Example: flaxresnet train --data datasets/ --epochs 20

    Raises:
      UserError: a value is of the wrong type or out of range. The error, a ValueError, names the option and the value.
    """

    data: str | None = field_with_checks(None, LOCAL)
    """Training data: HDF5 or ArrayRecord files, or a folder with one subfolder of images per class."""

    image_size: tuple[int, int] | None = field_with_checks(None, IMAGE_SIZE)
    """Height and width in pixels, each 32 to 65536, to resize image files to."""

    resize: Literal["stretch", "crop", "pad"] | None = None
    """Handling of image files with another aspect ratio. stretch changes the ratio; crop resizes the shorter side and
    uses the center; pad adds black borders."""

    max_corrupt_fraction: float = field_with_checks(0.0, UNIT_CLOSED_OPEN)
    """Maximum fraction of corrupt images to skip, at least 0 and below 1. Training fails above it."""

    workdir: str = field_with_checks("runs/default", NOT_EMPTY, LOCAL)
    """Folder for the configuration, metrics and checkpoints. Training resumes a run in this folder."""

    input: Literal["auto", "memory", "stream"] = "auto"
    """Hold all images in memory on the devices, or stream them from disk during training. auto streams if they take too
    much memory."""

    workers: int | None = field_with_checks(None, at_least(0), at_most(1024))
    """Number of processes that read streamed images, 0 to 1024; 0 reads in threads."""

    epochs: int = field_with_checks(20, at_least(1), at_most(MAX_EPOCHS))
    """Number of epochs, 1 or more. A resumed run counts from its first epoch."""

    batch_size: int = field_with_checks(32, *POSITIVE_COUNT)
    """Number of images per training step, 1 or more, over all devices together."""

    grad_accum_steps: int = field_with_checks(1, *POSITIVE_COUNT)
    """Number of parts, 1 or more, to split a batch into to save memory. Gradients are accumulated over the parts; batch
    norm normalizes each part separately."""

    ghost_batch_size: int | None = field_with_checks(None, *POSITIVE_COUNT)
    """Number of images, 1 or more, that batch norm computes its training statistics over (ghost batch norm)."""

    seed: int = field_with_checks(0, between(0, 2**32 - 1))
    """Random seed for initialization, shuffling and augmentation, 0 to 4294967295."""

    recipe: Literal["robust", "fast", "tutorial", "finetune", "imagenet"] = "robust"
    """Set of defaults. robust: for photos by other people; fast: few epochs; tutorial: the Keras tutorials' settings;
    finetune: for --init; imagenet: for 100,000 images or more."""

    init: str | None = field_with_checks(None, NOT_EMPTY, LOCAL)
    """Pretrained weights to start from: a Keras or PyTorch file, a run's folder, or a Hugging Face model. The weights
    determine the network."""

    freeze: str | None = field_with_checks(None, STAGE_LIST)
    """Stages to freeze, including their batch norm statistics: a comma-separated list of stem, stage2, stage3, stage4
    and stage5, or backbone for all of them."""

    model: Model | None = None
    """Architecture. With --init, the weights determine it."""

    variant: Variant | None = None
    """Details of the architecture: as in the Keras tutorials, Keras Applications or torchvision. With --init, the
    weights determine them."""

    width: int | None = field_with_checks(None, at_least(1), at_most(4096))
    """Number of channels of the first convolution, 1 to 4096; all other layers scale with it. With --init, the weights
    determine it."""

    stem: Stem | None = None
    """First layers of the network. imagenet: 7×7 convolution of stride 2 and max pooling; small: 3×3 convolution of
    stride 1, for images of about 32×32 pixels. With --init, the weights determine it."""

    stem_relu: bool | None = None
    """Apply a ReLU after bn_conv1; one of the two Keras tutorials omits it. With --init, the weights determine it."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Data type of the layers' computations. Parameters, batch norm statistics, logits and loss are always float32."""

    optimizer: Optimizer | None = None
    """Optimizer. sgd has Nesterov momentum of 0.9; adamw is Adam with decoupled weight decay; lamb suits batches of
    thousands of images."""

    learning_rate: float | None = field_with_checks(None, POSITIVE)
    """Peak learning rate, above 0."""

    schedule: Literal["constant", "cosine"] | None = None
    """Schedule of the learning rate after the warm-up: constant, or cosine decay to zero."""

    warmup_epochs: float | None = field_with_checks(None, *EPOCHS)
    """Number of epochs, 0 or more, in which the learning rate rises linearly to its peak."""

    weight_decay: float | None = field_with_checks(None, at_least(0))
    """Weight decay of the kernels, 0 or more; biases and batch norm have none. It adds an L2 term to the gradient of
    sgd, and needs adamw instead of adam."""

    clip_grad: float | None = field_with_checks(None, at_least(0))
    """Maximum global norm of the gradient; larger gradients are scaled down to it. 0 turns clipping off."""

    ema: float | None = field_with_checks(None, UNIT_CLOSED_OPEN)
    """Decay of the exponential moving average (EMA) of the weights, at least 0 and below 1. Evaluation and prediction
    use the average; 0 turns it off."""

    label_smoothing: float | None = field_with_checks(None, UNIT_CLOSED_OPEN)
    """Fraction of the target probability to spread evenly over all classes, at least 0 and below 1."""

    aug_strength: float | None = field_with_checks(None, between(0, 2))
    """Strength, 0 to 2, of random changes in geometry, light, color, blur and noise. 0 turns them off, but not --hflip
    or --background-prob."""

    aug_warmup_epochs: float | None = field_with_checks(None, *EPOCHS)
    """Number of epochs, 0 or more, in which the augmentation strength rises linearly from zero."""

    background_prob: float | None = field_with_checks(None, between(0, 1))
    """Probability, 0 to 1, that an image with a plain background gets a random background."""

    crop_min_area: float | None = field_with_checks(None, UNIT_OPEN_CLOSED)
    """Minimum area of a random crop as a fraction of the image, above 0 and at most 1. Crops are resized to the full
    size; 1 turns them off."""

    crop_pct: float | None = field_with_checks(None, UNIT_OPEN_CLOSED)
    """Side of the central crop for evaluation and prediction as a fraction of the image's shorter side, above 0 and at
    most 1. 1 uses the full image."""

    auto_augment: AugmentPolicy | None = None
    """Augmentation policy. trivialaugment applies one random operation of random strength per image; randaugment
    applies two strong operations."""

    random_erasing: float | None = field_with_checks(None, between(0, 1))
    """Probability, 0 to 1, that a random box of an image is replaced by noise."""

    mixup: float | None = field_with_checks(None, *MIX_ALPHA)
    """Alpha of mixup, 0 to 1000, which blends pairs of images and their labels. 0 turns it off; with --cutmix, each
    batch gets one of the two."""

    cutmix: float | None = field_with_checks(None, *MIX_ALPHA)
    """Alpha of CutMix, 0 to 1000, which pastes a box of one image into another and mixes their labels by area. 0 turns
    it off."""

    hflip: bool = True
    """Flip half of the images horizontally if --aug-strength, --crop-min-area or --auto-augment is on. Turn it off if
    mirror images belong to other classes."""

    bn_momentum: float | None = field_with_checks(None, UNIT_CLOSED_OPEN)
    """Momentum of batch norm's running averages, at least 0 and below 1."""

    zero_init_residual: bool | None = None
    """Initialize the scale of each block's last batch norm to zero, so that each block starts as its shortcut."""

    freeze_backbone_epochs: float | None = field_with_checks(None, *EPOCHS)
    """Number of epochs at the start, 0 or more, that train only the last layer."""

    layer_decay: float | None = field_with_checks(None, UNIT_OPEN_CLOSED)
    """Factor, above 0 and at most 1, by which the learning rate falls from each stage to the stage before it. The last
    layer has the full rate."""

    freeze_bn_stats: bool | None = None
    """Keep batch norm's statistics from --init unchanged while the weights train, for batches of a few images."""

    precise_bn_images: int = field_with_checks(512, at_least(0), at_most(MAX_STEPS))
    """Number of augmented training images, 0 or more, to measure batch norm's statistics on for evaluation (precise
    BN). 0 uses the running averages."""

    report: bool = True
    """Write a report to report/index.html in the workdir at the end of the run, and calibrate the probabilities."""

    tensorboard: bool = False
    """Write the metrics of each epoch and the misclassified test images for TensorBoard. It needs the extra
    tensorboard."""

    profile: bool = False
    """Write a trace of five training steps to the folder profile in the workdir, for XProf or TensorBoard."""

    checkpoint_steps: int = field_with_checks(1000, *POSITIVE_COUNT)
    """Number of training steps, 1 or more, between checkpoints within an epoch. Each epoch ends with a checkpoint."""

    shard_optimizer: bool = False
    """Shard the optimizer state over the devices (ZeRO stage 1) to save memory on each."""

    distributed: bool = False
    """Train with the other processes of this job, which Slurm, Open MPI, Kubernetes or a TPU pod announces."""

    coordinator_address: str | None = field_with_checks(None, NOT_EMPTY)
    """HOST:PORT of process 0, the same for all processes. Give it if the cluster does not announce it."""

    num_processes: int | None = field_with_checks(None, at_least(1), at_most(2**20))
    """Number of processes that train together, 1 or more. Give it if the cluster does not announce it."""

    process_id: int | None = field_with_checks(None, at_least(0), at_most(2**20))
    """Index of this process, from 0. Give it if the cluster does not announce it."""

    resume: bool = True
    """Resume the run in the workdir. Otherwise, rename the old run's folder and start a new run."""

    allow_config_changes: bool = False
    """Resume although options or data changed, if the weights and the step count still fit."""

    verbose: bool = False
    """Also print details for engineers, such as where the images are stored and how long compilation takes."""

    compilation_cache: bool = True
    """Cache compiled programs in the user's cache folder, so that the next start is faster."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, os.PathLike):
                value = os.fspath(value)
            elif isinstance(value, list):  # JSON has no tuples
                value = tuple(value)
            value = check_value(f.name, value, hints[f.name], f.metadata.get("checks", ()))
            object.__setattr__(self, f.name, value)

    @property
    def resolved_recipe(self) -> Recipe:
        """Returns the recipe's values, overridden by the options that are given."""
        recipe = RECIPES[self.recipe]
        batch_ratio = self.batch_size / REFERENCE_BATCH_SIZES.get(self.recipe, self.batch_size)
        return self._override(dataclasses.replace(recipe, learning_rate=recipe.learning_rate * batch_ratio))

    @property
    def network(self) -> Network:
        """Returns the recipe's network, overridden by the options that are given."""
        network = self._override(NETWORKS.get(self.recipe, Network()))
        if network.model not in CIFAR_MODELS:
            return network
        return self._override(dataclasses.replace(network, width=CIFAR_WIDTH, stem="small"))

    @property
    def stages(self) -> tuple[str, ...]:
        """Returns the names of the network's stages, with the stem, in order."""
        return STAGES[:4] if self.network.model in CIFAR_MODELS else STAGES

    def _override(self, defaults: Defaults) -> Defaults:
        given = {}
        for f in dataclasses.fields(defaults):
            value = getattr(self, f.name)
            if value is not None:
                given[f.name] = value
        return dataclasses.replace(defaults, **given)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Returns the stages that `freeze` names, in the network's order."""
        names = self.freeze.replace(" ", "").split(",") if self.freeze else []
        if "backbone" in names:
            return self.stages
        return tuple(stage for stage in self.stages if stage in names)

    @property
    def updates_bn_stats(self) -> bool:
        """Returns whether training changes any batch norm statistics."""
        return not self.resolved_recipe.freeze_bn_stats and self.frozen != self.stages

    @property
    def measures_statistics(self) -> bool:
        """Returns whether batch norm's statistics are measured for evaluation (precise BN)."""
        return self.precise_bn_images > 0 and self.updates_bn_stats

    @property
    def uses_hflip(self) -> bool:
        """Returns whether half of the images are flipped: `hflip` and strength, crop or auto-augment are on."""
        recipe = self.resolved_recipe
        return self.hflip and (recipe.aug_strength > 0 or recipe.crop_min_area < 1 or recipe.auto_augment != "none")

    def check(self) -> None:
        """Raises UserError if options that are valid separately contradict each other."""
        recipe = self.resolved_recipe
        if self.batch_size % self.grad_accum_steps:
            raise UserError(
                f"--grad-accum-steps {self.grad_accum_steps} does not divide --batch-size {self.batch_size}; "
                "give a divisor of it"
            )
        part_size = self.batch_size // self.grad_accum_steps
        if self.ghost_batch_size and part_size % self.ghost_batch_size:
            raise UserError(
                f"--ghost-batch-size {self.ghost_batch_size} does not divide the {part_size} images that go through "
                f"the network at once; give a divisor of {part_size}"
            )
        if recipe.weight_decay and recipe.optimizer == "adam":
            raise UserError(
                f"--weight-decay {recipe.weight_decay} has no use with --optimizer adam, whose steps would undo it; "
                "give --optimizer adamw, or --weight-decay 0"
            )
        if recipe.freeze_bn_stats and not self.init:
            raise UserError(
                "--freeze-bn-stats needs --init, whose batch norm statistics it keeps; give --init, or "
                "--no-freeze-bn-stats"
            )
        if recipe.freeze_bn_stats and self.ghost_batch_size:
            raise UserError(
                f"--ghost-batch-size {self.ghost_batch_size} sets the images for batch norm's statistics, which "
                "--freeze-bn-stats keeps unchanged; give only one of them"
            )
        if recipe.ema and self.updates_bn_stats and not self.precise_bn_images:
            raise UserError(
                f"--ema {recipe.ema} needs --precise-bn-images above 0, because batch norm's running averages do not "
                "fit the averaged weights; leave --precise-bn-images out, or give --ema 0"
            )

    def resolve(self) -> Self:
        """Returns the configuration with the values of the recipe and the network filled in."""
        return dataclasses.replace(self, **dataclasses.asdict(self.resolved_recipe), **dataclasses.asdict(self.network))

    def to_json(self) -> dict[str, Any]:
        """Returns a dictionary from option names to values that JSON can represent."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Returns the configuration that `to_json` turned into `values`; a missing option gets its default.

        Raises:
          UserError: an option is unknown or has an invalid value.
        """
        unknown = sorted(set(values) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise UserError(f"unknown options {unknown}; `flaxresnet train --help-all` lists the options")
        return cls(**values)
