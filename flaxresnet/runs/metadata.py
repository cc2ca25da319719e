"""Run metadata: the contents of `config.json`, from which a run's network and preprocessing are rebuilt."""

import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Self

import jax.numpy as jnp

from flaxresnet.config.train_config import STAGES, TrainConfig
from flaxresnet.data.preprocess import Preprocessing
from flaxresnet.models.resnet import MIN_IMAGE_SIZE, SIZES, ResNet, resnet, width_step
from flaxresnet.runs.schema import DATA, RUN, require
from flaxresnet.runtime.errors import UserError

FORMAT = 2
# Packages whose version can change the result of a computation.
PACKAGES = ("flaxresnet", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "h5py", "Pillow")


def package_versions() -> dict[str, str]:
    """Returns the versions of Python and of `PACKAGES`, by name."""
    versions = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # a checkout that is not installed
            versions[package] = "not installed"
    return versions


@dataclass(frozen=True)
class RunMetadata:
    """The contents of `config.json`: everything needed to rebuild the network and to prepare its input.

    Attributes:
      config: the resolved options.
      class_names: one name per class, in the order of the logits.
      preprocessing: the conversion from a photo to the network's input.
      data: the data's `source`, `path` (None for rendered hand signs), numbers of images, and fingerprints.
      versions: package name → version, when the run started.
      device: description of the devices that the run started on.
    """

    config: TrainConfig
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    data: dict[str, Any]
    versions: dict[str, str]
    device: str = ""

    @property
    def is_adapted(self) -> bool:
        """Returns whether batch norm's statistics come from images outside the run's own data; see `adabn.py`."""
        return "adapted" in self.data

    def model(self) -> ResNet:
        """Returns the run's network, without variables."""
        config = self.config
        recipe = config.resolved_recipe
        network = config.network
        return resnet(
            network.model,
            network.variant,
            num_classes=len(self.class_names),
            width=network.width,
            stem=network.stem,
            stem_relu=network.stem_relu,
            momentum=recipe.bn_momentum,
            zero_init_residual=recipe.zero_init_residual,
            dtype=jnp.dtype(config.precision),
            frozen=config.frozen,
            freeze_bn_stats=recipe.freeze_bn_stats,
            ghost_batch_size=config.ghost_batch_size,
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the metadata as a tree of JSON values."""
        return {
            "format": FORMAT,
            "config": self.config.to_json(),
            "class_names": list(self.class_names),
            "preprocessing": self.preprocessing.to_json(),
            "data": self.data,
            "versions": self.versions,
            "device": self.device,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Returns the metadata that `to_json` turned into `values`.

        Raises:
          KeyError: a field is missing.
          TypeError: a field's value violates `schema.py`.
          UserError: an option, the preprocessing or the network is invalid.
        """
        require(values, RUN)
        require(values["data"], DATA, "data")
        config = TrainConfig.from_json(values["config"])
        preprocessing = Preprocessing.from_json(values["preprocessing"])
        check_network(config)
        if min(preprocessing.height, preprocessing.width) < MIN_IMAGE_SIZE:
            size = f"{preprocessing.height}×{preprocessing.width}"
            raise UserError(f"images of {size} pixels; the network needs {MIN_IMAGE_SIZE}×{MIN_IMAGE_SIZE} or more")
        return cls(
            config=config,
            class_names=tuple(values["class_names"]),
            preprocessing=preprocessing,
            data=dict(values["data"]),
            versions=dict(values["versions"]),
            device=values.get("device", ""),
        )


def check_network(config: TrainConfig) -> None:
    """Raises UserError if the model's groups do not divide the width, or the model lacks a stage of `freeze`."""
    network = config.network
    for name in (config.freeze or "").replace(" ", "").split(","):
        if name in STAGES and name not in config.stages:
            raise UserError(
                f"--freeze {config.freeze} names {name}, but {network.model} ends with {config.stages[-1]}; leave "
                f"{name} out"
            )
    step = width_step(network.model)
    if network.width % step:
        raise UserError(
            f"--width {network.width} cannot be divided into the {SIZES[network.model]['groups']} groups of "
            f"{network.model}; give a multiple of {step}"
        )
