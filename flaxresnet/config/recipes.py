"""What options are that are not given: recipes of training, each a set of values, and the networks."""

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
]
Variant = Literal["tutorial", "keras", "torchvision"]
Optimizer = Literal["adam", "sgd", "adamw", "lamb"]
AugmentPolicy = Literal["none", "trivialaugment", "randaugment"]


@dataclass(frozen=True)
class Network:
    """Which network: what the options become that are left at None without `--init`, as `TrainConfig` explains them."""

    model: Model = "resnet50"
    variant: Variant = "tutorial"
    width: int = 64
    stem_relu: bool = True


@dataclass(frozen=True)
class Recipe:
    """What the options become that are left at None; `TrainConfig` says what each means. By itself, the tutorials'."""

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
# The shortest way to a good test accuracy on images like those of training: give it 5 to 10 epochs.
FAST = Recipe(
    learning_rate=2e-3,
    schedule="cosine",
    warmup_epochs=0.5,
    label_smoothing=0.05,
    bn_momentum=0.9,
    zero_init_residual=True,
)
# Made for photos that other people take.
ROBUST = dataclasses.replace(
    FAST,
    warmup_epochs=1.0,
    aug_strength=1.25,
    aug_warmup_epochs=6.0,
    background_prob=0.2,
)
# For weights that have learned from other pictures (--init): first the last layer, then all, the first layers least.
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
# For hundreds of thousands of pictures, as published with 90 to 120 epochs. Goyal et al. 2017, arXiv:1706.02677: rate,
# warm-up, weight decay, silent residual branches, batch norm's momentum. He et al. 2019, arXiv:1812.01187: no decay of
# biases and norms, cosine, label smoothing. Szegedy et al. 2015, arXiv:1409.4842: the crop; and the middle 224 of 256
# pixels for evaluation. The kernels start as in all recipes (Glorot & Bengio 2010), not as published (He et al. 2015).
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
# Recipes whose learning rate is that for steps of so many images, and in proportion for others (Goyal, section 2.1).
RATE_IS_FOR = {"imagenet": 256}
# Recipes with a network of their own: "v1.5", whose 3×3 convolution takes the stride.
NETWORKS = {"imagenet": Network(variant="torchvision")}
