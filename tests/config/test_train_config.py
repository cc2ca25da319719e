"""Options of training: defaults, recipes, checks, JSON, help texts and flags."""

import ast
import dataclasses
import json
import pathlib
import typing
from fractions import Fraction

import numpy as np
import pytest

from flaxresnet.cli import parser
from flaxresnet.config import train_config
from flaxresnet.config.recipes import CIFAR_MODELS, RECIPES
from flaxresnet.config.train_config import TrainConfig
from flaxresnet.config.validation import flag
from flaxresnet.models.resnet import SIZES, VARIANTS
from flaxresnet.runtime.errors import UserError

STAGE_LIST = "backbone or a comma-separated list of stem, stage2, stage3, stage4, stage5"
MODELS = " or ".join(map(repr, SIZES))

NAMES = [f.name for f in dataclasses.fields(TrainConfig)]

# Option → flags that set a value other than the default, and the value.
FLAGS = {
    "data": (["--data", "some/file.h5"], "some/file.h5"),
    "image_size": (["--image-size", "96", "80"], (96, 80)),
    "resize": (["--resize", "pad"], "pad"),
    "max_corrupt_fraction": (["--max-corrupt-fraction", "0.05"], 0.05),
    "workdir": (["--workdir", "runs/signs"], "runs/signs"),
    "input": (["--input", "stream"], "stream"),
    "workers": (["--workers", "3"], 3),
    "epochs": (["--epochs", "3"], 3),
    "batch_size": (["--batch-size", "8"], 8),
    "grad_accum_steps": (["--grad-accum-steps", "2"], 2),
    "ghost_batch_size": (["--ghost-batch-size", "4"], 4),
    "seed": (["--seed", "4294967295"], 2**32 - 1),
    "recipe": (["--recipe", "tutorial"], "tutorial"),
    "init": (["--init", "weights.h5"], "weights.h5"),
    "freeze": (["--freeze", "stem,stage2"], "stem,stage2"),
    "model": (["--model", "resnet14"], "resnet14"),
    "variant": (["--variant", "keras"], "keras"),
    "width": (["--width", "16"], 16),
    "stem": (["--stem", "small"], "small"),
    "stem_relu": (["--no-stem-relu"], False),
    "precision": (["--precision", "bfloat16"], "bfloat16"),
    "optimizer": (["--optimizer", "lamb"], "lamb"),
    "learning_rate": (["--learning-rate", "3e-4"], 3e-4),
    "schedule": (["--schedule", "constant"], "constant"),
    "warmup_epochs": (["--warmup-epochs", "0.5"], 0.5),
    "weight_decay": (["--weight-decay", "0.05"], 0.05),
    "clip_grad": (["--clip-grad", "1.5"], 1.5),
    "ema": (["--ema", "0.999"], 0.999),
    "label_smoothing": (["--label-smoothing", "0.2"], 0.2),
    "aug_strength": (["--aug-strength", "0"], 0.0),
    "aug_warmup_epochs": (["--aug-warmup-epochs", "2.5"], 2.5),
    "background_prob": (["--background-prob", "0.25"], 0.25),
    "crop_min_area": (["--crop-min-area", "0.25"], 0.25),
    "crop_pct": (["--crop-pct", "0.9"], 0.9),
    "auto_augment": (["--auto-augment", "randaugment"], "randaugment"),
    "random_erasing": (["--random-erasing", "0.25"], 0.25),
    "mixup": (["--mixup", "0.2"], 0.2),
    "cutmix": (["--cutmix", "0.5"], 0.5),
    "hflip": (["--no-hflip"], False),
    "bn_momentum": (["--bn-momentum", "0.95"], 0.95),
    "zero_init_residual": (["--zero-init-residual"], True),
    "freeze_backbone_epochs": (["--freeze-backbone-epochs", "1.5"], 1.5),
    "layer_decay": (["--layer-decay", "0.7"], 0.7),
    "freeze_bn_stats": (["--freeze-bn-stats"], True),
    "precise_bn_images": (["--precise-bn-images", "0"], 0),
    "report": (["--no-report"], False),
    "tensorboard": (["--tensorboard"], True),
    "profile": (["--profile"], True),
    "checkpoint_steps": (["--checkpoint-steps", "50"], 50),
    "shard_optimizer": (["--shard-optimizer"], True),
    "distributed": (["--distributed"], True),
    "coordinator_address": (["--coordinator-address", "host:1234"], "host:1234"),
    "num_processes": (["--num-processes", "2"], 2),
    "process_id": (["--process-id", "0"], 0),
    "resume": (["--no-resume"], False),
    "allow_config_changes": (["--allow-config-changes"], True),
    "verbose": (["--verbose"], True),
    "compilation_cache": (["--no-compilation-cache"], False),
}


def parse(*argv):
    return parser.parse(TrainConfig, argv, prog="python train.py")


def test_config_has_default_values():
    assert TrainConfig().to_json() == {
        "data": None,
        "workdir": "runs/default",
        "epochs": 20,
        "image_size": None,
        "resize": None,
        "max_corrupt_fraction": 0.0,
        "input": "auto",
        "workers": None,
        "checkpoint_steps": 1000,
        "shard_optimizer": False,
        "distributed": False,
        "coordinator_address": None,
        "num_processes": None,
        "process_id": None,
        "batch_size": 32,
        "grad_accum_steps": 1,
        "ghost_batch_size": None,
        "seed": 0,
        "recipe": "robust",
        "init": None,
        "freeze": None,
        "model": None,
        "variant": None,
        "width": None,
        "stem": None,
        "stem_relu": None,
        "precision": "float32",
        "optimizer": None,
        "learning_rate": None,
        "weight_decay": None,
        "clip_grad": None,
        "ema": None,
        "crop_min_area": None,
        "crop_pct": None,
        "auto_augment": None,
        "background_prob": None,
        "random_erasing": None,
        "mixup": None,
        "cutmix": None,
        "schedule": None,
        "warmup_epochs": None,
        "label_smoothing": None,
        "aug_strength": None,
        "aug_warmup_epochs": None,
        "hflip": True,
        "bn_momentum": None,
        "zero_init_residual": None,
        "freeze_backbone_epochs": None,
        "layer_decay": None,
        "freeze_bn_stats": None,
        "precise_bn_images": 512,
        "report": True,
        "tensorboard": False,
        "profile": False,
        "resume": True,
        "allow_config_changes": False,
        "verbose": False,
        "compilation_cache": True,
    }


# Options that most recipes leave off.
OFF = {
    "freeze_bn_stats": False,
    "optimizer": "adam",
    "weight_decay": 0,
    "clip_grad": 0,
    "ema": 0,
    "crop_min_area": 1,
    "crop_pct": 1,
    "auto_augment": "none",
    "background_prob": 0,
    "random_erasing": 0,
    "mixup": 0,
    "cutmix": 0,
}
RESOLVED = {
    "imagenet": OFF
    | {
        "optimizer": "sgd",
        "learning_rate": 0.0125,  # 0.1 × 32 / 256, for the default batch size of 32
        "schedule": "cosine",
        "warmup_epochs": 5,
        "weight_decay": 1e-4,
        "label_smoothing": 0.1,
        "aug_strength": 0,
        "aug_warmup_epochs": 0,
        "crop_min_area": 0.08,
        "crop_pct": 0.875,
        "bn_momentum": 0.9,
        "zero_init_residual": True,
        "freeze_backbone_epochs": 0,
        "layer_decay": 1,
    },
    "fast": OFF
    | {
        "learning_rate": 0.002,
        "schedule": "cosine",
        "warmup_epochs": 0.5,
        "label_smoothing": 0.05,
        "aug_strength": 0,
        "aug_warmup_epochs": 0,
        "bn_momentum": 0.9,
        "zero_init_residual": True,
        "freeze_backbone_epochs": 0,
        "layer_decay": 1,
    },
    "tutorial": OFF
    | {
        "learning_rate": 0.001,
        "schedule": "constant",
        "warmup_epochs": 0,
        "label_smoothing": 0,
        "aug_strength": 0,
        "aug_warmup_epochs": 0,
        "bn_momentum": 0.99,
        "zero_init_residual": False,
        "freeze_backbone_epochs": 0,
        "layer_decay": 1,
    },
    "finetune": OFF
    | {
        "learning_rate": 0.0003,
        "schedule": "cosine",
        "warmup_epochs": 1,
        "label_smoothing": 0.05,
        "aug_strength": 1,
        "aug_warmup_epochs": 1,
        "bn_momentum": 0.9,
        "zero_init_residual": False,
        "freeze_backbone_epochs": 1,
        "layer_decay": 0.8,
    },
    "robust": OFF
    | {
        "learning_rate": 0.002,
        "schedule": "cosine",
        "warmup_epochs": 1,
        "label_smoothing": 0.05,
        "aug_strength": 1.25,
        "aug_warmup_epochs": 6,
        "background_prob": 0.2,
        "bn_momentum": 0.9,
        "zero_init_residual": True,
        "freeze_backbone_epochs": 0,
        "layer_decay": 1,
    },
}


NETWORK = {"model": "resnet50", "variant": "tutorial", "width": 64, "stem_relu": True, "stem": "imagenet"}
NETWORKS = dict.fromkeys(RECIPES, NETWORK) | {"imagenet": NETWORK | {"variant": "torchvision"}}


@pytest.mark.parametrize("recipe", RECIPES)
def test_resolve_fills_in_recipe(recipe):
    given = TrainConfig(recipe=recipe, epochs=3, seed=9)
    resolved = given.resolve()
    assert resolved.to_json() == given.to_json() | RESOLVED[recipe] | NETWORKS[recipe]
    assert resolved.resolve() == resolved

    assert [name for name, value in resolved.to_json().items() if value is None] == [
        "data",
        "image_size",
        "resize",
        "workers",
        "ghost_batch_size",
        "init",
        "freeze",
        "coordinator_address",
        "num_processes",
        "process_id",
    ]


def test_cifar_models_set_network_defaults():
    network = TrainConfig(model="resnet56").network
    assert (network.width, network.stem) == (16, "small")
    assert (network.width, network.stem) == (SIZES["resnet56"]["width"], SIZES["resnet56"]["stem"])
    given = TrainConfig(model="resnet20", width=64, stem="imagenet").network
    assert (given.width, given.stem) == (64, "imagenet")
    assert set(CIFAR_MODELS) == {size for size, fields in SIZES.items() if len(fields["stage_sizes"]) == 3}


def test_freeze_follows_stages_of_model():
    assert TrainConfig(model="resnet20", freeze="backbone").frozen == ("stem", "stage2", "stage3", "stage4")
    assert not TrainConfig(model="resnet20", freeze="stem,stage2,stage3,stage4").updates_bn_stats
    assert TrainConfig(model="resnet18", freeze="stem,stage2,stage3,stage4").updates_bn_stats


@pytest.mark.parametrize(("batch_size", "rate"), [(256, 0.1), (1024, 0.4), (32, 0.0125)])
def test_learning_rate_scales_with_batch(batch_size, rate):
    given = TrainConfig(recipe="imagenet", batch_size=batch_size)
    assert given.resolved_recipe.learning_rate == pytest.approx(rate)
    assert given.resolve().resolve().learning_rate == pytest.approx(rate)
    assert dataclasses.replace(given, learning_rate=0.3).resolved_recipe.learning_rate == 0.3
    assert TrainConfig(recipe="fast", batch_size=batch_size).resolved_recipe.learning_rate == 2e-3


@pytest.mark.parametrize(
    ("options", "uses_hflip"),
    [
        ({}, True),
        ({"recipe": "tutorial"}, False),
        ({"recipe": "imagenet"}, True),
        ({"recipe": "imagenet", "hflip": False}, False),
        ({"aug_strength": 0, "crop_min_area": 0.5}, True),
        ({"aug_strength": 0, "auto_augment": "randaugment"}, True),
        ({"aug_strength": 0, "mixup": 0.2, "random_erasing": 0.25}, False),
    ],
)
def test_hflip_needs_moving_augmentation(options, uses_hflip):
    assert TrainConfig(**options).uses_hflip is uses_hflip


CONTRADICTIONS = [
    ({"grad_accum_steps": 3}, "--grad-accum-steps 3 does not divide --batch-size 32; give a divisor of it"),
    (
        {"ghost_batch_size": 5},
        "--ghost-batch-size 5 does not divide the 32 images that go through the network at once; give a divisor of 32",
    ),
    (
        {"ghost_batch_size": 16, "grad_accum_steps": 4},
        "--ghost-batch-size 16 does not divide the 8 images that go through the network at once; give a divisor of 8",
    ),
    (
        {"weight_decay": 0.1},
        "--weight-decay 0.1 has no use with --optimizer adam, whose steps would undo it; "
        "give --optimizer adamw, or --weight-decay 0",
    ),
    (
        {"ema": 0.9, "precise_bn_images": 0},
        "--ema 0.9 needs --precise-bn-images above 0, because batch norm's running averages do not fit the averaged "
        "weights; leave --precise-bn-images out, or give --ema 0",
    ),
    (
        {"freeze_bn_stats": True},
        "--freeze-bn-stats needs --init, whose batch norm statistics it keeps; give --init, or --no-freeze-bn-stats",
    ),
    (
        {"freeze_bn_stats": True, "ghost_batch_size": 8, "init": "runs/signs"},
        "--ghost-batch-size 8 sets the images for batch norm's statistics, which --freeze-bn-stats keeps unchanged; "
        "give only one of them",
    ),
]


@pytest.mark.parametrize(("options", "message"), CONTRADICTIONS)
def test_check_rejects_contradictions(options, message):
    with pytest.raises(UserError) as caught:
        TrainConfig(**options).check()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"recipe": "imagenet"},
        {"grad_accum_steps": 4, "ghost_batch_size": 8},
        {"optimizer": "adamw", "weight_decay": 0.1},
        {"ema": 0.9, "precise_bn_images": 0, "freeze": "backbone"},  # freezes all statistics
        {"ema": 0.9, "precise_bn_images": 0, "freeze_bn_stats": True, "init": "runs/signs"},
    ],
)
def test_check_accepts_consistent_options(options):
    TrainConfig(**options).check()


@pytest.mark.parametrize("recipe", RECIPES)
def test_given_value_overrides_recipe(recipe):
    recipe_values = TrainConfig(recipe=recipe).resolve().to_json()
    for name in (*RESOLVED["robust"], *NETWORK):
        value = FLAGS[name][1]
        resolved = TrainConfig(recipe=recipe, **{name: value}).resolve()
        assert resolved.to_json() == recipe_values | {name: value}, name


@pytest.mark.parametrize(
    "name",
    [
        "learning_rate",
        "warmup_epochs",
        "label_smoothing",
        "aug_strength",
        "aug_warmup_epochs",
        "bn_momentum",
        "zero_init_residual",
    ],
)
def test_tutorial_value_overrides_robust(name):
    value = RESOLVED["tutorial"][name]
    assert getattr(TrainConfig(recipe="robust", **{name: value}).resolve(), name) == value


@pytest.mark.parametrize(
    "given",
    [TrainConfig(), TrainConfig().resolve(), TrainConfig(**{name: value for name, (_, value) in FLAGS.items()})],
    ids=["defaults", "resolved", "all different"],
)
def test_json_round_trip_keeps_config(given):
    assert TrainConfig.from_json(json.loads(json.dumps(given.to_json()))) == given


def test_from_json_fills_in_defaults():
    assert TrainConfig.from_json({"epochs": 3}) == TrainConfig(epochs=3)


def test_from_json_rejects_invalid_options():
    message = r"^unknown options \['colour', 'epoch'\]; `flaxresnet train --help-all` lists the options$"
    with pytest.raises(UserError, match=message):
        TrainConfig.from_json({"epoch": 3, "epochs": 3, "colour": "red"})
    with pytest.raises(UserError, match="--epochs must be at least 1, not 0"):
        TrainConfig.from_json({"epochs": 0})


NAN, INFINITY = float("nan"), float("inf")

RECIPE_NAMES = " or ".join(map(repr, RECIPES))
INVALID_VALUES = [
    ("grad_accum_steps", 0, "--grad-accum-steps must be at least 1, not 0"),
    ("ghost_batch_size", 0, "--ghost-batch-size must be at least 1, not 0"),
    ("optimizer", "lars", "--optimizer must be 'adam' or 'sgd' or 'adamw' or 'lamb', not 'lars'"),
    ("weight_decay", -1e-4, "--weight-decay must be at least 0, not -0.0001"),
    ("clip_grad", -1, "--clip-grad must be at least 0, not -1"),
    ("clip_grad", NAN, "--clip-grad must be at least 0, not nan"),
    ("ema", 1, "--ema must be at least 0 and below 1, not 1"),
    ("crop_min_area", 0, "--crop-min-area must be above 0 and at most 1, not 0"),
    ("crop_pct", 0, "--crop-pct must be above 0 and at most 1, not 0"),
    ("auto_augment", "auto", "--auto-augment must be 'none' or 'trivialaugment' or 'randaugment', not 'auto'"),
    ("background_prob", 1.5, "--background-prob must be between 0 and 1, not 1.5"),
    ("random_erasing", 1.5, "--random-erasing must be between 0 and 1, not 1.5"),
    ("mixup", -0.2, "--mixup must be at least 0, not -0.2"),
    ("cutmix", -1, "--cutmix must be at least 0, not -1"),
    ("data", 3, "--data must be text, not 3"),
    ("data", b"a.h5", "--data must be text, not b'a.h5'"),
    ("workdir", None, "--workdir must be text, not None"),
    ("epochs", 0, "--epochs must be at least 1, not 0"),
    ("epochs", -2, "--epochs must be at least 1, not -2"),
    ("epochs", 2.0, "--epochs must be a whole number, not 2.0"),
    ("epochs", "2", "--epochs must be a whole number, not '2'"),
    ("epochs", True, "--epochs must be a whole number, not True"),
    ("epochs", None, "--epochs must be a whole number, not None"),
    ("batch_size", 0, "--batch-size must be at least 1, not 0"),
    ("batch_size", True, "--batch-size must be a whole number, not True"),
    ("seed", -1, "--seed must be between 0 and 4294967295, not -1"),
    ("seed", 2**32, "--seed must be between 0 and 4294967295, not 4294967296"),
    ("seed", 0.5, "--seed must be a whole number, not 0.5"),
    ("recipe", "fancy", f"--recipe must be {RECIPE_NAMES}, not 'fancy'"),
    ("init", "", "--init must be a name, not ''"),
    ("init", 3, "--init must be text, not 3"),
    ("freeze", "stage9", f"--freeze must be {STAGE_LIST}, not 'stage9'"),
    ("freeze", "", f"--freeze must be {STAGE_LIST}, not ''"),
    ("freeze_backbone_epochs", -1, "--freeze-backbone-epochs must be at least 0, not -1"),
    ("layer_decay", 0, "--layer-decay must be above 0 and at most 1, not 0"),
    ("layer_decay", 1.5, "--layer-decay must be above 0 and at most 1, not 1.5"),
    ("recipe", None, f"--recipe must be {RECIPE_NAMES}, not None"),
    ("model", "resnet51", f"--model must be {MODELS}, not 'resnet51'"),
    ("model", 50, f"--model must be {MODELS}, not 50"),
    ("variant", "tf", "--variant must be 'tutorial' or 'keras' or 'torchvision', not 'tf'"),
    ("width", 0, "--width must be at least 1, not 0"),
    ("width", True, "--width must be a whole number, not True"),
    ("width", 64.0, "--width must be a whole number, not 64.0"),
    ("stem", "tiny", "--stem must be 'imagenet' or 'small', not 'tiny'"),
    ("stem_relu", 1, "--stem-relu must be true or false, not 1"),
    ("learning_rate", 0, "--learning-rate must be above 0, not 0"),
    ("learning_rate", -1e-3, "--learning-rate must be above 0, not -0.001"),
    ("learning_rate", NAN, "--learning-rate must be above 0, not nan"),
    ("learning_rate", 10**400, f"--learning-rate must be above 0, not {10**400}"),
    ("weight_decay", 10**400, f"--weight-decay must be at least 0, not {10**400}"),
    ("learning_rate", INFINITY, "--learning-rate must be above 0, not inf"),
    ("learning_rate", np.float32("inf"), "--learning-rate must be above 0, not np.float32(inf)"),
    ("warmup_epochs", INFINITY, "--warmup-epochs must be at least 0, not inf"),
    ("learning_rate", "1e-3", "--learning-rate must be a number, not '1e-3'"),
    ("learning_rate", True, "--learning-rate must be a number, not True"),
    ("schedule", "linear", "--schedule must be 'constant' or 'cosine', not 'linear'"),
    ("warmup_epochs", -0.5, "--warmup-epochs must be at least 0, not -0.5"),
    ("warmup_epochs", NAN, "--warmup-epochs must be at least 0, not nan"),
    ("warmup_epochs", False, "--warmup-epochs must be a number, not False"),
    ("label_smoothing", -0.1, "--label-smoothing must be at least 0 and below 1, not -0.1"),
    ("label_smoothing", 1, "--label-smoothing must be at least 0 and below 1, not 1"),
    ("label_smoothing", NAN, "--label-smoothing must be at least 0 and below 1, not nan"),
    ("aug_strength", -1, "--aug-strength must be between 0 and 2, not -1"),
    ("aug_strength", 2.5, "--aug-strength must be between 0 and 2, not 2.5"),
    ("aug_strength", NAN, "--aug-strength must be between 0 and 2, not nan"),
    ("aug_strength", INFINITY, "--aug-strength must be between 0 and 2, not inf"),
    ("aug_strength", True, "--aug-strength must be a number, not True"),
    ("precision", "half", "--precision must be 'float32' or 'bfloat16', not 'half'"),
    ("zero_init_residual", 1.5, "--zero-init-residual must be true or false, not 1.5"),
    ("aug_warmup_epochs", -1, "--aug-warmup-epochs must be at least 0, not -1"),
    ("aug_warmup_epochs", 1e308, "--aug-warmup-epochs must be at most 1000000, not 1e+308"),
    ("warmup_epochs", 1e308, "--warmup-epochs must be at most 1000000, not 1e+308"),
    ("freeze_backbone_epochs", 1e308, "--freeze-backbone-epochs must be at most 1000000, not 1e+308"),
    ("epochs", 10**30, "--epochs must be at most 1000000, not 1" + "0" * 30),
    ("width", 10**30, "--width must be at most 4096, not 1" + "0" * 30),
    ("workers", 5000, "--workers must be at most 1024, not 5000"),
    ("mixup", 1e308, "--mixup must be at most 1000, not 1e+308"),
    ("cutmix", 1e308, "--cutmix must be at most 1000, not 1e+308"),
    ("batch_size", 2**31, "--batch-size must be at most 2147483647, not 2147483648"),
    ("grad_accum_steps", 2**31, "--grad-accum-steps must be at most 2147483647, not 2147483648"),
    ("ghost_batch_size", 2**31, "--ghost-batch-size must be at most 2147483647, not 2147483648"),
    ("freeze_bn_stats", 1, "--freeze-bn-stats must be true or false, not 1"),
    ("precise_bn_images", 2**31, "--precise-bn-images must be at most 2147483647, not 2147483648"),
    ("checkpoint_steps", 2**31, "--checkpoint-steps must be at most 2147483647, not 2147483648"),
    ("num_processes", 10**30, "--num-processes must be at most 1048576, not 1" + "0" * 30),
    ("process_id", 10**30, "--process-id must be at most 1048576, not 1" + "0" * 30),
    ("hflip", None, "--hflip must be true or false, not None"),
    ("hflip", "no", "--hflip must be true or false, not 'no'"),
    ("bn_momentum", 1.0, "--bn-momentum must be at least 0 and below 1, not 1.0"),
    ("bn_momentum", -0.1, "--bn-momentum must be at least 0 and below 1, not -0.1"),
    ("bn_momentum", NAN, "--bn-momentum must be at least 0 and below 1, not nan"),
    ("precise_bn_images", -1, "--precise-bn-images must be at least 0, not -1"),
    ("precise_bn_images", False, "--precise-bn-images must be a whole number, not False"),
    ("image_size", (64, 16), "--image-size must be two numbers between 32 and 65536, not (64, 16)"),
    ("image_size", (64.0, 64), "--image-size must be two whole numbers, not (64.0, 64)"),
    ("resize", "fill", "--resize must be 'stretch' or 'crop' or 'pad', not 'fill'"),
    ("image_size", 64, "--image-size must be two whole numbers, not 64"),
    ("max_corrupt_fraction", 1, "--max-corrupt-fraction must be at least 0 and below 1, not 1"),
    ("report", 1, "--report must be true or false, not 1"),
    ("tensorboard", "yes", "--tensorboard must be true or false, not 'yes'"),
    ("profile", 5, "--profile must be true or false, not 5"),
    ("input", "disk", "--input must be 'auto' or 'memory' or 'stream', not 'disk'"),
    ("workers", -1, "--workers must be at least 0, not -1"),
    ("checkpoint_steps", 0, "--checkpoint-steps must be at least 1, not 0"),
    ("shard_optimizer", 1, "--shard-optimizer must be true or false, not 1"),
    ("distributed", 1, "--distributed must be true or false, not 1"),
    ("coordinator_address", "", "--coordinator-address must be a name, not ''"),
    ("num_processes", 0, "--num-processes must be at least 1, not 0"),
    ("process_id", -1, "--process-id must be at least 0, not -1"),
    ("resume", 0, "--resume must be true or false, not 0"),
    ("allow_config_changes", 1, "--allow-config-changes must be true or false, not 1"),
    ("verbose", "yes", "--verbose must be true or false, not 'yes'"),
    ("compilation_cache", "yes", "--compilation-cache must be true or false, not 'yes'"),
]


def test_config_rejects_invalid_values():
    for name, value, message in INVALID_VALUES:
        with pytest.raises(UserError) as caught:
            TrainConfig(**{name: value})
        assert str(caught.value) == message, (name, value)


def test_invalid_values_cover_options():
    assert {name for name, _, _ in INVALID_VALUES} == set(NAMES)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 1),
        ("seed", 2**32 - 1),
        ("label_smoothing", 0),
        ("label_smoothing", 0.999),
        ("aug_strength", 0),
        ("aug_strength", 2),
        ("aug_warmup_epochs", 0),
        ("zero_init_residual", True),
        ("zero_init_residual", False),
        ("bn_momentum", 0),
        ("warmup_epochs", 0),
        ("learning_rate", 1),
        ("precise_bn_images", 0),
    ],
)
def test_config_accepts_range_limits(name, value):
    assert getattr(TrainConfig(**{name: value}), name) == value


def test_user_error_is_value_error():
    with pytest.raises(ValueError, match="--epochs"):
        TrainConfig(epochs=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 10**30),  # JAX cannot hold the int
        ("learning_rate", np.float32(0.5)),
        ("learning_rate", Fraction(1, 2)),
        ("epochs", np.int64(3)),
    ],
)
def test_numbers_become_plain_python(name, value):
    expected = float(value) if name == "learning_rate" else int(value)
    result = getattr(TrainConfig(**{name: value}), name)
    assert result == expected
    assert type(result) is type(expected)


def test_image_size_becomes_int_tuple():
    config = TrainConfig(image_size=[np.int64(96), 80])
    assert json.dumps(config.image_size) == "[96, 80]"
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize("name", ["data", "workdir"])
def test_config_accepts_path_objects(name):
    assert getattr(TrainConfig(**{name: pathlib.Path("some") / "where"}), name) == "some/where"


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().epochs = 3


def test_help_texts_are_sentences():
    texts = parser.field_docstrings(TrainConfig)
    assert list(texts) == NAMES
    for name, text in texts.items():
        assert text.endswith("."), name
        assert len(text.splitlines()) <= 2, name
        assert "default" not in text or name == "recipe", name  # the parser adds the default


def test_parse_gives_defaults():
    assert parse() == TrainConfig()


def test_flag_table_covers_options():
    assert list(FLAGS) == NAMES
    for name, (_, value) in FLAGS.items():
        assert value != getattr(TrainConfig(), name), name


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("bit", range((len(FLAGS) - 1).bit_length()))
def test_flags_set_own_options(bit, given):
    """For any two options, one of these parses has the first and not the second, so each sets only its own value."""
    argv = []
    options = {}
    for number, (name, (arguments, value)) in enumerate(FLAGS.items()):
        if bool(number >> bit & 1) == given:
            argv += arguments
            options[name] = value
    assert parse(*argv) == TrainConfig(**options)


def test_switches_have_two_flags():
    switches = [f.name for f in dataclasses.fields(TrainConfig) if f.default is True]
    on = parse(*[flag(name) for name in switches])
    off = parse(*[flag(f"no-{name}") for name in switches])
    assert len(switches) > 3
    for name in switches:
        assert getattr(on, name) is True, name
        assert getattr(off, name) is False, name


def test_choices_match_models():
    hints = typing.get_type_hints(TrainConfig)
    assert typing.get_args(typing.get_args(hints["model"])[0]) == tuple(SIZES)
    assert typing.get_args(typing.get_args(hints["variant"])[0]) == tuple(VARIANTS)


def test_every_option_is_used():
    """Finds an option that was renamed in its declaration but not in its uses."""
    package = pathlib.Path(train_config.__file__).parents[1]
    modules = [path for path in package.rglob("*.py") if path.parent.name != "config"]
    attributes = set()
    for path in modules:
        attributes |= {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    used_in_config = {"freeze", "hflip"}  # for `frozen` and `uses_hflip`
    assert set(NAMES) - attributes - used_in_config == set()
