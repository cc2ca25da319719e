"""Training recipes: default values of the options that `TrainConfig` leaves at None."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

Model = Literal[
    "resnet14",
    "resnet18",
    "resnet26",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "wide_resnet50_2",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
]
Variant = Literal["tutorial", "keras", "torchvision"]
Stem = Literal["imagenet", "small"]
Optimizer = Literal["adam", "sgd", "adamw", "lamb"]
AugmentPolicy = Literal["none", "trivialaugment", "randaugment"]


@dataclass(frozen=True)
class Network:
    """Default network options of a run without `--init`. `TrainConfig` describes the options."""

    model: Model = "resnet50"
    variant: Variant = "tutorial"
    width: int = 64
    stem_relu: bool = True
    stem: Stem = "imagenet"


@dataclass(frozen=True)
class Recipe:
    """Default training options. Those of this class follow the Keras tutorials. `TrainConfig` describes the options."""

    optimizer: Optimizer = "adam"
    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_epochs: float = 0.0
    weight_decay: float = 0.0
    clip_grad: float = 0.0
    ema: float = 0.0
    label_smoothing: float = 0.0
    aug_strength: float = 0.0
    aug_warmup_epochs: float = 0.0
    background_prob: float = 0.0
    crop_min_area: float = 1.0
    crop_pct: float = 1.0
    auto_augment: AugmentPolicy = "none"
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    bn_momentum: float = 0.99
    zero_init_residual: bool = False
    freeze_backbone_epochs: float = 0.0
    layer_decay: float = 1.0
    freeze_bn_stats: bool = False


TUTORIAL = Recipe()
# For the best test accuracy in 5 to 10 epochs on test images that resemble the training images.
FAST = Recipe(
    learning_rate=2e-3,
    schedule="cosine",
    warmup_epochs=0.5,
    label_smoothing=0.05,
    bn_momentum=0.9,
    zero_init_residual=True,
)
# For predictions on photos that other people take.
ROBUST = dataclasses.replace(
    FAST,
    warmup_epochs=1.0,
    aug_strength=1.25,
    aug_warmup_epochs=6.0,
    background_prob=0.2,
)
# For pretrained weights (--init): the first epoch trains only the last layer, then earlier layers have lower rates.
FINETUNE = dataclasses.replace(
    ROBUST,
    learning_rate=3e-4,
    aug_strength=1.0,
    aug_warmup_epochs=1.0,
    background_prob=0.0,
    zero_init_residual=False,
    freeze_backbone_epochs=1.0,
    layer_decay=0.8,
)
# For hundreds of thousands of images and 90 to 120 epochs. Goyal et al. 2017, arXiv:1706.02677: learning rate, warm-up,
# weight decay, zero-init of the residual branches, batch norm's momentum. He et al. 2019, arXiv:1812.01187: no weight
# decay of biases and batch norm, cosine schedule, label smoothing. Szegedy et al. 2015, arXiv:1409.4842: random crop,
# and the central 224 of 256 pixels for evaluation. Unlike the published recipe (He et al. 2015), kernels have the
# initialization of all recipes (Glorot & Bengio 2010).
IMAGENET = Recipe(
    optimizer="sgd",
    learning_rate=0.1,
    schedule="cosine",
    warmup_epochs=5.0,
    weight_decay=1e-4,
    label_smoothing=0.1,
    crop_min_area=0.08,
    crop_pct=0.875,
    bn_momentum=0.9,
    zero_init_residual=True,
)
RECIPES = {"robust": ROBUST, "fast": FAST, "tutorial": TUTORIAL, "finetune": FINETUNE, "imagenet": IMAGENET}
# Recipe → the batch size that its learning rate is for. The rate scales in proportion (Goyal et al. 2017, section 2.1).
REFERENCE_BATCH_SIZES = {"imagenet": 256}
# Recipe → its network, if not the default. ResNet "v1.5" has the stride in the 3×3 convolution.
NETWORKS = {"imagenet": Network(variant="torchvision")}
# The CIFAR networks of He et al. 2015, section 4.2, have three stages, and their own default width and stem.
CIFAR_MODELS = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110")
CIFAR_WIDTH = 16
